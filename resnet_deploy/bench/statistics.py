"""One row of figures for each engine of a record; nothing here measures or stores.

``headline`` chooses the samples. The figures themselves are made in ``intervals`` (times and rates), ``pairs``
(speed-ups), ``accuracy`` (answers), ``verdicts`` and ``doubts`` (reasons to distrust them), and those that reports show
are named here too.

Verdicts share their confidence: where k engines are compared with the reference, each verdict on speed may err in
0.05 / k of all runs (Bonferroni), so that all of them together hold in 95 %; likewise those on answers.
"""

import math
from dataclasses import dataclass
from typing import Final

from resnet_deploy.bench.accuracy import Accuracy, Flips, accuracy, share_interval
from resnet_deploy.bench.doubts import (
    machine_warnings,
    spread_warnings,
    thin_percentiles,
    thin_warnings,
)
from resnet_deploy.bench.headline import best_samples, headline_scope, like_samples, smallest_samples, way_order
from resnet_deploy.bench.intervals import Interval, percentile, percentile_interval, throughput, throughput_interval
from resnet_deploy.bench.pairs import speedup_interval
from resnet_deploy.bench.records import BenchRecord, DatasetRecord, EngineRecord, Samples
from resnet_deploy.bench.verdicts import (
    FEWEST_ROUNDS,
    LEVEL,
    SpeedVerdict,
    Verdict,
    accuracy_verdict,
    speed_verdict,
)
from resnet_deploy.bench_spec import Scope

__all__ = [
    "PERCENTS",
    "Accuracy",
    "Flips",
    "Interval",
    "Summary",
    "accuracy",
    "best_samples",
    "headline_scope",
    "machine_warnings",
    "percentile",
    "percentile_interval",
    "share_interval",
    "smallest_samples",
    "speedup_interval",
    "summarize",
    "thin_percentiles",
    "throughput",
    "throughput_interval",
    "way_order",
]

PERCENTS: Final = (50, 90, 95, 99, 99.9)  # the percentiles of latency that a report may show


@dataclass(frozen=True)
class Summary:
    """One row of the table.

    Attributes:
        engine: The raw record.
        latency: Samples that latencies are quoted for.
        best: Samples of the best throughput; None where engines have no scope in common to compare it in.
        compared: The reference's samples and this engine's that the speed-up is computed from; None without any.
        speedup: Throughput over the reference's, with an interval of confidence 1 - ``level``; None for the reference
            itself, without one, or where they were not called alike.
        accuracy: None when the run had no images.
        warnings: Reasons to distrust the figures, one line each.
        level: Chance of error that each verdict may have, for the verdicts on one question to have 5 % together.
        speed_verdict: Whether it is faster than the reference; None without a speed-up.
        accuracy_verdict: Whether its answers are better than the reference's; None for the reference itself, without
            one, and without labels.
    """

    engine: EngineRecord
    latency: Samples
    best: Samples | None
    compared: tuple[Samples, Samples] | None
    speedup: Interval | None
    accuracy: Accuracy | None
    warnings: tuple[str, ...]
    level: float = LEVEL
    speed_verdict: SpeedVerdict | None = None
    accuracy_verdict: Verdict | None = None

    @property
    def throughput(self) -> float:
        """Images per second of ``best``; NaN without one."""
        return math.nan if self.best is None else throughput(self.best)


def summarize(record: BenchRecord) -> tuple[Summary, ...]:
    """Reduce every engine of ``record`` to a row, in the record's order."""
    scope = headline_scope(record.engines)
    reference = next((engine for engine in record.engines if engine.name == record.reference), None)
    others = len(record.engines) - 1 if reference is not None else 0
    common = _Common(reference, scope, record.dataset, LEVEL / max(1, others))
    return tuple(_summary(engine, common) for engine in record.engines)


@dataclass(frozen=True)
class _Common:
    """What the rows of a record share; ``level`` is what the number of engines leaves to each of them (Bonferroni)."""

    reference: EngineRecord | None
    scope: Scope | None
    dataset: DatasetRecord | None
    level: float


def _summary(engine: EngineRecord, common: _Common) -> Summary:
    reference, scope, dataset = common.reference, common.scope, common.dataset
    first = smallest_samples(engine, scope)
    best = None if scope is None else best_samples(engine, scope)
    compared = speedup = counted = right = None
    if reference is not None and scope is not None and engine.name != reference.name:
        compared = like_samples(reference, engine, scope)
    if compared is not None:
        speedup = speedup_interval(*compared, common.level)
    if engine.outputs is not None and dataset is not None:
        counted = accuracy(engine.outputs, reference.outputs if reference is not None else None, dataset)
        if counted.flips is not None and reference is not None and engine.name != reference.name:
            right = accuracy_verdict(counted.flips, common.level)
    return Summary(
        engine=engine,
        latency=first,
        best=best,
        compared=compared,
        speedup=speedup,
        accuracy=counted,
        warnings=tuple(_warnings(engine, first, best, counted)),
        level=common.level,
        speed_verdict=None if speedup is None else speed_verdict(speedup),
        accuracy_verdict=right,
    )


def _warnings(engine: EngineRecord, first: Samples, best: Samples | None, counted: Accuracy | None) -> list[str]:
    """Collect what makes the figures of one row hard to trust."""
    warnings = [*thin_warnings(engine.latency), *spread_warnings(first)]
    quoted = first if best is None else best
    if quoted is not first:
        warnings += spread_warnings(quoted)
    if (rounds := len(set(quoted.rounds))) < FEWEST_ROUNDS:
        noun = "round" if rounds == 1 else "rounds"
        warnings.append(
            f"intervals of times and rates rest on {rounds} {noun} at batch {quoted.batch}: they are too narrow"
        )
    if engine.in_sample:
        warnings.append("its INT8 form was chosen on these very images: measure accuracy on others")
    if counted is not None and counted.not_finite:
        warnings.append(f"{counted.not_finite} of {counted.images} images gave logits that are NaN or infinite")
    return warnings
