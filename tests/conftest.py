"""What is made once for a whole run, however many processes share it, and in which order files of tests are run."""

import fcntl
import gc
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from resnet_deploy.backends import find_backend
from resnet_deploy.protocols import Silent
from resnet_deploy.specs import BuildSpec, CalibrationSpec, ExportSpec, ModelCard

ROOT = Path(__file__).parents[1]
LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IMAGES_PER_CLASS = 4
CALIBRATION_IMAGES = 12
# The files that take longest, longest first; the first two need nothing that the others make.
LONG_FILES = (
    *("cpu/test_report_chromium.py", "test_readme.py", "cpu/test_cli.py", "cpu/test_loadgen.py"),
    *("cpp/test_cpp_core.py", "cpu/test_scoring_workers.py", "cpu/test_cli_evaluate.py", "cpu/test_scoring_ray.py"),
    *("cpp/test_cpp_example.py", "test_wheel.py", "cpp/test_cpp_engine.py", "cpu/test_export.py"),
    *("examples/test_ray_serve.py", "rtx/test_rtx_precisions.py", "cpu/test_qdq.py", "cpu/test_prebuilding.py"),
    *("cpu/test_cli_search.py", "cpu/test_equalize.py", "cpu/test_trained.py", "cpu/test_peers.py", "cpu/test_bias.py"),
    *("cpu/test_cli_verify.py", "cpu/test_building.py", "cpu/test_building_again.py", "cpu/test_cli_output.py"),
    *("cpu/test_openvino.py", "test_tutorial.py", "cpu/test_package_whole.py", "rtx/test_rtx_builds.py"),
    *("cpu/test_bench_ways.py", "cpu/test_calibration.py", "cpu/test_soak.py", "examples/test_gstreamer.py"),
    *("examples/test_nanobind.py", "cpu/test_suites.py", "cpu/test_cli_refusals.py"),
)


def pytest_configure(config):
    """Share the cores between the processes of a run: a thread that waits spins, which costs others theirs.

    What a process starts inherits its cores, and the package counts only those.
    """
    if hasattr(config, "workerinput") and hasattr(os, "sched_setaffinity"):
        number, cores = int(config.workerinput["workerid"].removeprefix("gw")), sorted(os.sched_getaffinity(0))
        mine = cores[number % len(cores) :: config.workerinput["workercount"]]
        os.sched_setaffinity(0, mine)


def pytest_collection(session):
    """Collect without looking for garbage: what is imported stays."""
    del session
    gc.disable()


def pytest_collection_finish(session):
    """Look for it from now on."""
    del session
    gc.enable()


def pytest_collection_modifyitems(items):
    """Begin with the long files, so that in the end no process is left alone with one; the others stay in order."""
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(autouse=True, scope="module")
def spare_the_collector_what_is_old():
    """Have a file's collections of garbage pass over what was there before it: with PyTorch, each took 0.5 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Make something in whichever process of the run asks first; the others wait, and unpickle it: (name, make).

    ``make(folder)`` may write to a folder that all processes read from then on, and none writes to again.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def ask(name, make):
        made = base / f"{name}.pickle"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=base))
                made.write_bytes(pickle.dumps(make(folder)))
            return pickle.loads(made.read_bytes())

    return ask


@dataclass(frozen=True)
class Deployment:
    """An untrained ResNet-18 of ten classes at 32 pixels, what it was built from, and its engines by precision.

    Shared by a whole run: tests copy what they change.
    """

    folder: Path
    model: Path
    reference: Path
    card: ModelCard
    data: Path  # a folder per class
    calibration: Path  # flat, and none of the images in data
    engines: dict[str, Path]
    int8_spec: BuildSpec


def write_image(path, seed):
    """Write a PNG of 40x36 pixels of smooth colour noise, another for every seed."""
    from PIL import Image

    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((40, 36), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="session")
def draw_image():
    """Write an image: (path, seed)."""
    return write_image


@pytest.fixture
def shallow(monkeypatch):
    """Let ResNets have the kind and the width of their layers, and one block in each of their four stages."""
    from resnet_deploy import models

    shallow = {name: replace(design, depths=(1, 1, 1, 1)) for name, design in models.DESIGNS.items()}
    monkeypatch.setattr(models, "DESIGNS", shallow)


@pytest.fixture
def mount_tmpfs(tmp_path):
    """Mount a tmpfs, which stops root too; skip where mounting is not allowed."""
    points = []

    def mount(options):
        if shutil.which("mount") is None:
            pytest.skip("there is no mount command")
        point = tmp_path / f"disk{len(points)}"
        point.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", point]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
        points.append(point)
        return point

    yield mount
    for point in points:
        subprocess.run(["umount", point], check=True)


@pytest.fixture(scope="session")
def deployment(once):
    """One small model, exported and built for all tests that need a real one."""
    for library in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(library, reason=f"{library} is needed to export, build and run")
    return Deployment(**once("deployment", make_deployment))


def make_deployment(folder):
    """Draw the images, export the model and build its engines for ONNX Runtime; return a deployment's fields."""
    from resnet_deploy.pipeline.building import BuildInputs, build
    from resnet_deploy.pipeline.exporting import export

    data, calibration, engines = folder / "data", folder / "calibration", {}
    for index, label in enumerate(LABELS):
        for number in range(IMAGES_PER_CLASS):
            write_image(data / label / f"{number}.png", index * IMAGES_PER_CLASS + number)
    for number in range(CALIBRATION_IMAGES):
        write_image(calibration / f"{number:02}.png", 1000 + number)
    spec = ExportSpec(architecture="resnet18", weights="none", num_classes=10, image_size=32, resize=34, labels=LABELS)
    exported = export(spec, folder / "engines" / "resnet18.onnx", Silent())
    int8 = BuildSpec(backend="onnxruntime", precision="int8", calibration=CalibrationSpec(max_images=100))
    for precision in find_backend("onnxruntime").precisions:
        is_int8 = precision == "int8"
        inputs = BuildInputs(exported.path, calib=str(calibration) if is_int8 else None)
        wanted = int8 if is_int8 else BuildSpec(backend="onnxruntime", precision=precision)
        engines[precision] = build(inputs, wanted, Silent()).bundle.path
    return {
        "folder": folder,
        "model": exported.path,
        "reference": exported.reference_path,
        "card": exported.card,
        "data": data,
        "calibration": calibration,
        "engines": engines,
        "int8_spec": int8,
    }


@pytest.fixture(scope="session")
def slim_model(deployment, once):
    """The deployment's ResNet-18 with a quarter of its channels, exported: what is built of it is built at once."""
    return once("slim-model", partial(make_slim_model, deployment.card))


def make_slim_model(card, folder):
    """Export the slim network under the card of the other; return the file, beside which there are no weights."""
    import torch
    from slim import slim

    from resnet_deploy.export import export_onnx, reference_logits
    from resnet_deploy.models import create_model
    from resnet_deploy.onnx_files import bytes_from_onnx
    from resnet_deploy.pipeline.synthetic import synthetic_images

    network = slim(create_model("resnet18", len(LABELS))).eval()
    images = torch.from_numpy(synthetic_images(card.preprocess, 32))
    with torch.no_grad():  # an untrained network has the same answer to most images, which nothing would change
        network.fc.bias -= torch.from_numpy(reference_logits(network, card.preprocess, images).mean(0))
    (folder / "resnet18.onnx").write_bytes(bytes_from_onnx(export_onnx(network, card)))
    return folder / "resnet18.onnx"


@pytest.fixture(scope="session")
def openvino_engine(deployment, once):
    """The same model as an FP32 engine for OpenVINO, beside the others."""
    pytest.importorskip("openvino", reason="it builds and runs the engine")

    def make(folder):
        from resnet_deploy.pipeline.building import BuildInputs, build

        inputs = BuildInputs(deployment.model, output=folder / "resnet18-fp32-openvino")
        return build(inputs, BuildSpec(backend="openvino", precision="fp32"), Silent()).bundle.path

    return once("openvino", make)


@pytest.fixture(scope="session")
def build_example(once):
    """Build an example by CMake, without optimization, against this checkout's C++: (name) -> folder."""
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    for library in ("cmake", "ninja", "nlohmann_json"):
        pytest.importorskip(library, reason=f"{library} is needed to build C++")
    return lambda name: once(f"example-{name}", partial(build_by_cmake, ROOT / "examples" / name))


def build_by_cmake(source, folder):
    """Configure and build a project that finds the package; return the folder."""
    tools, site = Path(sysconfig.get_path("scripts")), sysconfig.get_path("purelib")
    # An empty type of build would be the examples' own, which is optimized.
    options = ["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}"]
    options += [f"-Dresnet-deploy_DIR={ROOT / 'resnet_deploy/cpp/cmake'}", f"-DRESNET_DEPLOY_SITE_PACKAGES={site}"]
    options += [f"-DPython_EXECUTABLE={sys.executable}"]
    configure = [tools / "cmake", "-S", source, "-B", folder, "-G", "Ninja", *options]
    for command in ([*configure, "--no-warn-unused-cli"], [tools / "cmake", "--build", folder]):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def c_library(build_example):
    """The C interface as a shared library on OpenVINO, as the example of ctypes builds it."""
    pytest.importorskip("openvino", reason="the library is linked with it")
    return build_example("ctypes") / "libresnet_deploy_c.so"
