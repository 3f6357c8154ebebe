"""Streams, our own and other libraries', and the events that order them."""

from typing import Any, Final

from resnet_deploy.cuda.runtime import Cuda, Owned
from resnet_deploy.errors import FeedError

_PER_THREAD: Final = 2  # the thread's own default stream
LEGACY: Final = 1  # another name of stream 0; interchange protocols use it, for there 0 is ambiguous
_ATTRIBUTES: Final = ("cuda_stream", "ptr", "handle")  # of torch, CuPy and PyCUDA


class Stream:
    """A queue of work on the device.

    Make one with ``Stream.create``, or take another library's with ``Stream.borrow``, which never destroys it.

    Attributes:
        handle: The ``cudaStream_t`` as a number; 0 is the legacy default stream.
        native: The same, as the bindings take it fastest.
        owner: What destroys it, kept alive: the object it was borrowed from, or our own; None for a bare number.
    """

    def __init__(self, cuda: Cuda, native: Any, *, owner: object = None) -> None:
        self.cuda = cuda
        self.handle = int(native)
        self.native = native
        self.owner = owner
        self._wait = cuda.bindings.cudaStreamWaitEvent

    @classmethod
    def create(cls, cuda: Cuda) -> "Stream":
        """Make a stream that does not wait for the legacy default stream, nor it for this one."""
        with cuda.current():
            native = cuda.call("cudaStreamCreateWithFlags", cuda.bindings.cudaStreamNonBlocking)
        return cls(cuda, native, owner=Owned(cuda, _destroy_stream, native))

    @classmethod
    def borrow(cls, cuda: Cuda, stream: object) -> "Stream":
        """Take a stream as another library has it.

        Args:
            cuda: Where it is used.
            stream: A torch, CuPy or PyCUDA stream, an object with ``__cuda_stream__``, a ``cudaStream_t`` as a number,
                or None for the legacy default stream.

        Raises:
            FeedError: If it is none of these, or belongs to another device.
        """
        if isinstance(stream, Stream):
            return stream
        if stream is None or isinstance(stream, int):
            return cls(cuda, cuda.bindings.cudaStream_t(_checked(stream or 0)))
        device = getattr(stream, "device_index", cuda.device)
        if device != cuda.device:
            raise FeedError(
                f"the stream is on CUDA device {device}, the engine on {cuda.device}",
                hint="give a stream of the engine's device",
            )
        return cls(cuda, cuda.bindings.cudaStream_t(_handle_of(stream)), owner=stream)

    @property
    def lasts(self) -> bool:
        """Whether the handle cannot come to mean another stream while this object lives; of bare numbers, few do so."""
        return self.owner is not None or self.handle <= LEGACY

    @property
    def is_capturing(self) -> bool:
        """Whether somebody captures it into a graph; the default streams cannot be."""
        if self.handle <= _PER_THREAD:
            return False
        return bool(self.cuda.check("cudaStreamIsCapturing", self.cuda.bindings.cudaStreamIsCapturing(self.native))[1])

    def synchronize(self) -> None:
        """Wait until all work in the stream is done."""
        self.cuda.call("cudaStreamSynchronize", self.native)

    def wait(self, event: "Event") -> None:
        """Let later work in this stream wait for ``event``; the host does not wait."""
        self.cuda.check("cudaStreamWaitEvent", self._wait(self.native, event.native, 0))

    def wait_for(self, other: "Stream") -> None:
        """Let later work in this stream wait for all that ``other`` holds now; the host does not wait."""
        if self.is_same(other):
            return
        with self.cuda.current():  # the default streams' handles mean those of the thread's device
            event = self.cuda.call("cudaEventCreateWithFlags", self.cuda.bindings.cudaEventDisableTiming)
            try:
                self.cuda.call("cudaEventRecord", event, other.native)
                self.cuda.call("cudaStreamWaitEvent", self.native, event, 0)
            finally:
                self.cuda.call("cudaEventDestroy", event)  # CUDA keeps it until it was reached

    def is_same(self, other: "Stream") -> bool:
        """Whether both are the same queue."""
        return (self.handle or LEGACY) == (other.handle or LEGACY)

    def close(self) -> None:
        """Destroy it, if it is our own; harmless when repeated. Work in it is still done."""
        if isinstance(self.owner, Owned):
            self.owner.close()

    def __cuda_stream__(self) -> tuple[int, int]:
        """Version of the protocol and handle, for other libraries."""
        return (0, self.handle)

    def __repr__(self) -> str:
        return f"Stream({self.handle:#x})"


class Event(Owned):
    """A mark in a stream that other streams and the host can wait for.

    Args:
        cuda: Where it is used.
        timing: Whether ``seconds_since`` is wanted; marks without it are cheaper.
    """

    def __init__(self, cuda: Cuda, *, timing: bool = False) -> None:
        flags = 0 if timing else cuda.bindings.cudaEventDisableTiming
        with cuda.current():
            self.native = cuda.call("cudaEventCreateWithFlags", flags)
        self._record = cuda.bindings.cudaEventRecord
        super().__init__(cuda, _destroy_event, self.native)

    def record(self, stream: Stream) -> None:
        """Mark the end of what ``stream`` holds now."""
        self._cuda.check("cudaEventRecord", self._record(self.native, stream.native))

    def synchronize(self) -> None:
        """Wait until the mark is reached; at once if none was ever set."""
        self._cuda.call("cudaEventSynchronize", self.native)

    def seconds_since(self, earlier: "Event") -> float:
        """Time between two marks that were both reached."""
        return float(self._cuda.call("cudaEventElapsedTime", earlier.native, self.native)) * 1e-3


def _handle_of(stream: object) -> int:
    """Find the number of another library's stream."""
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return _checked(int((protocol() if callable(protocol) else protocol)[1]))
    for name in _ATTRIBUTES:
        handle = getattr(stream, name, None)
        if handle is not None:
            return _checked(int(handle))
    kind = type(stream)
    raise FeedError(
        f"{kind.__module__}.{kind.__qualname__} is no CUDA stream",
        hint="give a torch, CuPy or PyCUDA stream, or its handle as a number",
    )


def _checked(handle: int) -> int:
    if handle < 0:
        raise FeedError(f"{handle} is no CUDA stream", hint="give its handle as a number, or None for the default")
    return handle


def _destroy_stream(cuda: Cuda, native: object) -> None:
    cuda.call("cudaStreamDestroy", native)


def _destroy_event(cuda: Cuda, native: object) -> None:
    cuda.call("cudaEventDestroy", native)
