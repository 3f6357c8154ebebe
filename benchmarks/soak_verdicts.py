"""What the windows of a soak say: whether anything grew, slowed down, or was answered wrongly.

The first quarter of the windows is left out: caches fill, and allocators find their size.

Growth is the median of the slopes between all pairs of moments (Theil 1950, Sen 1968); its interval runs from the k-th
smallest slope to the k-th largest, k as the exact distribution of Kendall's S has it. Neighbouring readings resemble
each other, which that distribution does not know; so they are first summed up in thirty blocks, by their medians. A
single step, such as an allocator's that takes more memory once and keeps it, moves neither end beyond 0. It grows if the
whole interval is above 0 and what it comes to by the end is more than `GROWTH` of the level.

Descriptors and threads are whole numbers that do not vary while nothing is under way: there are more of them if the
fewest of the last third are more than the most of the first.

Latency is the median of each window and kind, and processor time that of a window per image; the last third is held
against the first by Hodges and Lehmann's shift of logarithms. It is slower if the whole interval is above 0 and the
estimate is a tenth or more. Where other processes, or the host, took more of the cores in the last third than in the
first, latency cannot be told.

Confidence is shared by all that is tested: an interval is of 1 - 0.05 / tests.
"""

import itertools
from collections.abc import Callable, Sequence
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
GROWTH = 0.005  # of the level, by the end: what allocators keep back of loads that vary is less (see the tests)
SLOWER = 0.1  # as `bench` has it of drift
TAKEN = 0.05  # of the cores, as `bench` has it of other processes
FEWEST_PER_WINDOW = 1  # of requests, for a kind's latency to be looked at

Floats = NDArray[np.float64]
Verdict = Literal["steady", "grew", "slower", "cannot tell", "wrong", "ended"]
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
    kinds = [kind for kind in windows[0].times if all(_is_measured(one, kind) for one in windows)]
    amounts = [name for name in AMOUNTS if windows[0].reading.__getattribute__(name) is not None]
    level = LEVEL / (len(amounts) + len(kinds) + 1)
    times = np.array([one.start for one in windows])
    per_image = np.array([one.processor_s / sum(kind.images for kind in one.times.values()) for one in windows])
    return Findings(
        amounts=tuple(growth(name, times, readings(windows, name), level) for name in amounts),
        handles=tuple(handles(name, readings(windows, name)) for name in HANDLES),
        latency=(
            slowing("processor time per image", per_image, level),
            *(slowing(kind, _latency(windows, kind), level, quiet=is_quiet(windows)) for kind in kinds),
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
    if len(left) < 6:
        raise SystemExit(f"{len(left)} windows after the warm-up are too few to tell growth: soak for longer")
    return left


def readings(windows: Sequence[Window], name: str) -> Floats:
    """List one field of the readings."""
    return np.array([getattr(one.reading, name) for one in windows], np.float64)


def growth(what: str, times: Floats, values: Floats, level: float) -> Finding:
    """Say whether values grow over time, in any unit of it."""
    per_time = trend(blocks(times), blocks(values), level)
    span = float(times[-1] - times[0])
    change = Interval(*(end * span for end in (per_time.value, per_time.low, per_time.high)))
    start = float(np.median(thirds(values)[0]))
    grew = change.low > 0 and change.value > GROWTH * start
    return Finding(what, "grew" if grew else "steady", start, change)


def handles(what: str, values: Floats) -> Finding:
    """Say whether there are more of what does not vary."""
    first, last = thirds(values)
    change = Interval(float(np.median(last) - np.median(first)), last.min() - first.max(), last.max() - first.min())
    return Finding(what, "grew" if change.low > 0 else "steady", float(np.median(first)), change)


def slowing(what: str, seconds: Floats, level: float, *, quiet: bool = True) -> Finding:
    """Say whether something takes longer in the end; ``quiet``: whether the machine was no busier then."""
    first, last = thirds(seconds)
    shift = shift_interval(np.log(blocks(first, BLOCKS // 3)), np.log(blocks(last, BLOCKS // 3)), level)
    change = Interval(*(float(np.expm1(end)) for end in (shift.value, shift.low, shift.high)))
    slower = change.low > 0 and change.value >= SLOWER
    verdict: Verdict = ("slower" if quiet else "cannot tell") if slower else "steady"
    return Finding(what, verdict, float(np.median(first)), change)


def is_quiet(windows: Sequence[Window]) -> bool:
    """Whether others took no more of the cores in the last third than in the first."""
    shares = np.array([(one.machine.elsewhere or 0) + (one.machine.stolen or 0) for one in windows])
    first, last = thirds(shares)
    return bool(np.median(last) - np.median(first) <= TAKEN)


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


def blocks(values: Floats, most: int = BLOCKS) -> Floats:
    """Medians of ``most`` blocks of successive values; the values themselves where there are fewer."""
    return np.array([np.median(part) for part in np.array_split(values, min(most, len(values)))])


def thirds(values: Floats) -> tuple[Floats, Floats]:
    """The first third and the last."""
    size = len(values) // 3
    return values[:size], values[len(values) - size :]


def _is_measured(window: Window, kind: str) -> bool:
    return kind in window.times and window.times[kind].count >= FEWEST_PER_WINDOW


def _latency(windows: Sequence[Window], kind: str) -> Floats:
    return np.array([one.times[kind].p50 for one in windows])


def words(findings: Findings) -> list[str]:
    """Say it, one line each: first what is bad, then what was looked at."""
    lines = [f"ended: {findings.end}"] if findings.end else []
    if findings.wrong:
        lines.append(f"WRONG: {findings.wrong} requests were not as they have to be")
    every = (*findings.amounts, *findings.handles, *findings.latency)
    telling: dict[str, Callable[[Finding], str]] = {
        "grew": lambda one: f"GREW: {one.what}, {one.change.value:+,.0f} ({one.change.low:+,.0f} to {one.change.high:+,.0f})",
        "slower": lambda one: f"SLOWER: {one.what}, {one.change.value:+.0%} ({one.change.low:+.0%} to {one.change.high:+.0%})",
        "cannot tell": lambda one: f"cannot tell: {one.what}, {one.change.value:+.0%}, while others took more of the cores",
    }
    lines += [telling[one.verdict](one) for one in every if one.verdict in telling]
    return lines or ["steady: nothing grew, nothing slowed down, and every answer was right"]
