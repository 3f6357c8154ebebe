"""Two runs of the benchmark against each other: what got better, what got worse, what cannot be told apart.

Confidence is of all that is said of speed together: with k intervals in it, each has a confidence of 1 - 0.05 / k
(Bonferroni), so that a run is not called slower for the sake of one of its twenty figures. What is said of answers, by
one test for each engine, has another 95 %: the two are different questions. A figure is worse if its interval lies on
the slow side of 1, and it is a regression if, besides, its estimate is beyond the tolerance. The p99 is shown and never
decides: the slowest hundredth of the calls is mostly the machine's.

That no difference was found is worth something only where one would have been: a figure is too uncertain if its
interval neither rules out a slowdown as large as the tolerance, nor is so narrow that it would have shown one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from resnet_deploy.bench import comparability
from resnet_deploy.bench.accuracy import agreement, change_interval, count_flips, hits
from resnet_deploy.bench.comparison import (
    AnswerComparison,
    Comparison,
    Control,
    EngineComparison,
    Missing,
    WayComparison,
)
from resnet_deploy.bench.doubts import machine_warnings
from resnet_deploy.bench.intervals import Interval
from resnet_deploy.bench.records import BenchRecord, EngineRecord
from resnet_deploy.bench.slowdown import EngineRun, Pace, common_ways, drift, figures, pace, slowdown, tail_slowdown
from resnet_deploy.bench.verdicts import LEVEL, NO_DIFFERENCE, accuracy_verdict, hides, slowdown_verdict
from resnet_deploy.errors import SpecError

NONE: Final = "none"
_Pair = tuple[EngineRecord, EngineRecord]


@dataclass(frozen=True)
class CompareSpec:
    """What is compared, and what is put up with.

    Attributes:
        engines: Pairs of an old name and a new one; empty for all engines of the old run but the control and peers.
        control: Name of the engine that speed is relative to, ``none``, or empty for the reference of both runs.
        tolerance: Slowdown that is put up with, as a share.
        accuracy_tolerance: Loss of top-1 that is put up with, as a share of the images.
        anyway: Compare runs though their conditions are unlike.

    Raises:
        SpecError: If a tolerance is out of range.
    """

    engines: tuple[tuple[str, str], ...] = ()
    control: str = ""
    tolerance: float = 0.02
    accuracy_tolerance: float = 0.0
    anyway: bool = False

    def __post_init__(self) -> None:
        for value in (self.tolerance, self.accuracy_tolerance):
            if not 0 <= value < 1:
                raise SpecError(f"a tolerance of {value * 100:g} %", hint="give at least 0 and less than 100")


def compare(old: BenchRecord, new: BenchRecord, spec: CompareSpec) -> Comparison:
    """Compare a new run with an old one.

    Raises:
        SpecError: If the runs are unlike and may not be compared anyway, or have no engine in common that was called in
            the same way, or ``spec`` names what is not there.
    """
    unlike = comparability.differences(old, new)
    if unlike and not spec.anyway:
        raise SpecError(
            f"the runs are not alike: {'; '.join(unlike)}",
            hint="run `bench` again under like conditions, or compare them with --anyway",
        )
    control, why = _find_control(old, new, spec.control)
    pairs, missing = _find_pairs(old, new, spec, control)
    intervals = sum(len(figures(samples)) for pair in pairs for samples, _ in common_ways(*pair))
    if pairs and not intervals:
        raise SpecError("no engine was called in the same way in both runs", hint="run `bench` with the same --batches")
    levels = _Levels(LEVEL / max(1, intervals), LEVEL / max(1, len(pairs)))
    beside = None if control is None else _Beside.of(control)
    judge = _Judge(old, new, spec, beside, levels)
    return Comparison(
        old=old.created,
        new=new.created,
        differences=unlike,
        control=Control(why=why) if beside is None else beside.described(),
        confidence=1 - levels.speed,
        tolerance=spec.tolerance,
        engines=tuple(judge.engine(*pair) for pair in pairs),
        missing=missing,
        warnings=(
            *(f"the old run: {text}" for text in machine_warnings(old.machine)),
            *(f"the new run: {text}" for text in machine_warnings(new.machine)),
        ),
    )


@dataclass(frozen=True)
class _Levels:
    """What the whole comparison leaves to each interval of speed and to each test of answers."""

    speed: float
    answers: float


@dataclass(frozen=True)
class _Beside:
    """The control in both runs, and its pace there."""

    engines: _Pair
    paces: tuple[Pace, Pace]

    @classmethod
    def of(cls, engines: _Pair) -> "_Beside":
        """Take its pace in the ways that both runs called it."""
        old, new = zip(*common_ways(*engines), strict=True)
        return cls(engines, (pace(old), pace(new)))

    def described(self) -> Control:
        return Control(name=self.engines[0].name, moved=drift(*self.paces, LEVEL))


@dataclass(frozen=True)
class _Judge:
    """Compares one engine after the other."""

    old: BenchRecord
    new: BenchRecord
    spec: CompareSpec
    beside: _Beside | None
    levels: _Levels

    def engine(self, old: EngineRecord, new: EngineRecord) -> EngineComparison:
        """Compare one engine."""
        # What slows a CPU down says nothing of a GPU.
        beside = self.beside
        if beside is not None and any(_processor(one) != _processor(old) for one in (*beside.engines, new)):
            beside = None
        paces = (None, None) if beside is None else beside.paces
        return EngineComparison(
            old=old.name,
            new=new.name,
            control="" if beside is None else beside.engines[0].name,
            same_file=old.sha256 == new.sha256,
            size_bytes=(old.size_bytes, new.size_bytes),
            ways=tuple(
                self._way(EngineRun(before, paces[0]), EngineRun(after, paces[1]))
                for before, after in common_ways(old, new)
            ),
            answers=self._answers(old, new),
        )

    def _way(self, old: EngineRun, new: EngineRun) -> WayComparison:
        times = {figure: slowdown(old, new, figure, self.levels.speed) for figure in figures(old.samples)}
        verdicts = {figure: slowdown_verdict(time) for figure, time in times.items()}
        verdict = next((one for one in ("worse", "better") if one in verdicts.values()), verdicts["p50"])
        return WayComparison(
            way=old.samples.way,
            throughput=_inverse(times["throughput"]) if "throughput" in times else None,
            p50=times["p50"],
            p99=tail_slowdown(old, new),
            rounds=(len(set(old.samples.rounds)), len(set(new.samples.rounds))),
            verdict=verdict,
            regression=any(
                verdicts[figure] == "worse" and time.value > 1 + self.spec.tolerance for figure, time in times.items()
            ),
            uncertain=any(
                verdicts[figure] == NO_DIFFERENCE and hides(time, self.spec.tolerance) for figure, time in times.items()
            ),
        )

    def _answers(self, old: EngineRecord, new: EngineRecord) -> AnswerComparison | None:
        if old.outputs is None or new.outputs is None or not comparability.same_images(self.old, self.new):
            return None
        dataset = self.new.dataset
        assert dataset is not None  # the images are the same
        images, alike = dataset.images, agreement(new.outputs, old.outputs)
        if not dataset.labels:
            return AnswerComparison(images, alike)
        flips = count_flips(hits(old.outputs, dataset), hits(new.outputs, dataset))
        change, verdict = change_interval(flips, images), accuracy_verdict(flips, self.levels.answers)
        regression = verdict == "worse" and -change.value > self.spec.accuracy_tolerance
        return AnswerComparison(images, alike, flips, change, verdict, regression)


def _find_control(old: BenchRecord, new: BenchRecord, name: str) -> tuple[_Pair | None, str]:
    """Find the engine that is the same in both runs, or say why there is none; one that was asked for must be."""
    wanted = name or old.reference
    if name == NONE:
        return None, "as was asked for"
    if not wanted or (not name and new.reference != wanted):
        return None, "the runs have no reference in common"
    pair = tuple(one for record in (old, new) for one in record.engines if one.name == wanted)
    why = ""
    if len(pair) != 2:
        why = f"not both runs have {wanted!r}"
    elif pair[0].sha256 != pair[1].sha256 or _processor(pair[0]) != _processor(pair[1]):
        why = f"{wanted!r} is not the same in both runs"
    elif not common_ways(pair[0], pair[1]):
        why = f"{wanted!r} was not called in the same way in both runs"
    if why and name:
        raise SpecError(why, hint="name an engine that did not change, or compare with --relative-to none")
    return (None, why) if why else ((pair[0], pair[1]), "")


def _find_pairs(
    old: BenchRecord, new: BenchRecord, spec: CompareSpec, control: _Pair | None
) -> tuple[list[_Pair], tuple[Missing, ...]]:
    """Pair the engines, and list those of the old run that did not run in the new one."""
    before, after = ({engine.name: engine for engine in record.engines} for record in (old, new))
    aside = {old.reference, control[0].name if control else ""}
    names = spec.engines or tuple(
        (one.name, one.name) for one in old.engines if one.role == "engine" and one.name not in aside
    )
    refused = {one.name: one.reason for one in new.not_run}
    pairs, missing = [], []
    for was, now in names:
        if was not in before:
            known = ", ".join(before)
            raise SpecError(f"the old run has no engine {was!r}", hint=f"it has {known}")
        if now in after:
            pairs.append((before[was], after[now]))
        else:
            missing.append(Missing(now, refused.get(now, "the new run does not have it")))
    if not pairs and not missing:
        raise SpecError("the old run has no engine to compare", hint="name one with --engine, such as its reference")
    return pairs, tuple(missing)


def _processor(engine: EngineRecord) -> str:
    """What an engine runs on; backends have their own words for the CPU."""
    return "cpu" if "cpu" in engine.device.lower() else engine.device


def _inverse(ratio: Interval) -> Interval:
    """Of times, the ratio of rates."""
    return Interval(1 / ratio.value, 1 / ratio.high, 1 / ratio.low if ratio.low else float("inf"))


def names_of(pairs: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Split ``OLD=NEW`` into two names; a single name stands for both."""
    return tuple((old, new or old) for old, _, new in (pair.partition("=") for pair in pairs))
