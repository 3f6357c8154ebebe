"""Statistics computed from raw samples; nothing here measures or stores.

Percentiles are the smallest sample that at least p percent of the samples do not exceed (the nearest-rank definition):
a value that was really measured, never an interpolation between two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resnet_deploy.bench.records import BenchRecord, DatasetRecord, EngineRecord, Outputs, Samples


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Accuracy:
    """Answers counted against labels and against the reference; a share is None where it cannot be had.

    Attributes:
        images: How many were counted.
        top1: Share of images whose best class is the label.
        top5: Share of images whose label is among the five best.
        agreement: Share of images whose best class is the reference's.
        sqnr_db: Power of the reference's logits over the power of the difference, in decibels.
        max_difference: Largest absolute difference of a logit.
    """

    images: int
    top1: float | None
    top5: float | None
    agreement: float | None
    sqnr_db: float | None
    max_difference: float | None


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
        latency_speedup: The reference's median latency over this one's, at ``latency_batch``.
        accuracy: None when the run had no images.
        warnings: Reasons to distrust the figures, one line each.
    """

    engine: EngineRecord
    latency_batch: int
    p50_s: float
    p90_s: float
    p99_s: float
    best_batch: int
    throughput: float
    speedup: Interval | None
    latency_speedup: float | None
    accuracy: Accuracy | None
    warnings: tuple[str, ...]


def percentile(seconds: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile of at least one sample."""
    ordered = sorted(seconds)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def throughput(samples: Samples) -> float:
    """Images per second: images over the summed time of the calls."""
    return samples.batch * len(samples.seconds) / sum(samples.seconds)


def best_samples(engine: EngineRecord) -> Samples:
    """Samples of the batch size with the highest throughput."""
    return max(engine.latency, key=throughput)


def speedup_interval(reference: Samples, candidate: Samples, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Ratio of throughputs with a percentile-bootstrap interval over rounds.

    Whole rounds are resampled, for the calls within one share the machine's momentary state and engines take turns
    within a round: the ratio is paired by round. With a single round the calls are resampled instead.
    (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.)
    """
    ref_time, ref_images = _per_round(reference)
    cand_time, cand_images = _per_round(candidate)
    value = throughput(candidate) / throughput(reference)
    if len(ref_time) != len(cand_time):
        return Interval(value, value, value)
    picks = np.random.default_rng(seed).integers(0, len(ref_time), size=(resamples, len(ref_time)))
    ratios = (cand_images[picks].sum(1) / cand_time[picks].sum(1)) / (
        ref_images[picks].sum(1) / ref_time[picks].sum(1)
    )
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def accuracy(outputs: Outputs, reference: Outputs | None, dataset: DatasetRecord) -> Accuracy:
    """Count ``outputs`` against the labels of ``dataset`` and the answers of ``reference``."""
    count = len(outputs.top5)
    top1 = top5 = agreement = sqnr = None
    if dataset.labels:
        top1 = sum(best[0] == label for best, label in zip(outputs.top5, dataset.labels, strict=True)) / count
        top5 = sum(label in best for best, label in zip(outputs.top5, dataset.labels, strict=True)) / count
    if reference is not None:
        pairs = zip(outputs.top5, reference.top5, strict=True)
        agreement = sum(mine[0] == theirs[0] for mine, theirs in pairs) / count
    if outputs.noise:
        noise, signal = sum(outputs.noise), sum(outputs.signal)
        sqnr = math.inf if noise == 0 else 10 * math.log10(signal / noise)
    return Accuracy(count, top1, top5, agreement, sqnr, max(outputs.max_difference, default=None))


def summarize(record: BenchRecord) -> tuple[Summary, ...]:
    """Reduce every engine of ``record`` to a row, in the record's order."""
    reference = next((engine for engine in record.engines if engine.name == record.reference), None)
    return tuple(_summary(engine, reference, record.dataset) for engine in record.engines)


def stability_warnings(samples: Samples) -> tuple[str, ...]:
    """Say what makes latencies hard to trust: too few of them, or a wide or drifting spread."""
    seconds, warnings = samples.seconds, []
    p50, p99 = percentile(seconds, 50), percentile(seconds, 99)
    if len(seconds) < 100:
        warnings.append(f"p99 of {len(seconds)} calls at batch {samples.batch} is one of its two slowest calls")
    if p99 > 2 * p50:
        warnings.append(f"unsteady at batch {samples.batch}: p99 is {p99 / p50:.1f} × p50")
    half = len(seconds) // 2
    if half >= 10:
        drift = percentile(seconds[half:], 50) / percentile(seconds[:half], 50) - 1
        if abs(drift) > 0.1:
            warnings.append(f"drifting at batch {samples.batch}: the second half is {drift:+.0%} against the first")
    return tuple(warnings)


def _summary(engine: EngineRecord, reference: EngineRecord | None, dataset: DatasetRecord | None) -> Summary:
    first = min(engine.latency, key=lambda samples: samples.batch)
    best = best_samples(engine)
    speedup = latency_speedup = None
    if reference is not None:
        speedup = speedup_interval(best_samples(reference), best)
        same = [samples for samples in reference.latency if samples.batch == first.batch]
        if same:
            latency_speedup = percentile(same[0].seconds, 50) / percentile(first.seconds, 50)
    counted = None
    if engine.outputs is not None and dataset is not None:
        counted = accuracy(engine.outputs, reference.outputs if reference is not None else None, dataset)
    return Summary(
        engine=engine,
        latency_batch=first.batch,
        p50_s=percentile(first.seconds, 50),
        p90_s=percentile(first.seconds, 90),
        p99_s=percentile(first.seconds, 99),
        best_batch=best.batch,
        throughput=throughput(best),
        speedup=speedup,
        latency_speedup=latency_speedup,
        accuracy=counted,
        warnings=stability_warnings(first),
    )


def _per_round(samples: Samples) -> tuple["np.ndarray", "np.ndarray"]:
    seconds, rounds = np.asarray(samples.seconds), np.asarray(samples.rounds)
    groups = np.unique(rounds)
    if len(groups) == 1:
        return seconds, np.full(len(seconds), samples.batch)
    time = np.array([seconds[rounds == group].sum() for group in groups])
    images = np.array([samples.batch * np.count_nonzero(rounds == group) for group in groups])
    return time, images
