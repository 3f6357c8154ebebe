"""The memory of batches, and the requests that lie in it."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from concurrent.futures import Future

    from resnet_deploy.protocols import Array, TensorSpec


@dataclass(eq=False, slots=True)
class Request:
    """What is to be answered.

    Attributes:
        future: What the caller holds.
        rows: Where its images lie in its tray.
        alone: Whether it is one image, answered without an axis of batches.
        deadline: When it is too late to start it, by the monotonic clock; infinite for never.
        arrived: When it was accepted.
        end: How many images were accepted up to and including it, of all requests ever.
    """

    future: "Future[Array]"
    rows: slice
    alone: bool
    deadline: float
    arrived: float = 0.0
    end: int = 0


class Tray:
    """The memory of one batch, and the requests whose images lie in it, first come first."""

    def __init__(self, size: int, images: "TensorSpec", logits: "TensorSpec") -> None:
        self.images: Array = np.empty((size, *images.shape), images.dtype)
        self.logits: Array = np.empty((size, *logits.shape), logits.dtype)
        self.requests: list[Request] = []
        self.first_deadline = math.inf
        self._bytes = self.images.data.cast("B")
        self._row_bytes = self.images[0].nbytes

    @property
    def used(self) -> int:
        """How many of its rows are taken."""
        return int(self.requests[-1].rows.stop) if self.requests else 0

    def stage(self, start: int, rows: "Array") -> None:
        """Copy images, C-contiguous, to the row ``start`` and after.

        As bytes, for NumPy lets go of the interpreter while it copies: others then wait for the lock that this is
        done under, and this one for the interpreter (64 callers, 150 kB each: a fifth of a request's processor time).
        """
        first = start * self._row_bytes
        self._bytes[first : first + rows.nbytes] = rows.data.cast("B")

    def close_ranks(self, requests: list[Request]) -> int:
        """Move the images of ``requests``, some of the tray's, together; say how many there are."""
        used = 0
        for request in requests:
            rows = slice(used, used + request.rows.stop - request.rows.start)
            if rows != request.rows:
                self.images[rows] = self.images[request.rows]  # downwards and in order: over rows of no further use
                request.rows = rows
            used = rows.stop
        return used

    def clear(self) -> None:
        """Forget its requests."""
        self.requests.clear()
        self.first_deadline = math.inf
