"""One row of figures for each engine of a record; nothing here measures or stores.

The figures themselves are made in ``intervals`` (times and rates), ``accuracy`` (answers), ``verdicts`` and ``doubts``
(reasons to distrust them), and those that reports show are named here too.
"""

from dataclasses import dataclass
from typing import Final

from resnet_deploy.bench.accuracy import Accuracy, Flips, accuracy, share_interval
from resnet_deploy.bench.doubts import (
    machine_warnings,
    spread_warnings,
    thin_percentiles,
    thin_warnings,
)
from resnet_deploy.bench.intervals import (
    Interval,
    percentile,
    percentile_interval,
    speedup_interval,
    throughput,
    throughput_interval,
)
from resnet_deploy.bench.records import BenchRecord, DatasetRecord, EngineRecord, Samples
from resnet_deploy.bench.verdicts import (
    FEWEST_ROUNDS,
    SpeedVerdict,
    Verdict,
    accuracy_verdict,
    speed_verdict,
)

__all__ = [
    "PERCENTS",
    "Accuracy",
    "Flips",
    "Interval",
    "Summary",
    "accuracy",
    "best_samples",
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
]

PERCENTS: Final = (50, 90, 95, 99, 99.9)  # the percentiles of latency that a report may show


@dataclass(frozen=True)
class Summary:
    """One row of the table.

    Attributes:
        engine: The raw record.
        latency_batch: The smallest batch size measured, which the latencies belong to.
        p50_s, p90_s, p99_s: Latency percentiles at ``latency_batch``.
        best_batch: Batch size of the best throughput.
        throughput: Images per second at ``best_batch``.
        speedup: Throughput over the reference's best, with its interval; None without a reference.
        accuracy: None when the run had no images.
        warnings: Reasons to distrust the figures, one line each.
        speed_verdict: Whether it is faster than the reference; None for the reference itself, or without one.
        accuracy_verdict: Whether its answers are better than the reference's; None likewise, and without labels.
    """

    engine: EngineRecord
    latency_batch: int
    p50_s: float
    p90_s: float
    p99_s: float
    best_batch: int
    throughput: float
    speedup: Interval | None
    accuracy: Accuracy | None
    warnings: tuple[str, ...]
    speed_verdict: SpeedVerdict | None = None
    accuracy_verdict: Verdict | None = None


def smallest_samples(engine: EngineRecord) -> Samples:
    """Samples that latencies are quoted for: one caller, arrays in host memory, calls not paced, the smallest batch.

    An engine that was never called like that is quoted in the way that comes closest, scope first.
    """
    return min(
        engine.latency,
        key=lambda one: (one.scope != "host", one.offered is not None, one.concurrency, one.batch, bool(one.graphs)),
    )


def best_samples(engine: EngineRecord) -> Samples:
    """Samples of the highest throughput, of any batch and any number of callers that call again once they have answers.

    Arrays in host memory only, where there are such: what lies inside the timer must be the same for all engines.
    """
    closed = [one for one in engine.latency if one.offered is None] or list(engine.latency)
    return max([one for one in closed if one.scope == "host"] or closed, key=throughput)


def summarize(record: BenchRecord) -> tuple[Summary, ...]:
    """Reduce every engine of ``record`` to a row, in the record's order."""
    reference = next((engine for engine in record.engines if engine.name == record.reference), None)
    return tuple(_summary(engine, reference, record.dataset) for engine in record.engines)


def _summary(engine: EngineRecord, reference: EngineRecord | None, dataset: DatasetRecord | None) -> Summary:
    first, best = smallest_samples(engine), best_samples(engine)
    speedup = counted = faster = right = None
    if reference is not None:
        speedup = speedup_interval(best_samples(reference), best)
    if engine.outputs is not None and dataset is not None:
        counted = accuracy(engine.outputs, reference.outputs if reference is not None else None, dataset)
    if speedup is not None and reference is not None and engine.name != reference.name:
        faster = speed_verdict(speedup, min(_rounds(best), _rounds(best_samples(reference))))
        if counted is not None and counted.flips is not None:
            right = accuracy_verdict(counted.flips)
    return Summary(
        engine=engine,
        latency_batch=first.batch,
        p50_s=percentile(first.seconds, 50),
        p90_s=percentile(first.seconds, 90),
        p99_s=percentile(first.seconds, 99),
        best_batch=best.batch,
        throughput=throughput(best),
        speedup=speedup,
        accuracy=counted,
        warnings=tuple(_warnings(engine, first, best, counted)),
        speed_verdict=faster,
        accuracy_verdict=right,
    )


def _warnings(engine: EngineRecord, first: Samples, best: Samples, counted: Accuracy | None) -> list[str]:
    """Collect what makes the figures of one row hard to trust."""
    warnings = [*thin_warnings(engine.latency), *spread_warnings(first)]
    if best is not first:
        warnings += spread_warnings(best)
    if (rounds := _rounds(best)) < FEWEST_ROUNDS:
        noun = "round" if rounds == 1 else "rounds"
        warnings.append(f"intervals rest on {rounds} {noun} at batch {best.batch}: they are too narrow")
    if engine.in_sample:
        warnings.append("its INT8 form was chosen on these very images: measure accuracy on others")
    if counted is not None and counted.not_finite:
        warnings.append(f"{counted.not_finite} of {counted.images} images gave logits that are NaN or infinite")
    return warnings


def _rounds(samples: Samples) -> int:
    return len(set(samples.rounds))
