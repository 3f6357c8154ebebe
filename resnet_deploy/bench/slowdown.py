"""How much slower an engine is in one run than in another, when both ran at different times.

Engines of one run take turns, so that a slow minute falls on all of them. Two runs do not: a machine that is a fifth
slower in the second makes every engine a fifth slower, and rounds within a run cannot show it. So both runs are held
against a control, an engine that is the same in both: in each round, the time of a call over that of the control's
calls, in all ways that both runs called it (their geometric mean: one way alone is noisier); then the rounds of one run
against the rounds of the other (``shifts``).

What slows the control down as much cancels out. But not everything slows all engines down alike: on a machine so busy
that PyTorch took 11 times as long, ONNX Runtime took 4 times as long. So what slows the control down by some factor is
taken to slow an engine down by half to one and a half times as much (in logarithms), and intervals are wider by that.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from resnet_deploy.bench.intervals import (
    Interval,
    by_round,
    calls_needed,
    interval_of,
    nearest_rank,
    time_per_image,
)
from resnet_deploy.bench.records import EngineRecord, Samples
from resnet_deploy.bench.shifts import shift_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Figure = Literal["throughput", "p50"]
Pace = dict[Figure, dict[int, float]]  # of a control: the logarithm of a figure, as a time, in each round

_RESAMPLES: Final = 500
_SEEDS: Final = (0, 1)  # of the two runs' resamples: drawn apart, for they have nothing in common
_UNEVEN: Final = 0.5  # share of the control's own change by which an engine's may differ from it


@dataclass(frozen=True)
class EngineRun:
    """One engine in one run, called in one way, and the pace of the control beside it; None without a control."""

    samples: Samples
    pace: Pace | None = None


def common_ways(old: EngineRecord, new: EngineRecord) -> tuple[tuple[Samples, Samples], ...]:
    """Pair the samples of the ways in which both runs called an engine, in the order of the new one."""
    before = {samples.way: samples for samples in old.latency}
    return tuple((before[samples.way], samples) for samples in new.latency if samples.way in before)


def figures(samples: Samples) -> tuple[Figure, ...]:
    """Say what samples can tell of speed: where calls are paced, the pace decides on the throughput."""
    return ("p50",) if samples.offered is not None else ("throughput", "p50")


def pace(ways: tuple[Samples, ...]) -> Pace:
    """Take the mean over a control's ways of calling, in each round that all of them have."""
    return {"throughput": _mean(ways, "throughput"), "p50": _mean(ways, "p50")}


def slowdown(old: EngineRun, new: EngineRun, figure: Figure, level: float) -> Interval:
    """Estimate the new time over the old, relative to the control: above 1 is slower.

    Args:
        old: One way of calling in the old run.
        new: The same in the new one.
        figure: The median of a round's calls, or their time per image.
        level: Chance that the interval misses.

    Returns:
        The ratio with an interval of confidence 1 - ``level``; from 0 to infinity where there are too few rounds.
    """
    shift = shift_interval(_relative(old, figure), _relative(new, figure), level)
    return _ratio(shift, _unevenness(old, new, figure))


def tail_slowdown(old: EngineRun, new: EngineRun) -> Interval | None:
    """Estimate the new p99 over the old, each over its control's p50; None where a run has too few calls for it.

    Returns:
        The ratio with a 95 % interval from resampling each run's rounds: one round has too few calls for a p99.
    """
    if min(len(old.samples.seconds), len(new.samples.seconds)) < calls_needed(99):
        return None
    (before, before_spread), (after, after_spread) = (
        _tail(measured, np.random.default_rng(seed)) for measured, seed in zip((old, new), _SEEDS, strict=True)
    )
    return _ratio(interval_of(after - before, after_spread - before_spread), _unevenness(old, new, "p50"))


def drift(old: Pace, new: Pace, level: float) -> Interval:
    """Estimate a control's own new median time over the old: what the machine changed.

    Returns:
        The ratio with an interval of confidence 1 - ``level``.
    """
    return _ratio(_shift_of_pace(old, new, "p50", level))


def _ratio(shift: Interval, wider: float = 0.0) -> Interval:
    """Turn a difference of logarithms into a ratio."""
    return Interval(*(float(np.exp(end)) for end in (shift.value, shift.low - wider, shift.high + wider)))


def _unevenness(old: EngineRun, new: EngineRun, figure: Figure) -> float:
    """How far the machine may have changed an engine's time otherwise than the control's, as a logarithm."""
    if old.pace is None or new.pace is None:
        return 0.0
    return _UNEVEN * abs(_shift_of_pace(old.pace, new.pace, figure, level=1.0).value)


def _shift_of_pace(old: Pace, new: Pace, figure: Figure, level: float) -> Interval:
    before, after = (np.array(list(one[figure].values())) for one in (old, new))
    return shift_interval(before, after, level)


def _relative(measured: EngineRun, figure: Figure) -> "Floats":
    """Logarithm of a figure in each round, less the control's in the same round."""
    own = _by_round(measured.samples, figure)
    if measured.pace is None:
        return np.array(list(own.values()))
    control = measured.pace[figure]
    return np.array([value - control[number] for number, value in own.items() if number in control])


def _mean(ways: tuple[Samples, ...], figure: Figure) -> dict[int, float]:
    each = [_by_round(samples, figure) for samples in ways]
    shared = [number for number in each[0] if all(number in one for one in each)]
    return {number: sum(one[number] for one in each) / len(each) for number in shared}


def _by_round(samples: Samples, figure: Figure) -> dict[int, float]:
    """Logarithm of a figure, as a time, in each round."""
    if figure == "p50":
        return {number: float(np.log(np.median(seconds))) for number, seconds in by_round(samples).items()}
    return {number: float(np.log(time)) for number, time in time_per_image(samples).items()}


def _tail(measured: EngineRun, rng: np.random.Generator) -> "tuple[float, Floats]":
    """Logarithm of p99 over the control's time, and what it is in resamples that draw the same rounds for both."""
    rounds = by_round(measured.samples)
    control = dict.fromkeys(rounds, 0.0) if measured.pace is None else measured.pace["p50"]
    shared = [number for number in rounds if number in control]
    times, machine = [rounds[number] for number in shared], np.array([control[number] for number in shared])
    picks = rng.integers(0, len(shared), size=(_RESAMPLES, len(shared)))
    tails = np.array([nearest_rank(np.concatenate([times[pick] for pick in row]), 99) for row in picks])
    value = float(np.log(nearest_rank(np.concatenate(times), 99)) - machine.mean())
    return value, np.log(tails) - machine[picks].mean(1)
