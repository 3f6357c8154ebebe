"""Choosing the backend that `auto` stands for."""

from typing import Final

from resnet_deploy import environment
from resnet_deploy.backends import BACKENDS, find_backend
from resnet_deploy.capabilities import backend_status
from resnet_deploy.errors import BackendError

AUTO: Final = "auto"
# GPUs first. TensorRT before its RTX edition: where both run, it fuses INT8 and knows data-centre GPUs. OpenVINO has to
# be named: ONNX Runtime is the CPU's default, since calibration and simulation need it anyway.
_PREFERENCE: Final = ("tensorrt", "tensorrt-rtx", "onnxruntime")


def choose_backend(name: str) -> str:
    """Resolve ``auto`` to the first backend that can build and run here; keep any other name.

    Tried are TensorRT, TensorRT-RTX and ONNX Runtime. The choice never depends on the precision, nor changes it.

    Raises:
        BackendError: If the name is unknown, or nothing can build and run here.
    """
    if name in {backend.name for backend in BACKENDS}:
        return name
    if name != AUTO:
        known = ", ".join(backend.name for backend in BACKENDS if backend.builder)
        raise BackendError(f"unknown backend {name!r}", hint=f"choose one of: {AUTO}, {known}")
    here = environment.collect()
    for candidate in _PREFERENCE:
        status = backend_status(find_backend(candidate), here)
        if status.build.ok and status.run.ok:
            return candidate
    status = backend_status(find_backend("onnxruntime"), here)
    missing = status.build if not status.build.ok else status.run
    raise BackendError(f"no backend can build and run here: {missing.reason}", hint=missing.fix)
