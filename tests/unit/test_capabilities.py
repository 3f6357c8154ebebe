"""What each backend can do here, and what is said where it cannot."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType

import msgspec
import pytest
from record_factory import SYNTHETIC_ENVIRONMENT

from resnet_deploy import capabilities
from resnet_deploy.backends import BACKENDS, Backend, find_backend
from resnet_deploy.capabilities import BackendStatus, Capability, backend_status
from resnet_deploy.driver import Gpu, GpuProbe
from resnet_deploy.environment import Environment

HOPPER = GpuProbe((Gpu("NVIDIA H100 80GB HBM3", "9.0", 80 << 30),), "13.0")
ADA = GpuProbe((Gpu("NVIDIA GeForce RTX 4090", "8.9", 24 << 30),), "13.0")
NO_GPU = GpuProbe(reason="libcuda.so.1 not found: no NVIDIA driver")

MODULES = (
    "torch",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "cuda.bindings",
    "onnxruntime_ep_nv_tensorrt_rtx",
)


@pytest.fixture
def install(monkeypatch):
    """Return a function that makes exactly the given modules look installed, and nothing import."""

    def pretend(*names, gpu_package=True):
        monkeypatch.setattr(capabilities, "installed_version", lambda name: "1.0" if gpu_package else None)
        for name in MODULES:
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None, origin="pretended")
            monkeypatch.setitem(sys.modules, name, module if name in names else None)

    return pretend


def complete(name: str) -> Backend:
    """Take a row of the table as it will be when its builder and runner are written."""
    backend = find_backend(name)
    builder = backend.builder or ("" if name in ("torch", "null") else "some.module:build")
    return dataclasses.replace(backend, builder=builder, runner=backend.runner or "some.module:Runner")


def on(gpu: GpuProbe) -> Environment:
    return msgspec.structs.replace(SYNTHETIC_ENVIRONMENT, gpu=gpu)


YES = Capability(True)
NOTHING_FOR_TORCH = Capability(False, "nothing to build: PyTorch runs the model as it is")
NOTHING_FOR_NULL = Capability(False, "nothing to build: this backend only measures the harness")
GPU_FIX = "use a machine with an NVIDIA GPU and its driver; in a container: docker run --gpus all"
GPU_MISSING = Capability(False, "no NVIDIA GPU: libcuda.so.1 not found: no NVIDIA driver", GPU_FIX)
HOPPER_REFUSED = Capability(
    False, "TensorRT-RTX does not support compute capability 9.0 (Hopper)", "use --backend tensorrt"
)


@dataclass(frozen=True)
class BackendCase:
    backend: str
    gpu: str
    build: Capability
    run: Capability


BACKEND_CASES = [
    BackendCase("torch", "none", NOTHING_FOR_TORCH, YES),
    BackendCase("onnxruntime", "none", YES, YES),
    BackendCase("openvino", "none", YES, YES),
    BackendCase("tensorrt-rtx", "none", YES, GPU_MISSING),
    BackendCase("tensorrt-rtx", "hopper", YES, HOPPER_REFUSED),
    BackendCase("tensorrt-rtx", "ada", YES, YES),
    BackendCase("tensorrt", "none", GPU_MISSING, GPU_MISSING),
    BackendCase("tensorrt", "hopper", YES, YES),
    BackendCase("tensorrt", "ada", YES, YES),
    *(
        BackendCase(f"onnxruntime-{provider}", gpu, able, able)
        for provider in ("cuda", "tensorrt")
        for gpu, able in (("none", GPU_MISSING), ("hopper", YES), ("ada", YES))
    ),
    BackendCase("onnxruntime-rtx", "none", GPU_MISSING, GPU_MISSING),
    BackendCase("onnxruntime-rtx", "hopper", HOPPER_REFUSED, HOPPER_REFUSED),
    BackendCase("onnxruntime-rtx", "ada", YES, YES),
    BackendCase("null", "none", NOTHING_FOR_NULL, YES),
]
GPUS = {"none": NO_GPU, "hopper": HOPPER, "ada": ADA}


def test_the_cases_cover_the_table():
    assert {case.backend for case in BACKEND_CASES} == {backend.name for backend in BACKENDS}


@pytest.mark.parametrize("case", BACKEND_CASES, ids=lambda case: f"{case.backend}-{case.gpu}")
def test_backend_with_everything_installed(case, install):
    install(*MODULES)
    status = backend_status(complete(case.backend), on(GPUS[case.gpu]))
    assert status == BackendStatus(case.backend, case.build, case.run)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_every_row_as_it_is_says_why_not(backend):
    status = backend_status(backend, on(NO_GPU))
    assert status.backend == backend.name
    for able in (status.build, status.run):
        assert able.ok != bool(able.reason)
        assert not (able.ok and able.fix)


@pytest.mark.parametrize("name", [backend.name for backend in BACKENDS if backend.module])
def test_backend_not_installed_names_the_command(name, install):
    backend = complete(name)
    install(*{"onnx", "onnx_ir", "onnxruntime", "cuda.bindings"} - {backend.module})
    status = backend_status(backend, on(ADA))
    module = backend.module.replace("_", "-")
    missing = Capability(False, f"{module} is not installed", f'pip install "resnet-deploy[{backend.extra}]"')
    assert status.run == missing
    assert status.build == (missing if backend.builder else NOTHING_FOR_TORCH)


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_the_package_for_cpus_has_no_provider_for_gpus(name, install):
    """Both packages give a module of the same name."""
    install(*MODULES, gpu_package=False)
    status = backend_status(find_backend(name), on(ADA))
    assert not status.build.ok
    assert status.run.reason == "the onnxruntime that is installed is its package for CPUs"
    assert "resnet-deploy[gpu]" in status.run.fix
    assert backend_status(find_backend("onnxruntime"), on(ADA)).run.ok


def test_building_needs_the_graph_libraries_too(install):
    install()
    assert backend_status(complete("tensorrt-rtx"), on(ADA)).build == Capability(
        False,
        "onnx, onnx-ir, onnxruntime and tensorrt-rtx are not installed",
        'pip install "resnet-deploy[export,cpu,rtx]"',
    )


@pytest.mark.parametrize(("name", "extra"), [("tensorrt", "gpu"), ("tensorrt-rtx", "rtx")])
def test_running_needs_more_than_building(name, extra, install):
    install(*set(MODULES) - {"cuda.bindings"})
    status = backend_status(complete(name), on(ADA))
    assert status.build == YES
    assert status.run == Capability(False, "cuda-bindings is not installed", f'pip install "resnet-deploy[{extra}]"')


def test_module_of_a_package_that_is_not_there(monkeypatch):
    monkeypatch.delitem(sys.modules, "cuda.bindings", raising=False)
    monkeypatch.setitem(sys.modules, "cuda", None)
    status = backend_status(find_backend("tensorrt-rtx"), on(ADA))
    assert "cuda-bindings" in status.run.reason


def test_backend_without_builder_or_runner_says_not_yet(install):
    install(*MODULES)
    backend = dataclasses.replace(find_backend("openvino"), builder="", runner="")
    status = backend_status(backend, on(NO_GPU))
    assert status.build.reason == "this version of resnet-deploy does not build with openvino yet"
    assert status.run.reason == "this version of resnet-deploy does not run openvino engines yet"


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"])
def test_rtx_runs_on(install, capability):
    install(*MODULES)
    gpu = GpuProbe((Gpu("some GPU", capability, 1 << 30),), "13.0")
    assert backend_status(complete("tensorrt-rtx"), on(gpu)).run == YES


@pytest.mark.parametrize("capability", ["7.0", "8.7", "9.0", "10.0", "10.3", "13.7"])
def test_rtx_does_not_run_on(install, capability):
    install(*MODULES)
    gpu = GpuProbe((Gpu("some GPU", capability, 1 << 30),), "13.0")
    able = backend_status(complete("tensorrt-rtx"), on(gpu)).run
    assert not able.ok
    assert f"compute capability {capability}" in able.reason


def test_rtx_runs_where_one_of_two_gpus_will_do(install):
    install(*MODULES)
    assert backend_status(complete("tensorrt-rtx"), on(GpuProbe(HOPPER.gpus + ADA.gpus, "13.0"))).run == YES


def test_libraries_are_imported_only_where_asked(install):
    install(*MODULES)
    asked = []

    def import_failure(module):
        asked.append(module)
        return "importing tensorrt_rtx failed: libfoo.so: no such file" if module == "tensorrt_rtx" else ""

    status = backend_status(complete("tensorrt-rtx"), on(ADA), import_failure=import_failure)
    broken = Capability(
        False,
        "importing tensorrt_rtx failed: libfoo.so: no such file",
        'pip install --force-reinstall "resnet-deploy[rtx]"',
    )
    assert (status.build, status.run) == (broken, broken)
    assert asked == ["onnx", "onnx_ir", "onnxruntime", "tensorrt_rtx", "tensorrt_rtx"]


def test_a_folder_of_the_same_name_is_not_a_library(tmp_path, monkeypatch):
    (tmp_path / "tensorrt_lookalike").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("tensorrt_lookalike") is not None
    backend = dataclasses.replace(complete("tensorrt"), module="tensorrt_lookalike")
    assert backend_status(backend, on(ADA)).run.reason == "tensorrt-lookalike is not installed"


def test_backend_status_probes_this_machine_by_default():
    assert backend_status(find_backend("null")).run == YES


def test_probing_loads_no_heavy_library():
    code = """
import json, sys
from resnet_deploy import capabilities
from resnet_deploy.backends import BACKENDS
from resnet_deploy.capabilities import backend_status
from resnet_deploy.environment import collect
here = collect()
for backend in BACKENDS:
    backend_status(backend, here)
print(json.dumps(sorted(sys.modules)))
"""
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=paths, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert "resnet_deploy.environment" in loaded
    assert not loaded & {*MODULES, "numpy", "pycuda", "plotly", "PIL", "rich", "click"}
