"""PyCUDA: GPUArrays and streams in, GPUArrays out, on the device's primary context.

PyTorch, CuPy and the engine work in the primary context; ``pycuda.autoinit`` makes another one, where their pointers
mean nothing. So::

    from resnet_deploy.integrations import pycuda

    with pycuda.primary_context(), resnet_deploy.load("engines/resnet50-fp16-tensorrt") as engine:
        logits = pycuda.run(engine, gpuarray.to_gpu(images), stream)
"""

import importlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from resnet_deploy.errors import BackendError, FeedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resnet_deploy.device_arrays import DeviceArray
    from resnet_deploy.engine import Engine


@contextmanager
def primary_context(device: int = 0) -> "Iterator[Any]":
    """Make the device's primary context the one that PyCUDA works in; yield it.

    Raises:
        BackendError: If PyCUDA is not installed.
    """
    driver = _import("pycuda.driver")
    driver.init()
    context = driver.Device(device).retain_primary_context()
    context.push()
    try:
        yield context
    finally:
        driver.Context.pop()


def run(engine: "Engine", images: Any, stream: Any = None, out: Any = None) -> Any:
    """Run one batch that is a GPUArray, in the order of a PyCUDA stream; nothing is copied, no host waits.

    Args:
        engine: One that runs on the GPU.
        images: GPUArray, (N, *contract shape), C-contiguous. Its contents must be ready on ``stream``, for GPUArrays do
            not tell where theirs are; it must live until ``stream`` has passed this call.
        stream: ``pycuda.driver.Stream``; None is the default stream.
        out: GPUArray that the logits are written to; None takes fresh memory.

    Returns:
        GPUArray with the logits, (N, classes) float32, ready on ``stream``: ``out``, or memory given back when nothing
        holds the array.

    Raises:
        BackendError: If PyCUDA or cuda-bindings are not installed.
        FeedError: If an array does not fit, or another context than the primary one is current.
        DeviceError: As the engine's.
    """
    require_primary_context()
    logits = engine(images, stream=stream, out=out)
    return out if out is not None else to_gpuarray(logits)


def to_gpuarray(array: "DeviceArray") -> Any:
    """See a ``DeviceArray`` as a GPUArray, which keeps its memory."""
    holder = _import("pycuda.driver").PointerHolderBase

    class Memory(holder):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.array = array

        def get_pointer(self) -> int:
            return self.array.pointer

    return _import("pycuda.gpuarray").GPUArray(array.shape, array.dtype, gpudata=Memory())


def require_primary_context(device: int = 0) -> None:
    """Hold the calling thread's context against the device's primary one.

    Raises:
        BackendError: If cuda-bindings are not installed.
        FeedError: If it is another one, or none.
    """
    driver = _import("cuda.bindings.driver")
    _, current = driver.cuCtxGetCurrent()
    _, primary = driver.cuDevicePrimaryCtxRetain(device)
    driver.cuDevicePrimaryCtxRelease(device)  # the engine holds it
    if int(current or 0) != int(primary or 0):
        raise FeedError(
            "the current CUDA context is not the device's primary one, where the engine works",
            hint="work in `with resnet_deploy.integrations.pycuda.primary_context():`, not with pycuda.autoinit",
        )


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        hint = 'install it with `pip install "resnet-deploy[gpu,pycuda]"`'
        raise BackendError(f"{name} cannot be imported: {error}", hint=hint) from error
