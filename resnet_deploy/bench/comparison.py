"""What comparing two runs of the benchmark comes to."""

from dataclasses import dataclass

from resnet_deploy.bench.accuracy import Flips
from resnet_deploy.bench.intervals import Interval
from resnet_deploy.bench.records import Way
from resnet_deploy.bench.verdicts import Verdict


@dataclass(frozen=True)
class WayComparison:
    """One way of calling one engine, in both runs; ratios are new over old.

    Attributes:
        way: How it was called.
        throughput: Of images per second: above 1 is better. None where calls were paced.
        p50: Of the median latency: above 1 is worse.
        p99: Of the 99th percentile, above 1 is worse, with a 95 % interval; None where there were too few calls.
        rounds: How many each run had.
        verdict: ``worse`` if throughput or p50 is.
        regression: Whether a figure is worse and its estimate beyond the tolerance.
        uncertain: Whether a slowdown as large as the tolerance is neither ruled out nor would have been seen.
    """

    way: Way
    throughput: Interval | None
    p50: Interval
    p99: Interval | None
    rounds: tuple[int, int]
    verdict: Verdict
    regression: bool
    uncertain: bool = False


@dataclass(frozen=True)
class AnswerComparison:
    """Answers of both runs on the same images.

    Attributes:
        images: How many.
        agreement: Share with the same best class in both.
        flips: Images gained and lost; None without labels.
        change: New top-1 less the old, with its 95 % interval; None without labels.
        verdict: Of McNemar's exact test; None without labels.
        regression: Whether answers got worse, and top-1 by more than is put up with.
    """

    images: int
    agreement: float
    flips: Flips | None = None
    change: Interval | None = None
    verdict: Verdict | None = None
    regression: bool = False


@dataclass(frozen=True)
class EngineComparison:
    """One engine in both runs.

    Attributes:
        old, new: Its names.
        control: What its times are relative to; empty for nothing.
        same_file: Whether the engine's file is the same to the bit.
        size_bytes: Of the engine, old and new.
        ways: In the order of the new run.
        answers: None where the runs did not answer the same images.
    """

    old: str
    new: str
    control: str
    same_file: bool
    size_bytes: tuple[int, int]
    ways: tuple[WayComparison, ...]
    answers: AnswerComparison | None = None


@dataclass(frozen=True)
class Missing:
    """An engine that ran in the old run and not in the new one, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Control:
    """What speed was relative to.

    Attributes:
        name: Of the engine that is the same in both runs; empty for none.
        why: Why there is none; empty if there is one.
        moved: Its own new time over the old one: what the machine did between the runs, or would be taken to have done.
    """

    name: str = ""
    why: str = ""
    moved: Interval | None = None


@dataclass(frozen=True)
class Comparison:
    """A new run against an old one.

    Attributes:
        old, new: When they were made.
        differences: Of their conditions; empty if they are alike.
        control: What speed was relative to.
        confidence: Of each interval of throughput and p50, such that all of them hold together with 95 %; the verdicts
            on answers hold together with another 95 %.
        tolerance: Slowdown that was put up with, as a share.
        engines: In the order of the old run, or as they were named.
        missing: Engines of the old run that the new one lacks.
        warnings: Of each run's machine.
    """

    old: str
    new: str
    differences: tuple[str, ...]
    control: Control
    confidence: float
    tolerance: float
    engines: tuple[EngineComparison, ...]
    missing: tuple[Missing, ...]
    warnings: tuple[str, ...] = ()

    @property
    def slower(self) -> tuple[str, ...]:
        """Name the engines that got slower beyond what is put up with."""
        return tuple(one.new for one in self.engines if any(way.regression for way in one.ways))

    @property
    def answer_worse(self) -> tuple[str, ...]:
        """Name the engines whose answers got worse beyond what is put up with."""
        return tuple(one.new for one in self.engines if one.answers is not None and one.answers.regression)

    @property
    def uncertain(self) -> tuple[str, ...]:
        """Name the engines that may be slower beyond what is put up with, for all that the runs can tell."""
        return tuple(one.new for one in self.engines if any(way.uncertain for way in one.ways))

    @property
    def regressions(self) -> tuple[str, ...]:
        """Say what got worse beyond what is put up with."""
        return (
            *(f"{name} is slower" for name in self.slower),
            *(f"{name} answers worse" for name in self.answer_worse),
            *(f"{one.name} did not run" for one in self.missing),
        )
