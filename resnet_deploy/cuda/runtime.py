"""Calls into the CUDA runtime, every status checked, and the life of what they make."""

import importlib
import warnings
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from resnet_deploy.errors import BackendError, DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_OUT_OF_MEMORY: Final = 2
_UNLOADING: Final = "cudaErrorCudartUnloading"  # the process ends, and takes with it whatever is left
_NO_DRIVER: Final = (34, 35, 100, 101)
# After these the context is lost: every later call answers with the same status.
_STICKY: Final = (214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719)


class Cuda:
    """The CUDA runtime, used on one device.

    Args:
        device: CUDA's number of the device.
        bindings: What has the functions of ``cuda.bindings.runtime``; by default that module itself.

    Raises:
        BackendError: If the bindings are not installed.
        DeviceError: If there is no such device, or no driver for it.
    """

    def __init__(self, device: int = 0, bindings: Any = None) -> None:
        self.bindings = _load_bindings() if bindings is None else bindings
        self.device = device
        self.device_count: int = self.call("cudaGetDeviceCount")
        if not 0 <= device < self.device_count:
            raise DeviceError(f"no CUDA device {device} of {self.device_count}", hint="run resnet-deploy doctor")
        self._get_device = self.bindings.cudaGetDevice

    def call(self, name: str, *arguments: object) -> Any:
        """Make the call ``name``; return the value it gives beside its status, or None.

        Raises:
            DeviceError: If the status is not success.
        """
        result = self.check(name, getattr(self.bindings, name)(*arguments))
        return result[1] if len(result) > 1 else None

    def check(self, name: str, result: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return ``result``, what the call ``name`` answered, unless its status is an error.

        Raises:
            DeviceError: Naming the call, the error and what the runtime says of it.
        """
        if result[0]:
            raise self._error(name, result[0])
        return result

    @contextmanager
    def current(self) -> "Iterator[None]":
        """Make this the calling thread's device, and give it its own back afterwards."""
        if self.is_current():
            yield
            return
        before = self.call("cudaGetDevice")
        self.call("cudaSetDevice", self.device)
        try:
            yield
        finally:
            self.call("cudaSetDevice", before)

    def is_current(self) -> bool:
        """Whether this is the calling thread's device already, or the only one there is."""
        return self.device_count == 1 or bool(self.check("cudaGetDevice", self._get_device())[1] == self.device)

    def device_of(self, pointer: int) -> int:
        """Find the device whose memory ``pointer`` points to; -1 for memory of the host."""
        attributes = self.call("cudaPointerGetAttributes", pointer)
        kinds = self.bindings.cudaMemoryType
        on_device = attributes.type in (kinds.cudaMemoryTypeDevice, kinds.cudaMemoryTypeManaged)
        return int(attributes.device) if on_device else -1

    def _error(self, name: str, status: Any) -> DeviceError:
        error = self._text("cudaGetErrorName", status) or f"status {int(status)}"
        # An error that is not sticky stays behind as the thread's last one, for an innocent library to find.
        self.bindings.cudaGetLastError()
        meaning = self._text("cudaGetErrorString", status)
        return DeviceError(f"{name} failed: {error}, {meaning}", hint=_hint(int(status)))

    def _text(self, name: str, status: Any) -> str:
        text = getattr(self.bindings, name)(status)[1]
        return text.decode(errors="replace") if isinstance(text, bytes) else str(text or "")


class Owned:
    """Something that the CUDA runtime made and that is given back exactly once.

    By ``close``, by leaving a ``with`` block, or, where it was left open, when it is collected. A release that fails is
    a ``ResourceWarning``, never an exception: whatever else is open must be closed too.
    """

    def __init__(self, cuda: Cuda, release: "Callable[..., None]", *arguments: object) -> None:
        self._cuda = cuda
        self._release = weakref.finalize(self, _release, cuda, release, arguments)
        self._release.atexit = False  # the end of the process releases everything, in an order of its own

    @property
    def closed(self) -> bool:
        """Whether it was given back."""
        return not self._release.alive

    def close(self) -> None:
        """Give it back; harmless when repeated."""
        self._release()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _release(cuda: Cuda, release: "Callable[..., None]", arguments: tuple[object, ...]) -> None:
    try:
        with cuda.current():
            release(cuda, *arguments)
    except DeviceError as error:
        if _UNLOADING not in error.message:
            warnings.warn(f"not released: {error.message}", ResourceWarning, stacklevel=2)


def _load_bindings() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:
        raise BackendError(
            f"cuda-bindings cannot be imported: {error}", hint='install it with `pip install "resnet-deploy[gpu]"`'
        ) from error


def _hint(status: int) -> str:
    if status == _OUT_OF_MEMORY:
        return "free GPU memory (nvidia-smi shows who holds it), use fewer contexts, or build with a smaller --batch"
    if status in _STICKY:
        return "the process has lost its CUDA context: restart it; compute-sanitizer finds the faulty access"
    if status in _NO_DRIVER:
        return "resnet-deploy doctor says what is wrong with the GPU or its driver"
    return ""
