"""Percentiles, rates and their intervals, computed from raw samples.

Percentiles are the smallest sample that at least p percent of the samples do not exceed (the nearest-rank definition):
a value that was really measured, never an interpolation between two.

Intervals are percentile-bootstrap intervals (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13). Whole
rounds are resampled, for the calls within one share the machine's momentary state; with a single round, the calls are.
Of few rounds they come out too narrow: they describe one engine, and no verdict rests on them (``pairs``, ``shifts``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from resnet_deploy.bench.records import Samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_RESAMPLES: Final = 1000


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, of 95 % unless said otherwise."""

    value: float
    low: float
    high: float


def percentile(seconds: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile of at least one sample."""
    ordered = sorted(seconds)
    return ordered[nearest_rank_index(percent, len(ordered))]


def nearest_rank_index(percent: float, count: int) -> int:
    """Where, counted from 0, the nearest rank of ``percent`` is among so many sorted samples.

    7 / 100 * 100 is above 7, and 99.9 has no binary form: the digits that rounding brings are dropped.
    """
    return max(0, math.ceil(round(percent * count / 100, 9)) - 1)


def calls_needed(percent: float) -> int:
    """How many calls there must be for ``percent`` of them not to be all but the slowest: 100 for p99, 1000 for p99.9.

    With fewer, the percentile is simply the slowest call.
    """
    return round(100 / (100 - percent))


def throughput(samples: Samples) -> float:
    """Images per second: images over the wall clock, or over the summed time of calls that did not overlap."""
    return samples.batch * len(samples.seconds) / sum(samples.wall or samples.seconds)


def percentile_interval(samples: Samples, percent: float) -> Interval:
    """Latency percentile with its interval; the rarer the percentile, the less its interval can be relied on."""
    rounds = _units(samples)
    resampled = [nearest_rank(np.concatenate([rounds[pick] for pick in row]), percent) for row in _picks(len(rounds))]
    return interval_of(percentile(samples.seconds, percent), np.array(resampled))


def throughput_interval(samples: Samples) -> Interval:
    """Throughput with its interval."""
    rounds = _units(samples)
    time = np.array(samples.wall if len(samples.wall) == len(rounds) else [seconds.sum() for seconds in rounds])
    images = np.array([samples.batch * len(seconds) for seconds in rounds])
    picks = _picks(len(rounds))
    return interval_of(throughput(samples), images[picks].sum(1) / time[picks].sum(1))


def interval_of(value: float, resampled: "Floats") -> Interval:
    """The middle 95 % of what resampling gave, beside ``value``."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def by_round(samples: Samples) -> "dict[int, Floats]":
    """Group the times by round, in the order of the rounds."""
    seconds, rounds = np.asarray(samples.seconds), np.asarray(samples.rounds)
    return {int(number): seconds[rounds == number] for number in np.unique(rounds)}


def time_per_image(samples: Samples) -> dict[int, float]:
    """Seconds per image in each round."""
    rounds = by_round(samples)
    walls = samples.wall or [float(seconds.sum()) for seconds in rounds.values()]
    return {
        number: wall / (samples.batch * len(seconds))
        for (number, seconds), wall in zip(rounds.items(), walls, strict=True)
    }


def _units(samples: Samples) -> "list[Floats]":
    """What is resampled: rounds, or the calls of a single one."""
    rounds = list(by_round(samples).values())
    return rounds if len(rounds) > 1 else list(rounds[0].reshape(-1, 1))


def _picks(units: int) -> "NDArray[np.int64]":
    """Which units are in each resample, (_RESAMPLES, units): the same whenever a record is shown."""
    return np.random.default_rng(0).integers(0, units, size=(_RESAMPLES, units))


def nearest_rank(seconds: "Floats", percent: float) -> float:
    """Percentile as ``percentile`` has it, without sorting all of a large array."""
    rank = nearest_rank_index(percent, len(seconds))
    return float(np.partition(seconds, rank)[rank])
