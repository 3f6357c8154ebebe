"""Memory of the device, pinned memory of the host, and copies between them."""

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_deploy.cuda.runtime import Cuda, Owned
from resnet_deploy.cuda.streams import Stream
from resnet_deploy.errors import DeviceError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class DeviceBuffer(Owned):
    """Memory of the device, for as long as whoever made it needs it.

    Attributes:
        pointer: Its address, aligned to 256 bytes.
        nbytes: Its size in bytes.
    """

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        with cuda.current():
            self.pointer: int = int(cuda.call("cudaMalloc", nbytes))
        self.nbytes = nbytes
        super().__init__(cuda, _free_device, self.pointer)


class StreamBuffer(Owned):
    """Memory of the device that is taken and given back in the order of a stream, without waiting.

    For results, which an application lets go of at any time, work on them still pending.

    Attributes:
        pointer: Its address.
        nbytes: Its size in bytes.
    """

    def __init__(self, stream: Stream, nbytes: int) -> None:
        cuda = stream.cuda
        with cuda.current():  # the default stream's device is the thread's
            self.pointer: int = int(cuda.call("cudaMallocAsync", nbytes, stream.native))
        self.nbytes = nbytes
        self._readers: dict[int, Stream] = {}
        super().__init__(cuda, _free_in_order, self.pointer, stream, self._readers)

    def used_on(self, stream: Stream) -> None:
        """Keep the memory, once let go of, until what another stream then holds is done; it must exist until then."""
        self._readers[stream.handle] = stream


class PinnedBuffer(Owned):
    """Pinned memory of the host, which the device reads and writes while the host does something else.

    Attributes:
        pointer: Its address.
        nbytes: Its size in bytes.
    """

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        with cuda.current():
            self.pointer: int = int(cuda.call("cudaHostAlloc", nbytes, cuda.bindings.cudaHostAllocDefault))
        self.nbytes = nbytes
        super().__init__(cuda, _free_pinned, self.pointer)

    def view(self, shape: tuple[int, ...], dtype: str) -> "NDArray[Any]":
        """See the memory as an array; it must not be used after ``close``."""
        raw = (ctypes.c_ubyte * self.nbytes).from_address(self.pointer)
        return np.ndarray(shape, dtype, buffer=memoryview(raw))


def upload(cuda: Cuda, target: int, source: int, nbytes: int, stream: Stream) -> None:
    """Copy from the host to the device, in the order of ``stream``; ``source`` must stay as it is until then."""
    kind = cuda.bindings.cudaMemcpyKind.cudaMemcpyHostToDevice
    cuda.check("cudaMemcpyAsync", cuda.bindings.cudaMemcpyAsync(target, source, nbytes, kind, stream.native))


def download(cuda: Cuda, target: int, source: int, nbytes: int, stream: Stream) -> None:
    """Copy from the device to the host, in the order of ``stream``; ``target`` holds it once the stream is done."""
    kind = cuda.bindings.cudaMemcpyKind.cudaMemcpyDeviceToHost
    cuda.check("cudaMemcpyAsync", cuda.bindings.cudaMemcpyAsync(target, source, nbytes, kind, stream.native))


def _free_device(cuda: Cuda, pointer: int) -> None:
    cuda.call("cudaFree", pointer)


def _free_pinned(cuda: Cuda, pointer: int) -> None:
    cuda.call("cudaFreeHost", pointer)


def _free_in_order(cuda: Cuda, pointer: int, stream: Stream, readers: dict[int, Stream]) -> None:
    try:
        for reader in readers.values():
            stream.wait_for(reader)
    except DeviceError:  # a reader's stream is gone: what it held is done when everything is
        cuda.call("cudaDeviceSynchronize")
    cuda.call("cudaFreeAsync", pointer, stream.native)
