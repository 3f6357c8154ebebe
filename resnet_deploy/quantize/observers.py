"""Streaming observation of one tensor in constant memory.

The histogram's bin width is a power of two, and the range doubles (adjacent bins are added up) whenever a value falls
outside. Binning by a power of two is exact in binary floating point, and floor(floor(x) / 2) = floor(x / 2): the final
state depends on the observed values alone, not on their order, the batch size, or how they were split over observers
that were merged afterwards.
"""

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS: Final = 8192  # half below zero, half above; the larger side of the data fills at least 2,048 of its 4,096
_HALF: Final = BINS // 2
_SMALLEST_EXPONENT: Final = -60  # a tensor of zeros stays here


def _empty_counts() -> "NDArray[np.int64]":
    return np.zeros(BINS, np.int64)


@dataclass
class Histogram:
    """Counts of a tensor's values over [-2**exponent, 2**exponent), and their exact extremes.

    Attributes:
        exponent: The range is the smallest power of two above every magnitude seen.
        counts: (BINS,) int64; bin i covers [(i - BINS/2) * width, (i + 1 - BINS/2) * width).
        low: Smallest value seen; infinity before the first.
        high: Largest value seen; minus infinity before the first.
    """

    exponent: int = _SMALLEST_EXPONENT
    counts: "NDArray[np.int64]" = field(default_factory=_empty_counts)
    low: float = math.inf
    high: float = -math.inf

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent) / _HALF

    @property
    def total(self) -> int:
        """How many values were seen."""
        return int(self.counts.sum())

    @property
    def digest(self) -> str:
        """SHA-256 of the whole state, as lower-case hex."""
        state = (
            np.array([self.exponent, *self.counts], "<i8").tobytes() + np.array([self.low, self.high], "<f8").tobytes()
        )
        return hashlib.sha256(state).hexdigest()

    def update(self, values: "NDArray[np.float32]") -> None:
        """Count ``values``: any shape, float32, all finite."""
        # Adding zero turns -0.0 into 0.0: which of the two a minimum gives depends on their order.
        low, high = float(values.min()) + 0.0, float(values.max()) + 0.0
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._cover(max(-low, high))
        # Scaling by a power of two is exact where nothing underflows: in double precision, a float32 never does.
        scaled = np.multiply(values.ravel(), _HALF / math.ldexp(1.0, self.exponent), dtype=np.float64)
        np.floor(scaled, out=scaled)
        self.counts += np.bincount(scaled.astype(np.int32) + _HALF, minlength=BINS)

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
        """Counts of |x|, shape (BINS/2,): bin i covers [i * width, (i + 1) * width)."""
        return self.counts[_HALF:] + self.counts[:_HALF][::-1]

    def _cover(self, magnitude: float) -> None:
        if magnitude > 0:
            # frexp: magnitude = m * 2**e with 0.5 <= m < 1, so magnitude < 2**e always.
            self._double_to(math.frexp(magnitude)[1])

    def _double_to(self, exponent: int) -> None:
        doublings = exponent - self.exponent
        if doublings <= 0:
            return
        # A range grown 13 times over leaves one bin on either side of zero, whatever follows.
        for _ in range(min(doublings, BINS.bit_length())):
            quarter = BINS // 4
            paired = self.counts.reshape(-1, 2).sum(1)
            self.counts[:] = 0
            self.counts[quarter : quarter + _HALF] = paired
        self.exponent = exponent
