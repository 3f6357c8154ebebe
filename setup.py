"""What pyproject.toml cannot say: calibration counts in C where a compiler is at hand, and in NumPy where none is.

The library knows no Python: one wheel is for every Python on its kind of processor, and one without it for every
machine. RESNET_DEPLOY_PURE=1 asks for the latter.
"""

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

PACKAGE = Path("resnet_deploy/quantize")
LIBRARY = "libcounting.so"
PURE = os.environ.get("RESNET_DEPLOY_PURE", "") not in {"", "0"}


class BuildLibrary(build_ext):
    """Compiles a plain library, by the compiler alone: no headers and no paths of the Python that runs this."""

    def get_ext_filename(self, fullname: str) -> str:
        """Name the file, within the folder of the build or of its package."""
        return str(PACKAGE / LIBRARY) if "." in fullname else LIBRARY

    def build_extension(self, ext: Extension) -> None:
        """Compile, or say why not: the package does without."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # of an earlier build
        if PURE:
            return
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
        try:
            command = [*compiler, "-O3", "-shared", "-fPIC", "-o", target, *ext.sources]
            subprocess.run(command, check=True)  # noqa: S603 - the compiler that is configured, and our own source
        except (OSError, subprocess.CalledProcessError) as error:
            self.warn(f"calibration will count in NumPy: {error}")

    def copy_extensions_to_source(self) -> None:
        """Put the library beside its module for an editable installation; none that is older stays."""
        (PACKAGE / LIBRARY).unlink(missing_ok=True)
        super().copy_extensions_to_source()


class TaggedWheel(bdist_wheel):
    """A wheel that is for one platform where the library is in it."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return what its name ends with."""
        has_library = (Path(self.bdist_dir) / PACKAGE / LIBRARY).exists()
        return "py3", "none", super().get_tag()[2] if has_library else "any"


COUNTING = Extension("resnet_deploy.quantize.counting", [str(PACKAGE / "counting.c")], optional=True)

setup(ext_modules=[COUNTING], cmdclass={"build_ext": BuildLibrary, "bdist_wheel": TaggedWheel})
