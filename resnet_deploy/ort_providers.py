"""ONNX Runtime on NVIDIA GPUs: sessions on the execution provider that was asked for, and on no other.

Left to itself, ONNX Runtime moves to the CPU what a provider cannot load or lacks, and says so in its log at most.
"""

import contextlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from resnet_deploy.errors import BackendError, BuildError
from resnet_deploy.ort_session import (
    CPU_PROVIDER,
    import_onnxruntime,
    session_options,
    session_source,
    translate_refusals,
)
from resnet_deploy.specs import INPUT_NAME

if TYPE_CHECKING:
    import onnxruntime

    from resnet_deploy.specs import BatchRange

CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
TENSORRT_RTX: Final = "nv_tensorrt_rtx"  # as its plugin calls itself
_PROFILE_OPTIONS: Final = {TENSORRT: "trt_profile_{}_shapes", TENSORRT_RTX: "nv_profile_{}_shapes"}
_LIBRARIES: Final = "see `resnet-deploy doctor`; its libraries (CUDA, cuDNN, TensorRT 10) must be on the library path"
_FALLS_BACK: Final = "default CPU EP"  # what ONNX Runtime says of nodes that it may not move there
_INSTALL: Final = "the GPU package takes its place: pip uninstall onnxruntime, pip install 'resnet-deploy[gpu]'"


def open_on(
    provider: str, model: Path | bytes, options: Mapping[str, str] | None = None
) -> "onnxruntime.InferenceSession":
    """Open a session all of whose nodes run on ``provider``.

    Args:
        provider: Its name in ONNX Runtime.
        model: A file, or a serialized model.
        options: What the provider is told, in its own words.

    Raises:
        BackendError: If this ONNX Runtime lacks the provider, or would run something else in its place.
        BuildError: If it refuses the model.
    """
    ort = import_onnxruntime()
    settings, how = session_options(ort, 0), {}
    if provider == TENSORRT_RTX:
        devices = _plugin_devices(ort)
        settings.add_provider_for_devices(devices, dict(options or {}))
    elif provider in ort.get_available_providers():
        _load_libraries(ort, provider)
        how = {"providers": [(provider, dict(options or {}))]}
    else:
        raise BackendError(f"this ONNX Runtime {ort.__version__} has no {provider}", hint=_INSTALL)
    if provider != CPU_PROVIDER:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        with translate_refusals():
            session = ort.InferenceSession(session_source(model), settings, enable_fallback=0, **how)
    except BuildError as error:
        if _FALLS_BACK not in error.message:
            raise
        raise BackendError(f"{provider} does not load, or lacks a kernel for this graph", hint=_LIBRARIES) from error
    running = session.get_providers()[0]
    if running != provider:
        raise BackendError(f"{provider} was asked for, and {running} would run", hint=_LIBRARIES)
    return session


def profile_options(provider: str, batch: "BatchRange", shape: tuple[int, ...]) -> dict[str, str]:
    """Tell a provider that compiles which batch sizes to compile for; the others need not know.

    Args:
        provider: Its name in ONNX Runtime.
        batch: Sizes that the engine takes.
        shape: Of one image.
    """
    if provider not in _PROFILE_OPTIONS:
        return {}
    sizes = {"min": batch.min, "opt": batch.opt, "max": batch.max}
    return {
        _PROFILE_OPTIONS[provider].format(name): f"{INPUT_NAME}:" + "x".join(map(str, (size, *shape)))
        for name, size in sizes.items()
    }


def _load_libraries(ort: Any, provider: str) -> None:
    """Load what pip installs beside ONNX Runtime, where the linker does not look."""
    if provider in (CUDA, TENSORRT):
        ort.preload_dlls()
    if provider == TENSORRT:
        with contextlib.suppress(ImportError, OSError):  # else the system's, and if there is none, ONNX Runtime says so
            importlib.import_module("tensorrt")


def _plugin_devices(ort: Any) -> list[Any]:
    """Register the plugin of TensorRT-RTX and choose the GPU: the first, where memory is bound too.

    Raises:
        BackendError: If it is not installed, does not load, or finds no GPU, or ONNX Runtime is from before plugins.
    """
    if not hasattr(ort, "register_execution_provider_library"):
        hint = 'install a later one with `pip install "resnet-deploy[ort-rtx]"`'
        raise BackendError(f"ONNX Runtime {ort.__version__} takes no plugins, such as TensorRT-RTX's", hint=hint)
    try:
        plugin = importlib.import_module("onnxruntime_ep_nv_tensorrt_rtx")
    except (ImportError, OSError) as error:
        hint = 'install it with `pip install "resnet-deploy[ort-rtx]"`'
        raise BackendError(f"ONNX Runtime's plugin for TensorRT-RTX cannot be imported: {error}", hint=hint) from error
    name = TENSORRT_RTX
    if not any(device.ep_name == name for device in ort.get_ep_devices()):
        try:
            ort.register_execution_provider_library(name, plugin.get_library_path())
        except Exception as error:  # it has no base class of its own
            first = str(error).splitlines()[0]
            hint = "it needs the driver of an NVIDIA GPU: see `resnet-deploy doctor`"
            raise BackendError(f"ONNX Runtime's plugin for TensorRT-RTX does not load: {first}", hint=hint) from error
    devices = [device for device in ort.get_ep_devices() if device.ep_name == name]
    if not devices:
        hint = "use a machine with an RTX GPU, or another backend"
        raise BackendError("ONNX Runtime's plugin for TensorRT-RTX finds no GPU", hint=hint)
    return devices[:1]
