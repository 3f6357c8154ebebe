"""What pyproject.toml cannot say: calibration counts in C where a compiler is at hand, and in NumPy where none is.

With RESNET_DEPLOY_PURE set, none is looked for: such a wheel fits every machine.
"""

import os

from setuptools import Extension, setup

COUNTING = Extension(
    "resnet_deploy.quantize._counting",
    ["resnet_deploy/quantize/counting.c"],
    extra_compile_args=["-O3"],
    py_limited_api=True,  # one file for every Python: it knows none of them
    optional=True,
)

setup(
    ext_modules=[] if "RESNET_DEPLOY_PURE" in os.environ else [COUNTING],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
