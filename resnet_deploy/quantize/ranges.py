"""Choosing a range from a histogram: pure functions, one per calibration method."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np

from resnet_deploy.quantize.counting import HALF
from resnet_deploy.quantize.observers import Histogram
from resnet_deploy.specs import RANGE_METHODS, CalibrationSpec, RangeMethod
from resnet_deploy.verify import sqnr_db

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_MOST_DECIBELS: Final = 100.0
_LEVELS: Final = 128  # magnitudes that symmetric INT8 can tell apart
_VANISHING: Final = 1e-12  # share of a distribution
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
    return _best_range(histogram, _divergences)


def mse_range(histogram: Histogram) -> Range:
    """Minimise the mean squared error of rounding to 127 steps on either side of zero and clipping beyond them.

    Values in the first bin count as zeros, which any scale keeps.
    """
    return _best_range(histogram, _squared_errors)


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


def _best_range(
    histogram: Histogram, losses: "Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]]"
) -> Range:
    """Try thresholds all over the range; take the one of least loss, given counts of magnitudes and bins to keep."""
    counts = histogram.magnitudes().astype(np.float64)
    counts[0] = 0
    occupied = np.flatnonzero(counts)
    if len(occupied) == 0 or occupied[-1] < _LEVELS:
        return _clip(histogram, max(-histogram.low, histogram.high, 0.0))
    last = int(occupied[-1]) + 1
    candidates = np.array([*range(_LEVELS, last, _CANDIDATE_STEP), last])
    best = int(candidates[np.argmin(losses(counts[:last], candidates))])
    return _clip(histogram, best * histogram.width)


def _squared_errors(counts: "NDArray[np.float64]", candidates: "NDArray[np.int64]") -> "NDArray[np.float64]":
    """Sums of squared differences between the bins' centres c and their values q on the grid, in squared bins.

    q is the same in all bins of a level, whose sum is a difference of running sums, for all candidates at once:

        sum of n (c - q)^2 = sum of n c^2 - sum over levels of q (2 sum of n c - q sum of n)
    """
    centres = np.arange(len(counts)) + 0.5
    steps = candidates[:, None] / (_LEVELS - 1)
    levels = np.arange(_LEVELS)
    begins = np.clip(np.ceil((levels - 0.5) * steps - 0.5), 0, len(counts)).astype(np.int64)  # from q - step / 2 on
    edges = np.append(begins, np.full_like(candidates, len(counts))[:, None], axis=1)
    counted, summed = (np.diff(_running_sum(values)[edges]) for values in (counts, counts * centres))
    quantized = levels * steps
    saved = (quantized * (2 * summed - quantized * counted)).sum(1)
    errors: NDArray[np.float64] = (counts * centres**2).sum() - saved
    return errors


def _divergences(counts: "NDArray[np.float64]", candidates: "NDArray[np.int64]") -> "NDArray[np.float64]":
    """KL(P || Q) where P keeps the first bins with the rest added to its last, and Q is P at 128 levels.

    Each level spreads its count evenly over the occupied bins that it stands for, so that Q is the same in all of them:

        sum of p ln(p / q) = sum over bins of p ln p - sum over levels of (sum of p) ln q

    Both are differences of running sums, for all candidates at once.
    """
    total = counts.sum()
    edges = -(-np.arange(_LEVELS + 1) * candidates[:, None] // _LEVELS)  # where each level begins: rounded up
    counted, occupied, weighted = (_running_sum(values) for values in (counts, counts > 0, _times_log(counts)))
    sums, sizes = (np.diff(running[edges]) for running in (counted, occupied))
    kept, last = counted[candidates], counts[candidates - 1]
    clipped = total - kept
    # P may have its clipped mass in a bin where Q has none; Q gets a vanishing share there, for ln(1/0) is infinite.
    q = np.maximum(sums / np.maximum(sizes, 1) / np.maximum(kept, 1)[:, None], _VANISHING)
    q_last = np.where(last > 0, q[:, -1], _VANISHING)
    entropies = weighted[candidates] - _times_log(last) + _times_log(last + clipped)
    crossed = (sums * np.log(q)).sum(1) + clipped * np.log(q_last)
    divergences: NDArray[np.float64] = (entropies - crossed) / total - np.log(total)
    return divergences


def _running_sum(values: "NDArray[np.generic]") -> "NDArray[np.float64]":
    """Sums of the first 0, 1, 2, ... values."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _times_log(values: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Values times their logarithm; 0 for 0."""
    products: NDArray[np.float64] = values * np.log(np.maximum(values, 1.0))  # counts are whole numbers
    return products


def _clip(histogram: Histogram, threshold: float) -> Range:
    return Range(min(0.0, max(histogram.low, -threshold)), max(0.0, min(histogram.high, threshold)))
