"""Reasons to distrust a figure: too few samples, a wide, drifting or two-peaked spread, a machine that is not quiet."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from resnet_deploy.bench.intervals import calls_needed, percentile
from resnet_deploy.bench.records import MachineState, Samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_DRIFT: Final = 0.1
# Two peaks: each holds at least this share of the calls, and they are this far apart.
_SMALLEST_PEAK: Final = 0.15
_PEAK_DISTANCE: Final = math.log(1.1)
# So unlikely must a valley be by chance: it is looked for at every engine and batch size of every run.
_VALLEY_LEVEL: Final = 1e-4
# Other work takes from an engine about the share of the cores that it takes: 5 % is a difference that a run must tell.
_BUSY: Final = 0.05
_SLOWER_CLOCK: Final = 0.05


def thin_warnings(latency: Sequence[Samples]) -> tuple[str, ...]:
    """Say, once, at which batch sizes there were too few calls for a p99."""
    least = calls_needed(99)
    thin = sorted({one.batch for one in latency if len(one.seconds) < least})
    if not thin:
        return ()
    batches = ", ".join(map(str, thin))
    return (f"p99 at batch {batches} is simply the slowest of fewer than {least} calls",)


def spread_warnings(samples: Samples) -> list[str]:
    """Say whether times spread widely, drift or have two peaks, which moves throughput as well as latency."""
    seconds, warnings = samples.seconds, []
    p50, p99 = percentile(seconds, 50), percentile(seconds, 99)
    if p99 > 2 * p50:
        warnings.append(f"unsteady at batch {samples.batch}: p99 is {p99 / p50:.1f} times p50")
    half = len(seconds) // 2
    if half >= 10:
        drift = percentile(seconds[half:], 50) / percentile(seconds[:half], 50) - 1
        if abs(drift) > _DRIFT:
            warnings.append(f"drifting at batch {samples.batch}: the second half is {drift:+.0%} against the first")
            return warnings  # which is why there are two peaks, if there are
    if (peaks := two_peaks(seconds)) is not None:
        warnings.append(
            f"two peaks at batch {samples.batch}: around {_ms(peaks[0])} and {_ms(peaks[1])}; "
            "p50 may be either next time"
        )
    return warnings


def two_peaks(seconds: Sequence[float]) -> tuple[float, float] | None:
    """Find two speeds that an engine runs at, where its times cannot come from a distribution with one peak.

    The logarithms are split in two where the variance between the parts is greatest (Otsu, 1979). Three windows of one
    width, a third of the distance between the parts' medians, are laid over these medians and half-way between. Where a
    distribution has one peak, the middle window never holds less than both of the others, however skewed it is (a
    one-peaked density, smoothed by a window, has one peak). So the middle one is tested against the emptier of the
    two: half of the calls in either, by the binomial distribution.

    Returns:
        The medians of the two parts in seconds, the faster first; None where one peak explains the times, or the two
        are less than 10 % apart.
    """
    times = np.sort(np.log(np.asarray(seconds)))
    split = _otsu(times)
    if split is None:
        return None
    fast, slow = float(np.median(times[:split])), float(np.median(times[split:]))
    if slow - fast < _PEAK_DISTANCE:
        return None
    half = (slow - fast) / 6
    first, middle, last = (
        int(np.count_nonzero(np.abs(times - centre) <= half)) for centre in (fast, (fast + slow) / 2, slow)
    )
    fewer = min(first, last)
    if 2 * middle >= fewer or _tail(middle, middle + fewer) > _VALLEY_LEVEL:
        return None
    return math.exp(fast), math.exp(slow)


def thin_percentiles(calls: int, percents: Sequence[float]) -> tuple[float, ...]:
    """List those of ``percents`` that so many calls are too few for."""
    return tuple(percent for percent in percents if calls < calls_needed(percent))


def machine_warnings(states: Sequence[MachineState]) -> tuple[str, ...]:
    """Say what the machine did that moves figures: work for others, slower clocks, clocks held down."""
    warnings = []
    for shares, doing in (
        ([state.elsewhere for state in states], "other processes took"),
        ([state.stolen for state in states], "the host gave others"),
    ):
        known = [share for share in shares if share is not None]
        if known and (mean := sum(known) / len(known)) > _BUSY:
            warnings.append(f"{doing} {mean:.0%} of the cores' time, {max(known):.0%} in the worst round")
    for clocks, what in (([one.mhz for one in states], "the cores"), ([one.gpu_mhz for one in states], "the GPU")):
        fell = _fell([clock for clock in clocks if clock is not None])
        if fell is not None:
            warnings.append(f"the clock of {what} fell from {fell[0]:,.0f} to {fell[1]:,.0f} MHz")
    held = [state for state in states if state.throttled]
    if held:
        why = ", ".join(dict.fromkeys(state.throttled for state in held))
        noun = "round" if len(held) == 1 else "rounds"
        warnings.append(f"clocks were held down in {len(held)} {noun} of {len(states)}: {why}")
    return tuple(warnings)


def _otsu(times: "Floats") -> int | None:
    """Where to cut sorted values in two; None where they are too few or all alike."""
    count = len(times)
    least = max(5, math.ceil(_SMALLEST_PEAK * count))
    if count < 2 * least or times[0] == times[-1]:
        return None
    cuts = np.arange(least, count - least + 1)
    below = np.cumsum(times)[cuts - 1]
    means = below / cuts, (times.sum() - below) / (count - cuts)
    return int(cuts[np.argmax(cuts * (count - cuts) * (means[1] - means[0]) ** 2)])


def _tail(successes: int, trials: int) -> float:
    """Bound of the chance of so few successes, less than half, at evens (Chernoff)."""
    parts = [share * math.log(share) for share in (successes / trials, 1 - successes / trials) if share]
    return math.exp(-trials * (math.log(2) + sum(parts)))


def _fell(clocks: Sequence[float]) -> tuple[float, float] | None:
    """Medians of the first and the second half, where the second is lower; a single reading is that of a moment."""
    half = len(clocks) // 2
    if half < 2:
        return None
    before, after = float(np.median(clocks[:half])), float(np.median(clocks[half:]))
    return (before, after) if after < before * (1 - _SLOWER_CLOCK) else None


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
