"""Which backends can build and run here; for each that cannot, the reason and what would help.

Libraries are looked for and not imported, unless asked for: their absence must be told in a moment.
"""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from resnet_deploy.backends import Backend
from resnet_deploy.driver import GpuProbe
from resnet_deploy.environment import Environment, collect, installed_version
from resnet_deploy.specs import Precision
from resnet_deploy.trt_options import ARCHITECTURES, RTX_COMPUTE_CAPABILITIES

Importer = Callable[[str], str]

# Compute capabilities that a precision cannot be compiled for: the compiler of TensorRT-RTX 1.7.1 refuses these, and
# takes the others. Turing and Ampere lack the types; of FP32, Turing lacks the matrix multiplication of the classifier.
RTX_WITHOUT: Final[Mapping[Precision, tuple[str, ...]]] = {
    "fp32": ("7.5",),
    "bf16": ("7.5",),
    "fp8": ("7.5", "8.0", "8.6"),
}


class Capability(msgspec.Struct, frozen=True):
    """Whether something can be done here; if not, why, and the command or step that helps (empty if none does)."""

    ok: bool
    reason: str = ""
    fix: str = ""


class BackendStatus(msgspec.Struct, frozen=True):
    """What the backend of that name can do here."""

    backend: str
    build: Capability
    run: Capability


def backend_status(
    backend: Backend, environment: Environment | None = None, *, import_failure: Importer | None = None
) -> BackendStatus:
    """Say whether ``backend`` can build and run in ``environment``, by default this machine, probed now.

    Libraries are only looked for, not imported, unless ``import_failure`` is given: it is handed each module found and
    returns why that cannot be imported, or an empty string.
    """
    gpu = (environment or collect()).gpu
    try_import = import_failure or (lambda module: "")
    return BackendStatus(backend.name, _can_build(backend, gpu, try_import), _can_run(backend, gpu, try_import))


def _can_build(backend: Backend, gpu: GpuProbe, try_import: Importer) -> Capability:
    """Say whether engines can be built: builder, libraries, and the device if the builder needs it."""
    if not backend.builder:
        nothing = {"torch": "PyTorch runs the model as it is", "null": "this backend only measures the harness"}
        if backend.name in nothing:
            return Capability(False, f"nothing to build: {nothing[backend.name]}")
        return Capability(False, f"this version of resnet-deploy does not build with {backend.name} yet")
    # Whatever the backend: building lowers the exported graph, and ONNX Runtime calibrates and checks it.
    extras = {"onnx": "export", "onnx_ir": "export", "onnxruntime": "cpu", backend.module: backend.extra}
    libraries = have_modules(extras, try_import)
    return _has_device(backend, gpu) if libraries.ok and backend.builds_on_device else libraries


def _can_run(backend: Backend, gpu: GpuProbe, try_import: Importer) -> Capability:
    """Say whether engines can be run: runner, library and device."""
    if not backend.runner:
        return Capability(False, f"this version of resnet-deploy does not run {backend.name} engines yet")
    libraries = have_modules({backend.module: backend.extra, backend.runtime_module: backend.extra}, try_import)
    return _has_device(backend, gpu) if libraries.ok else libraries


def have_modules(extras: Mapping[str, str], try_import: Importer = lambda module: "") -> Capability:
    """Say whether the modules, given with the extras that install them, are here and can be imported."""
    missing = [module for module in extras if module and not _is_installed(module)]
    if missing:
        *names, last = (module.replace("_", "-").replace(".", "-") for module in missing)
        listed = f"{', '.join(names)} and {last}" if names else last
        wanted = ",".join(dict.fromkeys(extras[module] for module in missing))
        verb = "is" if len(missing) == 1 else "are"
        return Capability(False, f"{listed} {verb} not installed", f'pip install "resnet-deploy[{wanted}]"')
    for module in filter(None, extras):
        if reason := try_import(module):
            return Capability(False, reason, f'pip install --force-reinstall "resnet-deploy[{extras[module]}]"')
    return Capability(True)


def _is_installed(module: str) -> bool:
    """Look for a module without importing it; a bare folder of that name on the path is not it."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # the package it would be in
        return False
    return spec is not None and not (spec.origin is None and spec.submodule_search_locations is not None)


def _has_device(backend: Backend, gpu: GpuProbe) -> Capability:
    """Say whether the device that the backend runs on is here."""
    if backend.device in ("any", "cpu"):
        return Capability(True)
    if not gpu.gpus:
        fix = "use a machine with an NVIDIA GPU and its driver; in a container: docker run --gpus all"
        return Capability(False, f"no NVIDIA GPU: {gpu.reason}", fix)
    if backend.provider and backend.module == "onnxruntime" and not installed_version("onnxruntime-gpu"):
        fix = 'pip uninstall onnxruntime && pip install "resnet-deploy[gpu]"'
        return Capability(False, "the onnxruntime that is installed is its package for CPUs", fix)
    found = dict.fromkeys(one.compute_capability for one in gpu.gpus)
    if backend.device == "nvidia" or any(one in RTX_COMPUTE_CAPABILITIES for one in found):
        return Capability(True)
    named = " or ".join(f"{one} ({ARCHITECTURES[one]})" if one in ARCHITECTURES else one for one in found)
    return Capability(False, f"TensorRT-RTX does not support compute capability {named}", "use --backend tensorrt")
