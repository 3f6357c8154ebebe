"""Streaming observation of one tensor in constant memory.

The histogram's bin width is a power of two, and the range doubles (adjacent bins are added up) whenever a value falls
outside. Dividing by a power of two is exact in binary floating point, and trunc(trunc(x) / 2) = trunc(x / 2): the final
state depends on the observed values alone, not on their order, the batch size, or how they were split over observers
that were merged afterwards.

Truncation rather than floor, because processors convert to integers by truncation, and because a product that
underflows belongs to bin 0 all the same: single precision is enough. Bin 0 has no sign and is twice as wide as others.
"""

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from resnet_deploy.quantize import counting
from resnet_deploy.quantize.counting import BINS, HALF

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXPONENTS: Final = (-60, 128)  # smallest and largest: a tensor of zeros stays at the first, float32 ends at the last


def _empty_counts() -> "NDArray[np.int64]":
    return np.zeros(BINS, np.int64)


@dataclass
class Histogram:
    """Counts of a tensor's values over (-2**exponent, 2**exponent), and their exact extremes.

    Attributes:
        exponent: The range is the smallest power of two above every magnitude seen: the larger side of the data fills
            at least half of its own.
        counts: (BINS,) int64; element HALF + i counts the values x with trunc(x / width) = i. Element 0 stays 0.
        low: Smallest value seen; infinity before the first.
        high: Largest value seen; minus infinity before the first.
    """

    exponent: int = EXPONENTS[0]
    counts: "NDArray[np.int64]" = field(default_factory=_empty_counts)
    low: float = math.inf
    high: float = -math.inf

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent) / HALF

    @property
    def total(self) -> int:
        """How many values were seen."""
        return int(self.counts.sum())

    @property
    def digest(self) -> str:
        """SHA-256 of the whole state, as lower-case hex."""
        parts = (
            np.array([self.exponent], "<i8"),
            self.counts.astype("<i8", copy=False),
            np.array([self.low, self.high], "<f8"),
        )
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()

    def update(self, values: "NDArray[np.float32]") -> None:
        """Count ``values``: any shape, float32.

        Raises:
            FloatingPointError: If a value is not finite; the state is then of no use.
        """
        flat = np.require(values.ravel(order="K"), np.float32, ("C", "A"))
        counter = counting.COUNTER
        start = 0
        while start < flat.size:
            piece = flat[start : start + counter.piece]
            counted, low, high = counter.count(piece, math.ldexp(HALF, -self.exponent), self.counts)
            if not (math.isfinite(low) and math.isfinite(high)):
                raise FloatingPointError("a value is not finite")
            # Adding zero turns -0.0 into 0.0: which of the two a minimum gives depends on their order.
            self.low, self.high = min(self.low, low + 0.0), max(self.high, high + 0.0)
            self.cover(max(-low, high))  # so that what was not counted is the next time
            start += counted

    def merge(self, other: "Histogram") -> None:
        """Add what ``other`` has seen; the same as if this observer had seen it."""
        if other.total == 0:
            return
        self._double_to(other.exponent)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        copy = Histogram(other.exponent, other.counts.copy())
        copy._double_to(self.exponent)
        self.counts += copy.counts

    def magnitudes(self) -> "NDArray[np.int64]":
        """Counts of |x|, shape (HALF,): bin i covers [i * width, (i + 1) * width)."""
        magnitudes = self.counts[HALF:].copy()
        magnitudes[1:] += self.counts[HALF - 1 : 0 : -1]
        return magnitudes

    def cover(self, magnitude: float) -> None:
        """Widen the range to hold ``magnitude``, finite and not negative; what was counted stays counted."""
        if magnitude > 0:
            # frexp: magnitude = m * 2**e with 0.5 <= m < 1, so magnitude < 2**e always.
            self._double_to(math.frexp(magnitude)[1])

    def _double_to(self, exponent: int) -> None:
        doublings = exponent - self.exponent
        if doublings <= 0:
            return
        if not self.counts.any():  # a fresh one, whose range grows the most, has nothing to add up
            doublings = 0
        # A range grown 12 times over leaves bin 0 alone, whatever follows.
        for _ in range(min(doublings, HALF.bit_length())):
            above = self.counts[HALF:].reshape(-1, 2).sum(1)
            below = self.counts[HALF:0:-1].copy()
            below[0] = 0  # counted above
            self.counts[:] = 0
            self.counts[HALF : HALF + HALF // 2] = above
            self.counts[HALF : HALF // 2 : -1] += below.reshape(-1, 2).sum(1)
        self.exponent = exponent
