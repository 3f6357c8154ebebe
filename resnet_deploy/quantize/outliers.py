"""Which tensors will suffer from INT8: weights, told from themselves, and activations, told from what was observed.

A scale covers the largest magnitude it is shared by. One large channel under a scale per tensor, one large weight in
its channel, or a few rare activations make the grid coarse for all the others. Nothing is built or run to tell.
"""

import math
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from resnet_deploy.quantize.counting import HALF
from resnet_deploy.quantize.ranges import choose_ranges, expected_sqnr_db
from resnet_deploy.specs import CalibrationSpec, RangeMethod
from resnet_deploy.verify import sqnr_db

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resnet_deploy.quantize.observers import Histogram

_STEPS: Final = 255  # of an asymmetric 8-bit grid over an activation's range
_BULK: Final = 0.999
_FEW_BINS: Final = 16  # of a histogram: values in fewer stand for themselves too roughly to tell what rounding does
_LEVELS: Final = 127  # magnitudes that symmetric INT8 can tell apart, zero aside
_FEW_LEVELS: Final = 16
# Activations on 8 bits mostly keep 30 to 40 dB; weights much coarser than that are most of an engine's error.
SOUND_DB: Final = 25.0


@dataclass(frozen=True)
class WeightSpread:
    """How evenly the channels of one layer fill an integer grid.

    Attributes:
        layer: Name of the convolution or classifier.
        channels: Output channels.
        empty: Channels whose weights are all zero; the figures below are of the others.
        max_over_median: Largest magnitude over the median of the channels' largest.
        decades: Powers of ten between the channels' largest magnitudes.
        wasting: Share of channels that a scale per tensor leaves fewer than 16 of 127 levels.
        per_tensor_db, per_tensor_7_db: SQNR of the median channel's weights under one scale, on 8 and 7 bits.
        per_channel_db, per_channel_7_db: Likewise under a scale per output channel.
    """

    layer: str
    channels: int
    empty: int
    max_over_median: float
    decades: float
    wasting: float
    per_tensor_db: float
    per_tensor_7_db: float
    per_channel_db: float
    per_channel_7_db: float

    @property
    def verdict(self) -> str:
        """What these weights allow, in a line."""
        if self.per_channel_db < SOUND_DB:
            return "outliers within channels: loses accuracy on any INT8 grid"
        if self.per_channel_7_db < SOUND_DB:
            return "needs 8 bits and a scale per channel"
        if self.per_tensor_db < SOUND_DB:
            return "needs a scale per channel"
        return "sound on any grid" if self.per_tensor_7_db >= SOUND_DB else "sound; on 7 bits with a scale per channel"


def weight_spread(layer: str, weights: "NDArray[np.float32]") -> WeightSpread:
    """Measure one layer's weights, (out channels, ...) float32, all finite."""
    magnitudes = channel_magnitudes(weights)
    used = magnitudes[magnitudes > 0]
    if len(used) == 0:
        used = np.ones(1)
    return WeightSpread(
        layer=layer,
        channels=len(magnitudes),
        empty=int(np.count_nonzero(magnitudes == 0)),
        max_over_median=float(used.max() / np.median(used)),
        decades=float(np.log10(used.max() / used.min())),
        wasting=float(np.mean(used / used.max() * _LEVELS < _FEW_LEVELS)),
        per_tensor_db=median_channel_sqnr_db(weights, bits=8, per_channel=False),
        per_tensor_7_db=median_channel_sqnr_db(weights, bits=7, per_channel=False),
        per_channel_db=median_channel_sqnr_db(weights, bits=8, per_channel=True),
        per_channel_7_db=median_channel_sqnr_db(weights, bits=7, per_channel=True),
    )


@dataclass(frozen=True)
class ActivationSpread:
    """How evenly one activation's values fill an 8-bit grid.

    Attributes:
        tensor: Its name.
        low, high: Smallest and largest value seen.
        max_over_bulk: Largest magnitude over the one that the bulk, 99.9 % of the values, stays within.
        expected_db: SQNR that rounding to 255 steps and clipping leave of it, in the range that each method chooses.
        bulk_db: The same of the bulk alone. A few large values are most of the power, and hide what the others lose.
            Minus infinity where the bulk is too near zero for the histogram to tell: no range that reaches the largest
            value leaves it anything, and which one would is not known.
    """

    tensor: str
    low: float
    high: float
    max_over_bulk: float
    expected_db: dict[RangeMethod, float]
    bulk_db: dict[RangeMethod, float]

    @property
    def verdict(self) -> str:
        """What these values allow, in a line."""
        if self.bulk_db["max"] >= SOUND_DB:
            return "sound"
        if all(map(math.isinf, self.bulk_db.values())):
            return "all but a few values are next to nothing beside the largest: look at what makes it"
        sparing = [method for method, left in self.bulk_db.items() if left >= SOUND_DB]
        if not sparing:
            return "coarse in any range: what reads it may need floating point"
        return f"dominated by few values: {' or '.join(sparing)} spares the others"


def activation_spread(tensor: str, histogram: "Histogram") -> ActivationSpread:
    """Measure one activation by its histogram, of at least one value."""
    cumulative = np.cumsum(histogram.magnitudes())
    bins = int(np.searchsorted(cumulative, _BULK * cumulative[-1])) + 1  # of the bulk, on either side
    counts = histogram.counts.copy()
    counts[: HALF - bins + 1] = counts[HALF + bins :] = 0
    bulk = replace(histogram, counts=counts)
    ranges = choose_ranges(histogram, CalibrationSpec())
    bulk_db = {method: expected_sqnr_db(bulk, chosen, _STEPS) for method, chosen in ranges.items()}
    if bins < _FEW_BINS and max(-histogram.low, histogram.high) > 0:
        bulk_db = dict.fromkeys(bulk_db, -math.inf)
    return ActivationSpread(
        tensor=tensor,
        low=histogram.low,
        high=histogram.high,
        max_over_bulk=max(1.0, max(-histogram.low, histogram.high) / (bins * histogram.width)),
        expected_db={method: expected_sqnr_db(histogram, chosen, _STEPS) for method, chosen in ranges.items()},
        bulk_db=bulk_db,
    )


def channel_magnitudes(weights: "NDArray[np.float32]") -> "NDArray[np.float64]":
    """Largest magnitude in each output channel: (channels, ...) to (channels,)."""
    magnitudes: NDArray[np.float64] = np.abs(weights.reshape(len(weights), -1)).max(1).astype(np.float64)
    return magnitudes


def weight_sqnr_db(weights: "NDArray[np.float32]", *, bits: int, per_channel: bool) -> float:
    """Signal over rounding noise, in decibels, of weights on a symmetric integer grid of ``bits``.

    The largest magnitude under a scale is its largest integer: 127 at 8 bits, 63 at 7. Infinite if all are on the grid.
    """
    signal, noise = _channel_powers(weights, bits, per_channel=per_channel)
    return sqnr_db(float(signal.sum()), float(noise.sum()))


def median_channel_sqnr_db(weights: "NDArray[np.float32]", *, bits: int, per_channel: bool) -> float:
    """As ``weight_sqnr_db``, of the median output channel that is not empty.

    Every output channel is its own signal: under one scale, a loud channel would hide what the others lose.
    """
    signal, noise = _channel_powers(weights, bits, per_channel=per_channel)
    used = [sqnr_db(float(one), float(other)) for one, other in zip(signal, noise, strict=True) if one > 0]
    return statistics.median(used) if used else math.inf


def _channel_powers(
    weights: "NDArray[np.float32]", bits: int, *, per_channel: bool
) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """Sums of squares of each channel's weights and of their rounding errors, (channels,) each."""
    exact = weights.reshape(len(weights), -1).astype(np.float64)
    magnitudes = channel_magnitudes(weights)
    if not per_channel:
        magnitudes[:] = magnitudes.max()
    scales = (np.where(magnitudes > 0, magnitudes, 1.0) / (2 ** (bits - 1) - 1))[:, None]
    return np.square(exact).sum(1), np.square(exact - np.rint(exact / scales) * scales).sum(1)
