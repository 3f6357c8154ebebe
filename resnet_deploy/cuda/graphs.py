"""CUDA graphs: work that was put into a stream once and is launched as one piece ever after."""

import contextlib
from typing import TYPE_CHECKING

from resnet_deploy.collector import no_garbage_collection
from resnet_deploy.cuda.runtime import Cuda, Owned
from resnet_deploy.cuda.streams import Stream
from resnet_deploy.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable


class Graph(Owned):
    """A captured piece of work, ready to launch; made by ``capture``."""

    def __init__(self, cuda: Cuda, executable: object) -> None:
        self._executable = executable
        self._launch = cuda.bindings.cudaGraphLaunch
        super().__init__(cuda, _destroy, executable)

    def launch(self, stream: Stream) -> None:
        """Put the work into ``stream``, which need not be the one it was captured from."""
        self._cuda.check("cudaGraphLaunch", self._launch(self._executable, stream.native))


def capture(cuda: Cuda, stream: Stream, enqueue: "Callable[[], None]") -> Graph:
    """Capture what ``enqueue`` puts into ``stream``, which is none of the default streams; nothing is run.

    Other threads go on as before. What this thread may not do meanwhile, CUDA refuses, so that nothing is left out of a
    graph unnoticed.

    Raises:
        DeviceError: If something in ``enqueue`` cannot be captured; the stream is then as before.
    """
    mode = cuda.bindings.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    cuda.call("cudaStreamBeginCapture", stream.native, mode)
    try:
        with no_garbage_collection():
            enqueue()
    except BaseException:
        _abandon(cuda, stream)
        raise
    template = cuda.call("cudaStreamEndCapture", stream.native)
    try:
        return Graph(cuda, cuda.call("cudaGraphInstantiate", template, 0))
    finally:
        cuda.call("cudaGraphDestroy", template)


def _abandon(cuda: Cuda, stream: Stream) -> None:
    """Take the stream out of capture; that it was invalidated is known already."""
    with contextlib.suppress(DeviceError):
        template = cuda.call("cudaStreamEndCapture", stream.native)
        if template is not None and int(template):
            cuda.call("cudaGraphDestroy", template)


def _destroy(cuda: Cuda, executable: object) -> None:
    cuda.call("cudaGraphExecDestroy", executable)
