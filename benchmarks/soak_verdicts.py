"""What the windows of a soak say: whether anything grew, slowed down, or was answered wrongly.

The first quarter of the windows is left out: caches fill, and allocators find their size.

Growth is the median of the slopes between all pairs of moments (Theil 1950, Sen 1968); its interval runs from the k-th
smallest slope to the k-th largest, k as the exact distribution of Kendall's S has it. Neighbouring readings resemble
each other, which that distribution does not know; so they are first summed up in thirty blocks, by their medians. It is
growth if it comes to more than `GROWTH` of the level by the end, and goes on, in one of two ways:

* evenly: in either half of the time, whose intervals, of 99 %, are above 0, and in neither by less than a third of what
  it is in the other;
* or faster and faster, or from some time on. An allocator takes memory in steps and keeps it, and one step makes a
  slope; so the largest rise within two blocks is forgiven, of the whole time and of either half. What is left has to
  rise as above, in the second half too, and there by no less than a third of what it does in the first.

Of 1,800 series of noise alone (100 each of 0.25 % and 2 %, neighbours correlated by 0, 0.5 and 0.8, 18, 90 and 270
windows) none was called growth; of 120 with one step of a tenth at a random moment, one was. Two such steps are called
growth in one of 20, three in one of 4: an allocator that has not settled. Even growth of 2 % in noise of 0.25 % was
found in 53 of 60 soaks of 90 windows, in all of 270. A leak that begins in the last third may go unseen.

Descriptors and threads are whole numbers that do not vary while nothing is under way: there are more of them if the
fewest of the last third are more than the most of the first.

Latency is the median of each window and kind, and processor time that of a window per image; the last third is held
against the first by Hodges and Lehmann's shift of logarithms. It is slower if the whole interval is above 0 and the
estimate is a tenth or more. Where other processes, or the host, took a share of the cores in either, it cannot be told.

Where there are too few windows for an interval to have an end, it cannot be told either. Intervals that are told share
their confidence: each is of 1 - 0.05 / tests.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from soak_records import Soak, Window

from resnet_deploy.bench.intervals import Interval
from resnet_deploy.bench.shifts import inner_interval, shift_interval

WARM_UP = 0.25
BLOCKS = 30
HALF = BLOCKS // 2
LEVEL = 0.05
HALF_LEVEL = 0.01  # of each half
FEWEST = 18  # windows: thirds of six, whose 924 orders leave an interval of the confidence that twenty tests share
GROWTH = 0.005  # of the level, by the end: what allocators keep back of loads that vary is less (see the tests)
SLOWER = 0.1  # as `bench` has it of drift
TAKEN = 0.05  # of the cores, as `bench` has it of other processes

T = TypeVar("T")
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
        windows: After the warm-up; where they are fewer than ``FEWEST``, nothing but ``wrong`` and ``end`` is told.
    """

    amounts: tuple[Finding, ...]
    handles: tuple[Finding, ...]
    latency: tuple[Finding, ...]
    wrong: int
    end: str
    windows: int

    @property
    def is_bad(self) -> bool:
        """Whether anything grew, slowed down, was wrong, or came to no end."""
        every = (*self.amounts, *self.handles, *self.latency)
        return bool(self.wrong or self.end) or any(one.is_bad for one in every)


def judge(soak: Soak) -> Findings:
    """Look at everything there are windows enough for."""
    windows = after_warm_up(soak.windows)
    wrong = sum(one.wrong_count for one in soak.windows)
    if len(windows) < FEWEST:
        return Findings((), (), (), wrong, soak.end, len(windows))
    kinds = {kind: latency(windows, kind) for kind in dict.fromkeys(kind for one in windows for kind in one.times)}
    kinds["processor time per image"] = processor_times(windows)
    often = {kind: seconds for kind, seconds in kinds.items() if len(seconds) >= len(windows) / 2}
    amounts = [name for name in AMOUNTS if getattr(windows[0].reading, name) is not None]
    times = np.array([one.start for one in windows])
    level, quiet = LEVEL / (len(amounts) + len(often)), is_quiet(windows)
    return Findings(
        amounts=tuple(growth(name, times, readings(windows, name), level) for name in amounts),
        handles=tuple(handles(name, readings(windows, name)) for name in HANDLES),
        latency=tuple(slowing(kind, seconds, level, quiet=quiet) for kind, seconds in often.items()),
        wrong=wrong,
        end=soak.end,
        windows=len(windows),
    )


def after_warm_up(windows: Sequence[T]) -> Sequence[T]:
    """Leave out the first quarter."""
    return windows[int(len(windows) * WARM_UP) :]


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
    per_time = trend(blocks(times), blocks(values), level)
    span, start = float(times[-1] - times[0]), float(np.median(thirds(values)[0]))
    least = GROWTH * start / span
    evenly, late = grows_evenly(times, values), grows_late(times, values, level, least)
    change = Interval(*(end * span for end in (per_time.value, per_time.low, per_time.high)))
    if evenly is None or late is None:
        return Finding(what, "cannot tell", start, change)
    return Finding(what, "grew" if per_time.value > least and (evenly or late) else "steady", start, change)


def grows_evenly(times: Floats, values: Floats) -> bool | None:
    """Whether values grow in either half, by much the same; None where there are too few to tell."""
    halves = [trend(blocks(times[half], HALF), blocks(values[half], HALF), HALF_LEVEL) for half in _halves(values)]
    less, more = sorted(one.value for one in halves)
    return all(one.low > 0 for one in halves) and less >= more / 3 if _have_ends(*halves) else None


def grows_late(times: Floats, values: Floats, level: float, least: float) -> bool | None:
    """Whether values grow by more than a step and ``least``, and still do in the second half; None as above."""
    whole = trend(*without_a_step(blocks(times), blocks(values)), level)
    first, second = (
        trend(*without_a_step(blocks(times[half], HALF), blocks(values[half], HALF)), HALF_LEVEL)
        for half in _halves(values)
    )
    goes_on = second.low > 0 and second.value >= first.value / 3
    return whole.low > 0 and whole.value > least and goes_on if _have_ends(whole, first, second) else None


def _halves(values: Floats) -> "list[NDArray[np.intp]]":
    return np.array_split(np.arange(len(values)), 2)


def _have_ends(*intervals: Interval) -> bool:
    return all(bool(np.isfinite([one.low, one.high]).all()) for one in intervals)


def without_a_step(times: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Leave out the largest rise within two steps of time, a value in the midst of it too."""
    rises = values[2:] - values[:-2]
    largest = int(np.argmax(rises))
    level = np.concatenate([values[: largest + 1], values[largest + 2 :] - rises[largest]])
    return np.delete(times, largest + 1), level


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
    can_tell = np.isfinite(shift.low) and (quiet or not slower)
    verdict: Verdict = ("slower" if slower else "steady") if can_tell else "cannot tell"
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
    if findings.windows < FEWEST:
        lines.append(f"cannot tell growth: {findings.windows} windows after the warm-up, {FEWEST} are needed")
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
        return f"cannot tell: {found.what}, " + (
            f"{value:+.0%}, but others used the cores too" if np.isfinite(high) else "too few windows"
        )
    return None
