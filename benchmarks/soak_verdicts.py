"""What the windows of a soak say: whether anything grew, slowed down, or was answered wrongly.

The first quarter of the windows is left out: caches fill, and allocators find their size.

Growth is the median of the slopes between all pairs of moments (Theil 1950, Sen 1968); its interval runs from the k-th
smallest slope to the k-th largest, k as the exact distribution of Kendall's S has it. Neighbouring readings resemble
each other, which that distribution does not know; so they are first summed up in thirty blocks, by their medians. An
allocator takes memory in steps and keeps it, and one step makes a slope; so it grows only if it comes to more than
`GROWTH` of the level by the end, and does so in either half of the time, whose intervals, of 99 %, are above 0, and in
neither by less than a third of what it is in the other.

Descriptors and threads are whole numbers that do not vary while nothing is under way: there are more of them if the
fewest of the last third are more than the most of the first.

Latency is the median of each window and kind, and processor time that of a window per image; the last third is held
against the first by Hodges and Lehmann's shift of logarithms. It is slower if the whole interval is above 0 and the
estimate is a tenth or more. Where other processes, or the host, took a share of the cores in either, it cannot be told.

Intervals that are told share their confidence: each is of 1 - 0.05 / tests.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from soak_records import Soak, Window

from resnet_deploy.bench.intervals import Interval
from resnet_deploy.bench.shifts import inner_interval, shift_interval

WARM_UP = 0.25
BLOCKS = 30
LEVEL = 0.05
HALF_LEVEL = 0.01  # of each half, which both have to grow
FEWEST = 6  # windows: thirds of two
GROWTH = 0.005  # of the level, by the end: what allocators keep back of loads that vary is less (see the tests)
SLOWER = 0.1  # as `bench` has it of drift
TAKEN = 0.05  # of the cores, as `bench` has it of other processes

Floats = NDArray[np.float64]
Verdict = Literal["steady", "grew", "slower", "cannot tell"]
AMOUNTS = ("private", "heap", "objects", "blocks")
HANDLES = ("files", "threads")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: A field of ``Reading``, or a kind of request.
        verdict: In a word or two.
        level: Median of the first third after the warm-up: bytes, a number, or seconds.
        change: What it comes to from the first window after the warm-up to the last, in the same unit; for latency, the
            share by which it is longer.
    """

    what: str
    verdict: Verdict
    level: float
    change: Interval

    @property
    def is_bad(self) -> bool:
        """Whether a soak with it has failed."""
        return self.verdict not in {"steady", "cannot tell"}


@dataclass(frozen=True)
class Findings:
    """What there is to say of one engine.

    Attributes:
        amounts: Memory and Python's objects.
        handles: File descriptors and threads.
        latency: By kind of request, and of processor time per image.
        wrong: How many requests were not as they have to be.
        end: As ``Soak`` has it.
    """

    amounts: tuple[Finding, ...]
    handles: tuple[Finding, ...]
    latency: tuple[Finding, ...]
    wrong: int
    end: str

    @property
    def is_bad(self) -> bool:
        """Whether anything grew, slowed down, was wrong, or came to no end."""
        every = (*self.amounts, *self.handles, *self.latency)
        return bool(self.wrong or self.end) or any(one.is_bad for one in every)


def judge(soak: Soak) -> Findings:
    """Look at everything; at least six windows after the warm-up."""
    windows = after_warm_up(soak.windows)
    kinds = {kind: latency(windows, kind) for kind in dict.fromkeys(kind for one in windows for kind in one.times)}
    often = {kind: seconds for kind, seconds in kinds.items() if len(seconds) >= len(windows) / 2}
    amounts = [name for name in AMOUNTS if getattr(windows[0].reading, name) is not None]
    times = np.array([one.start for one in windows])
    often |= {"processor time per image": processor_times(windows)}
    level, quiet = LEVEL / (len(amounts) + len(often)), is_quiet(windows)
    return Findings(
        amounts=tuple(growth(name, times, readings(windows, name), level) for name in amounts),
        handles=tuple(handles(name, readings(windows, name)) for name in HANDLES),
        latency=tuple(
            slowing(kind, seconds, level, quiet=quiet) for kind, seconds in often.items() if len(seconds) >= FEWEST
        ),
        wrong=sum(one.wrong_count for one in soak.windows),
        end=soak.end,
    )


def after_warm_up(windows: Sequence[Window]) -> Sequence[Window]:
    """Leave out the first quarter.

    Raises:
        SystemExit: If too few are left to tell anything.
    """
    left = windows[int(len(windows) * WARM_UP) :]
    if len(left) < FEWEST:
        raise SystemExit(f"{len(left)} windows after the warm-up are too few to tell growth: soak for longer")
    return left


def readings(windows: Sequence[Window], name: str) -> Floats:
    """List one field of the readings."""
    return np.array([getattr(one.reading, name) for one in windows], np.float64)


def latency(windows: Sequence[Window], kind: str) -> Floats:
    """List the medians of a kind of request, of the windows that have any."""
    return np.array([one.times[kind].p50 for one in windows if kind in one.times])


def processor_times(windows: Sequence[Window]) -> Floats:
    """List the processor time that an image took, of the windows that have any."""
    images = [sum(kind.images for kind in one.times.values()) for one in windows]
    return np.array([one.processor_s / many for one, many in zip(windows, images, strict=True) if many])


def growth(what: str, times: Floats, values: Floats, level: float) -> Finding:
    """Say whether values grow over time, in any unit of it."""
    per_time = _trend_of_blocks(times, values, BLOCKS, level)
    span = float(times[-1] - times[0])
    change = Interval(*(end * span for end in (per_time.value, per_time.low, per_time.high)))
    start = float(np.median(thirds(values)[0]))
    grew = change.value > GROWTH * start and goes_on(times, values)
    return Finding(what, "grew" if grew else "steady", start, change)


def goes_on(times: Floats, values: Floats) -> bool:
    """Whether values grow in either half, and in neither by less than a third of what they do in the other."""
    halves = np.array_split(np.arange(len(values)), 2)
    found = [_trend_of_blocks(times[half], values[half], BLOCKS // 2, HALF_LEVEL) for half in halves]
    less, more = sorted(one.value for one in found)
    return all(one.low > 0 for one in found) and less >= more / 3


def handles(what: str, values: Floats) -> Finding:
    """Say whether there are more of what does not vary."""
    first, last = thirds(values)
    change = Interval(float(np.median(last) - np.median(first)), last.min() - first.max(), last.max() - first.min())
    return Finding(what, "grew" if change.low > 0 else "steady", float(np.median(first)), change)


def slowing(what: str, seconds: Floats, level: float, *, quiet: bool = True) -> Finding:
    """Say whether something takes longer in the end; ``quiet``: whether it had the machine to itself."""
    first, last = thirds(seconds)
    shift = shift_interval(np.log(blocks(first, BLOCKS // 3)), np.log(blocks(last, BLOCKS // 3)), level)
    change = Interval(*(float(np.expm1(end)) for end in (shift.value, shift.low, shift.high)))
    slower = change.low > 0 and change.value >= SLOWER
    verdict: Verdict = ("slower" if quiet else "cannot tell") if slower else "steady"
    return Finding(what, verdict, float(np.median(first)), change)


def is_quiet(windows: Sequence[Window]) -> bool:
    """Whether others took next to nothing of the cores, in the first third and in the last."""
    shares = np.array([(one.machine.elsewhere or 0) + (one.machine.stolen or 0) for one in windows])
    return all(bool(np.median(part) <= TAKEN) for part in thirds(shares))


def trend(times: Floats, values: Floats, level: float) -> Interval:
    """Theil and Sen's slope of values over time, shape (n,) both, with an interval of confidence 1 - ``level``."""
    later, earlier = np.tril_indices(len(times), -1)
    slopes = np.sort((values[later] - values[earlier]) / (times[later] - times[earlier]))
    return inner_interval(slopes, pairs_outside(len(times), level))


@lru_cache(maxsize=256)
def pairs_outside(n: int, level: float) -> int:
    """How many of the n (n - 1) / 2 sorted slopes to count off at either end: 0 where there are too few."""
    ways = [1]
    for size in range(2, n + 1):  # orders of ``size`` values by their inversions, from those of one value less
        ways = [sum(ways[max(0, total - size + 1) : total + 1]) for total in range(len(ways) + size - 1)]
    allowed = Fraction(level) / 2 * sum(ways)
    return sum(1 for total in itertools.accumulate(ways) if total <= allowed)


def _trend_of_blocks(times: Floats, values: Floats, most: int, level: float) -> Interval:
    return trend(blocks(times, most), blocks(values, most), level)


def blocks(values: Floats, most: int = BLOCKS) -> Floats:
    """Medians of ``most`` blocks of successive values; the values themselves where there are fewer."""
    return np.array([np.median(part) for part in np.array_split(values, min(most, len(values)))])


def thirds(values: Floats) -> tuple[Floats, Floats]:
    """The first third and the last."""
    size = len(values) // 3
    return values[:size], values[len(values) - size :]


def words(findings: Findings) -> list[str]:
    """Say it, one line each: first what is bad, then what was looked at."""
    lines = [f"ended: {findings.end}"] if findings.end else []
    if findings.wrong:
        lines.append(f"WRONG: {findings.wrong} requests were not as they have to be")
    lines += [
        text
        for found in (*findings.amounts, *findings.handles, *findings.latency)
        if (text := _telling(found)) is not None
    ]
    return lines or ["steady: nothing grew, nothing slowed down, and every answer was right"]


def _telling(found: Finding) -> str | None:
    low, value, high = found.change.low, found.change.value, found.change.high
    if found.verdict == "grew":
        return f"GREW: {found.what}, {value:+,.0f} ({low:+,.0f} to {high:+,.0f})"
    if found.verdict == "slower":
        return f"SLOWER: {found.what}, {value:+.0%} ({low:+.0%} to {high:+.0%})"
    if found.verdict == "cannot tell":
        return f"cannot tell: {found.what}, {value:+.0%}, but others used the cores too"
    return None
