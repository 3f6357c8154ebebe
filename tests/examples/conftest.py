"""One small model and its engines, and what every test of an example needs to start it."""

import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from resnet_deploy.protocols import Silent
from resnet_deploy.specs import BuildSpec, ExportSpec

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Engines:
    """FP32 engines of an untrained ResNet-18 of ten classes at 32 pixels; shared by a session, changed by nobody."""

    onnxruntime: Path
    openvino: Path


@pytest.fixture(scope="session")
def engines(tmp_path_factory):
    for library in ("torch", "onnx", "onnxruntime", "openvino"):
        pytest.importorskip(library, reason=f"{library} is needed to export, build and run")
    from resnet_deploy.pipeline.building import BuildInputs, build
    from resnet_deploy.pipeline.exporting import export

    folder = tmp_path_factory.mktemp("engines")
    spec = ExportSpec(architecture="resnet18", weights="none", num_classes=10, image_size=32, resize=34, labels=LABELS)
    model = export(spec, folder / "resnet18.onnx", Silent()).path
    return Engines(
        *(
            build(BuildInputs(model), BuildSpec(backend=backend, precision="fp32"), Silent()).bundle.path
            for backend in ("onnxruntime", "openvino")
        )
    )


@pytest.fixture(scope="session")
def noise():
    """Draw smooth colour noise, which an untrained network tells apart: (count, height, width, 3) uint8."""
    from PIL import Image

    def draw(count, height=32, width=32, seed=0):
        generator = np.random.default_rng(seed)
        coarse = generator.integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
        size = (width, height)
        return np.stack([np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC)) for one in coarse])

    return draw


@pytest.fixture
def example_path(monkeypatch):
    """Make an example's modules importable for one test, and give its folder: (name)."""

    def add(name):
        monkeypatch.syspath_prepend(str(EXAMPLES / name))
        return EXAMPLES / name

    return add


@pytest.fixture(scope="session")
def build_example(tmp_path_factory):
    """Build an example by CMake, without optimization, against this checkout's C++: (name) -> folder."""
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    for library in ("cmake", "ninja", "nlohmann_json"):
        pytest.importorskip(library, reason=f"{library} is needed to build C++")
    tools, site = Path(sysconfig.get_path("scripts")), sysconfig.get_path("purelib")

    def build(name):
        folder = tmp_path_factory.mktemp(name)
        options = [f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", "-DCMAKE_BUILD_TYPE=", "-DCMAKE_CXX_FLAGS=-O0"]
        options += [f"-Dresnet-deploy_DIR={ROOT / 'resnet_deploy/cpp/cmake'}", f"-DRESNET_DEPLOY_SITE_PACKAGES={site}"]
        options += [f"-DPython_EXECUTABLE={sys.executable}"]
        configure = [tools / "cmake", "-S", EXAMPLES / name, "-B", folder, "-G", "Ninja", *options]
        for command in ([*configure, "--no-warn-unused-cli"], [tools / "cmake", "--build", folder]):
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        return folder

    return build
