"""Choosing a range from a histogram: pure functions, one per calibration method."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np

from resnet_deploy.quantize.observers import HALF, Histogram
from resnet_deploy.specs import RANGE_METHODS, CalibrationSpec, RangeMethod
from resnet_deploy.verify import sqnr_db

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_MOST_DECIBELS: Final = 100.0
_LEVELS: Final = 128  # magnitudes that symmetric INT8 can tell apart
_CANDIDATE_STEP: Final = 16  # bins between the thresholds that entropy tries: under 1 % of the range


@dataclass(frozen=True)
class Range:
    """The interval of values that the quantized grid is to cover; it contains zero."""

    low: float
    high: float

    @property
    def magnitude(self) -> float:
        """Largest magnitude inside the range."""
        return max(-self.low, self.high)


def choose_range(histogram: Histogram, method: RangeMethod, percentile: float) -> Range:
    """Choose the range of one tensor by ``method``."""
    if method == "max":
        return Range(min(histogram.low, 0.0), max(histogram.high, 0.0))
    if method == "percentile":
        return percentile_range(histogram, percentile)
    return entropy_range(histogram) if method == "entropy" else mse_range(histogram)


def choose_ranges(histogram: Histogram, spec: CalibrationSpec) -> dict[RangeMethod, Range]:
    """Choose the range of one tensor by every method, so that they can be compared."""
    return {method: choose_range(histogram, method, spec.percentile) for method in RANGE_METHODS}


def percentile_range(histogram: Histogram, percentile: float) -> Range:
    """Keep the ``percentile`` percent of values with the smallest magnitudes.

    The threshold is a bin's upper edge: above the exact percentile's value by at most one bin, which is at most 1/2048
    of the largest magnitude.
    """
    cumulative = np.cumsum(histogram.magnitudes())
    # The smallest number of values that makes up the share as it is written: 99.9 % of 1,000 is 999, where binary
    # fractions would round up to all 1,000.
    needed = math.ceil(Fraction(str(percentile)) * int(cumulative[-1]) / 100)
    bin_index = int(np.searchsorted(cumulative, needed))
    return _clip(histogram, (bin_index + 1) * histogram.width)


def entropy_range(histogram: Histogram) -> Range:
    """Minimise the Kullback-Leibler divergence between the clipped distribution and its 128-level quantization.

    Migacz, "8-bit Inference with TensorRT" (GTC 2017). Values in the first bin are left out of the distribution: exact
    zeros, half of all values after a ReLU, cost nothing at any scale and would drown the rest.
    """
    return _best_range(histogram, _divergence)


def mse_range(histogram: Histogram) -> Range:
    """Minimise the mean squared error of rounding to 127 steps on either side of zero and clipping beyond them.

    Values in the first bin count as zeros, which any scale keeps.
    """
    return _best_range(histogram, _squared_error)


def expected_sqnr_db(histogram: Histogram, chosen: Range, levels: int) -> float:
    """Power of the observed values over that of rounding them to ``levels`` steps in ``chosen`` and clipping beyond.

    Values stand for their bin's centre, those in the bin of zero for zero; capped at 100 dB.
    """
    index = np.arange(len(histogram.counts)) - HALF
    values = (index + np.sign(index) * 0.5) * histogram.width
    step = (chosen.high - chosen.low) / levels
    if step == 0:
        return _MOST_DECIBELS
    rounded = np.clip(np.rint(values / step), round(chosen.low / step), round(chosen.high / step)) * step
    signal, noise = ((histogram.counts * power).sum() for power in (values**2, (values - rounded) ** 2))
    return min(sqnr_db(float(signal), float(noise)), _MOST_DECIBELS)


def _best_range(histogram: Histogram, loss: "Callable[[NDArray[np.float64], int], float]") -> Range:
    """Try thresholds all over the range; take the one of least ``loss``: (counts of magnitudes, bins kept)."""
    counts = histogram.magnitudes().astype(np.float64)
    counts[0] = 0
    occupied = np.flatnonzero(counts)
    if len(occupied) == 0 or occupied[-1] < _LEVELS:
        return _clip(histogram, max(-histogram.low, histogram.high, 0.0))
    last = int(occupied[-1]) + 1
    candidates = [*range(_LEVELS, last, _CANDIDATE_STEP), last]
    losses = [loss(counts[:last], bins) for bins in candidates]
    return _clip(histogram, candidates[int(np.argmin(losses))] * histogram.width)


def _squared_error(counts: "NDArray[np.float64]", bins: int) -> float:
    """Sum of squared differences between the bins' centres and their values on the grid, in squared bins."""
    centres = np.arange(len(counts)) + 0.5
    step = bins / (_LEVELS - 1)
    quantized = np.minimum(np.rint(centres / step), _LEVELS - 1) * step
    return float((counts * (centres - quantized) ** 2).sum())


def _divergence(counts: "NDArray[np.float64]", bins: int) -> float:
    """KL(P || Q) where P keeps the first ``bins`` with the rest added to its last, and Q is P at 128 levels."""
    kept = counts[:bins]
    reference = kept.copy()
    reference[-1] += counts[bins:].sum()
    occupied = kept > 0
    # Each level spreads its count evenly over the occupied bins that it stands for.
    level = np.arange(bins) * _LEVELS // bins
    sums = np.bincount(level, weights=kept, minlength=_LEVELS)
    sizes = np.bincount(level, weights=occupied, minlength=_LEVELS)
    quantized = np.where(occupied, (sums / np.maximum(sizes, 1))[level], 0.0)
    # P may have its clipped mass in a bin where Q has none; Q gets a vanishing share there, for ln(1/0) is infinite.
    support = reference > 0
    p = reference[support] / reference.sum()
    q = np.maximum(quantized[support] / max(quantized.sum(), 1e-30), 1e-12)
    return float((p * np.log(p / q)).sum())


def _clip(histogram: Histogram, threshold: float) -> Range:
    return Range(min(0.0, max(histogram.low, -threshold)), max(0.0, min(histogram.high, threshold)))
