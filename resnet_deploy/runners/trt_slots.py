"""Slots: memory that one batch passes through on its way from the host to the device and back.

A runner has two: the batch in one is run while the next is loaded into the other. Nothing waits for a slot to get free,
since only the answers of the batch that was enqueued last are ever fetched, and that one's slot is not loaded into.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from resnet_deploy.cuda.memory import DeviceBuffer, PinnedBuffer, download, upload
from resnet_deploy.cuda.streams import Event, Stream

if TYPE_CHECKING:
    from resnet_deploy.cuda.runtime import Cuda
    from resnet_deploy.protocols import Array, TensorSpec


class Slot:
    """Pinned and device memory for one batch of up to ``most`` images.

    Attributes:
        size: Images in the batch that was uploaded last.
        images, logits: On the device.
        uploaded: Reached when the batch has arrived there.
    """

    def __init__(self, cuda: "Cuda", most: int, images: "TensorSpec", logits: "TensorSpec") -> None:
        self._cuda = cuda
        image_bytes, logit_bytes = (_nbytes(spec) for spec in (images, logits))
        self._image_bytes, self._logit_bytes = image_bytes, logit_bytes
        self.size = 0
        self.images, self.logits = DeviceBuffer(cuda, most * image_bytes), DeviceBuffer(cuda, most * logit_bytes)
        self._pinned_images = PinnedBuffer(cuda, most * image_bytes)
        self._pinned_logits = PinnedBuffer(cuda, most * logit_bytes)
        self._staged = self._pinned_images.view((most, *images.shape), images.dtype)
        self._answers = self._pinned_logits.view((most, *logits.shape), logits.dtype)
        self.uploaded = Event(cuda)

    def upload(self, feed: "Array", stream: Stream) -> None:
        """Copy a batch to pinned memory at once, and from there to the device in the order of ``stream``."""
        self.stage(feed)
        self.send_images(stream)

    def stage(self, feed: "Array") -> None:
        """Copy a batch to pinned memory."""
        self.size = len(feed)
        np.copyto(self._staged[: self.size], feed)

    def send_images(self, stream: Stream) -> None:
        """Copy the staged batch to the device in the order of ``stream``."""
        upload(self._cuda, self.images.pointer, self._pinned_images.pointer, self.size * self._image_bytes, stream)
        self.uploaded.record(stream)

    def download(self, stream: Stream) -> "Array":
        """Copy the logits to the host in the order of ``stream``, wait, and return them in fresh memory."""
        self.send_logits(stream)
        stream.synchronize()
        return self._answers[: self.size].copy()

    def send_logits(self, stream: Stream) -> None:
        """Copy the logits to pinned memory in the order of ``stream``."""
        nbytes = self.size * self._logit_bytes
        download(self._cuda, self._pinned_logits.pointer, self.logits.pointer, nbytes, stream)

    def close(self) -> None:
        """Release everything; nothing may be running."""
        del self._staged, self._answers
        for resource in (
            self.images,
            self.logits,
            self._pinned_images,
            self._pinned_logits,
            self.uploaded,
        ):
            resource.close()


def _nbytes(spec: "TensorSpec") -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
