"""Arrays in the memory of a GPU, from other libraries and for them, without a copy."""

import functools
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from resnet_deploy import dlpack
from resnet_deploy.cuda.memory import StreamBuffer, download
from resnet_deploy.cuda.streams import LEGACY, Stream
from resnet_deploy.errors import FeedError

if TYPE_CHECKING:
    from resnet_deploy.cuda.runtime import Cuda
    from resnet_deploy.protocols import Array

_ON_DEVICE: Final = (dlpack.CUDA, dlpack.CUDA_MANAGED)
_NO_ORDER: Final = -1  # DLPack: the consumer sees to the order itself


class SupportsCuda(Protocol):
    """An array that other libraries can read on the GPU: of PyTorch, CuPy, Numba or PyCUDA, or a ``DeviceArray``."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Pointer, shape and type; see Numba's documentation."""
        ...


@dataclass(eq=False, repr=False)
class DeviceArray:
    """A C-contiguous array in the memory of a GPU.

    PyTorch, CuPy, JAX and Numba take it through DLPack or the CUDA array interface (version 3), and are told which
    stream its contents are ready on. Whoever holds it, or something made from it, keeps the memory.

    Attributes:
        cuda: The device it is on.
        pointer: Address of the first element.
        shape: In elements.
        dtype: NumPy's name of the type.
        stream: Where its contents are ready; None if they are ready anywhere.
        owner: What the memory belongs to; None where the caller keeps it.
        read_only: Whether it must not be written to.
    """

    cuda: "Cuda"
    pointer: int
    shape: tuple[int, ...]
    dtype: str
    stream: Stream | None = None
    owner: object = None
    read_only: bool = False

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: str, stream: Stream) -> "DeviceArray":
        """Take memory in the order of ``stream``; it is given back in that order when nothing holds the array."""
        buffer = StreamBuffer(stream, math.prod(shape) * _type_of(dtype)[1])
        return cls(stream.cuda, buffer.pointer, shape, dtype, stream=stream, owner=buffer)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * _type_of(self.dtype)[1]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Pointer, shape, type and stream, version 3; the reader waits for the stream."""
        return {
            "data": (self.pointer, self.read_only),
            "shape": self.shape,
            "strides": None,
            "typestr": np.dtype(self.dtype).str,
            "stream": None if self.stream is None else self.stream.handle or LEGACY,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """Kind and number of the device, as DLPack counts them."""
        return (dlpack.CUDA, self.cuda.device)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Make a DLPack capsule, ready on the reader's ``stream``: None for the legacy default one, -1 for any.

        Raises:
            BufferError: If the reader asks for a copy or another device: neither is made here.
        """
        del max_version  # the first version says all there is to say
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("this array is handed over where it is, and without a copy")
        if self.read_only:
            raise BufferError("this array is read-only, which DLPack's first version cannot say")
        if stream == 0:
            raise BufferError("stream 0 is ambiguous: give 1 for the legacy default stream, 2 for the thread's own")
        if stream != _NO_ORDER:
            self.make_ready_on(Stream.borrow(self.cuda, LEGACY if stream is None else stream))
        return dlpack.give(self.pointer, self.shape, self.dtype, self.__dlpack_device__(), self)

    def make_ready_on(self, stream: Stream) -> None:
        """Let ``stream`` wait for the contents, and the memory, once let go of, for what uses it there."""
        if self.stream is not None and not stream.is_same(self.stream):
            stream.wait_for(self.stream)
            if isinstance(self.owner, StreamBuffer):
                self.owner.used_on(stream)

    def to_host(self) -> "Array":
        """Copy it to the host, (*shape), and wait until that is done."""
        host: Array = np.empty(self.shape, self.dtype)
        stream = self.stream or Stream.borrow(self.cuda, None)
        with self.cuda.current():
            download(self.cuda, host.ctypes.data, self.pointer, host.nbytes, stream)
            stream.synchronize()
        return host

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray({self.shape}, {self.dtype}, device={self.cuda.device}, pointer={self.pointer:#x})"


def is_on_device(array: object) -> bool:
    """Whether ``array`` says that it is in the memory of a GPU."""
    if isinstance(array, DeviceArray):
        return True
    asked = getattr(array, "__dlpack_device__", None)
    if asked is not None:
        with suppress(
            BufferError, RuntimeError, ValueError
        ):  # on no device that DLPack counts: ``view_on_host`` says so
            return asked()[0] in _ON_DEVICE
        return False
    return _interface_of(array) is not None


def view_of(array: Any, stream: Stream) -> DeviceArray:
    """See another library's array without copying it, its contents ready on ``stream``.

    Through DLPack where there is one, since its producers see to the order of streams and name the device; the CUDA
    array interface of PyTorch says nothing of streams. To see an array once and give the view to every call saves the
    asking, 5 to 20 µs.

    Raises:
        FeedError: If it is not on the stream's device, or not C-contiguous.
    """
    if isinstance(array, DeviceArray):
        view = array
        array.make_ready_on(stream)
    elif hasattr(array, "__dlpack__"):
        view = _from_dlpack(array, stream)
    else:
        interface = _interface_of(array)
        if interface is None:
            raise _not_on_device(array)
        view = _from_interface(interface, array, stream)
    _require_device(view, stream.cuda)
    return view


def require_apart(out: DeviceArray, images: DeviceArray) -> None:
    """Refuse an ``out`` in the memory that the images are in: it would be written to while they are read.

    Raises:
        FeedError: If the two overlap.
    """
    if out.pointer < images.pointer + images.nbytes and images.pointer < out.pointer + out.nbytes:
        raise FeedError("out overlaps with the images", hint="give an array of its own, or none")


def _interface_of(array: object) -> dict[str, Any] | None:
    try:
        interface: dict[str, Any] | None = getattr(array, "__cuda_array_interface__", None)
    except RuntimeError as error:  # such as PyTorch's for tensors that require a gradient
        raise _not_shared(error) from error
    return interface


def _from_interface(interface: dict[str, Any], array: object, stream: Stream) -> DeviceArray:
    (name, itemsize), shape = _type_of(interface["typestr"]), tuple(interface["shape"])
    _require_contiguous(shape, interface.get("strides"), itemsize)
    if interface.get("mask") is not None:
        raise FeedError("the array has a mask", hint="fill in what it hides")
    cuda = stream.cuda
    producer = interface.get("stream")
    if producer is not None:
        stream.wait_for(Stream.borrow(cuda, producer))
    pointer, read_only = interface["data"]
    return DeviceArray(cuda, int(pointer or 0), shape, name, stream=stream, owner=array, read_only=bool(read_only))


@functools.cache
def _type_of(typestr: str) -> tuple[str, int]:
    """Find a type's name and its size in bytes; of foreign byte order, the name that tells it."""
    dtype = np.dtype(typestr)
    return dtype.name if dtype.isnative else dtype.str, dtype.itemsize


def _from_dlpack(array: Any, stream: Stream) -> DeviceArray:
    cuda = stream.cuda
    kind, ordinal = array.__dlpack_device__()
    if kind not in _ON_DEVICE:
        raise _not_on_device(array)
    if ordinal != cuda.device:  # before the producer is asked to order another device's stream
        raise _on_another_device(ordinal, cuda)
    try:
        capsule = array.__dlpack__(stream=stream.handle or LEGACY)
    except (BufferError, RuntimeError) as error:
        raise _not_shared(error) from error
    found = dlpack.describe(capsule)
    _require_contiguous(found.shape, found.strides, 1)
    return DeviceArray(cuda, found.pointer, found.shape, found.dtype, stream=stream, owner=found)


def _require_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None, size: int) -> None:
    """Refuse strides that are not C order's, in units of which an element has ``size``; an axis of 1 may have any."""
    if strides is None or 0 in shape:
        return
    expected = size
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            raise FeedError(
                f"the array of shape {shape} is not contiguous: its strides are {tuple(strides)}",
                hint="make it so, such as tensor.contiguous() or cupy.ascontiguousarray",
            )
        expected *= length


def _require_device(view: DeviceArray, cuda: "Cuda") -> None:
    """Refuse memory of another device; where there is but one, there is nothing to ask."""
    if view.cuda is not cuda and view.cuda.device != cuda.device:
        raise _on_another_device(view.cuda.device, cuda)
    if cuda.device_count > 1 and view.pointer:
        ordinal = cuda.device_of(view.pointer)
        if ordinal != cuda.device:
            raise _on_another_device(ordinal, cuda)


def _not_on_device(array: object) -> FeedError:
    kind = type(array)
    return FeedError(
        f"{kind.__module__}.{kind.__qualname__} is not in the memory of a GPU",
        hint="move it there, such as tensor.cuda(), or call the engine with a NumPy array",
    )


def _not_shared(error: Exception) -> FeedError:
    reason = str(error).partition("\n")[0]
    return FeedError(f"the array's library does not share it: {reason}", hint="give a plain array, such as x.detach()")


def _on_another_device(ordinal: int, cuda: "Cuda") -> FeedError:
    where = "the host's memory" if ordinal < 0 else f"CUDA device {ordinal}"
    return FeedError(f"the array is in {where}, the engine on CUDA device {cuda.device}", hint="move it there first")
