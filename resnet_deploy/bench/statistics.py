"""Statistics computed from raw samples; nothing here measures or stores.

Percentiles are the smallest sample that at least p percent of the samples do not exceed (the nearest-rank definition):
a value that was really measured, never an interpolation between two.

Intervals of times are percentile-bootstrap intervals (Efron and Tibshirani, An Introduction to the Bootstrap, chapter
13). Whole rounds are resampled, for the calls within one share the machine's momentary state; with a single round, the
calls are. Intervals of shares need no resampling: Wilson's for one share, and the one of Agresti and Min (2005) for the
difference between two shares of the same images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from resnet_deploy.bench.records import BenchRecord, DatasetRecord, EngineRecord, Outputs, Samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_RESAMPLES: Final = 1000
_Z95: Final = 1.959964  # two-sided 95 % of the normal distribution
_FEWEST_ROUNDS: Final = 5  # with fewer, the bootstrap sees too few of the machine's states and comes out too narrow
_CALLS_FOR_P99: Final = 100


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Accuracy:
    """Answers counted against labels and against the reference; a figure is None where it cannot be had.

    Attributes:
        images: How many were counted.
        top1: Share of images whose best class is the label.
        top5: Share of images whose label is among the five best.
        top1_change: ``top1`` less the reference's, counted on the same images.
        agreement: Share of images whose best class is the reference's.
        sqnr_db: Power of the reference's logits over the power of the difference, in decibels; infinite where there is
            no difference, NaN where logits are not finite.
        max_difference: Largest absolute difference of a logit; NaN where logits are not finite.
        not_finite: How many images have logits that are NaN or infinite.
    """

    images: int
    top1: float | None
    top5: float | None
    top1_change: Interval | None
    agreement: float | None
    sqnr_db: float | None
    max_difference: float | None
    not_finite: int


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


def percentile(seconds: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile of at least one sample."""
    ordered = sorted(seconds)
    # Multiply first: 7 / 100 * 100 is 7.000000000000001, which would round up to rank 8.
    return ordered[max(0, math.ceil(percent * len(ordered) / 100) - 1)]


def throughput(samples: Samples) -> float:
    """Images per second: images over the wall clock, or over the summed time of calls that did not overlap."""
    return samples.batch * len(samples.seconds) / sum(samples.wall or samples.seconds)


def smallest_samples(engine: EngineRecord) -> Samples:
    """Samples of the smallest batch size, which latencies are quoted for."""
    return min(engine.latency, key=lambda samples: samples.batch)


def best_samples(engine: EngineRecord) -> Samples:
    """Samples of the batch size with the highest throughput."""
    return max(engine.latency, key=throughput)


def percentile_interval(samples: Samples, percent: float, *, resamples: int = _RESAMPLES, seed: int = 0) -> Interval:
    """Latency percentile with its interval; the rarer the percentile, the less its interval can be relied on."""
    rounds = _rounds(samples)
    picks = np.random.default_rng(seed).integers(0, len(rounds), size=(resamples, len(rounds)))
    values = [_nearest_rank(np.concatenate([rounds[pick] for pick in row]), percent) for row in picks]
    return _interval(percentile(samples.seconds, percent), np.array(values))


def throughput_interval(samples: Samples, *, resamples: int = _RESAMPLES, seed: int = 0) -> Interval:
    """Throughput with its interval."""
    rates = _resampled_throughput(samples, np.random.default_rng(seed), resamples)
    return _interval(throughput(samples), rates)


def speedup_interval(reference: Samples, candidate: Samples, *, resamples: int = _RESAMPLES, seed: int = 0) -> Interval:
    """Ratio of throughputs with its interval.

    Engines take turns within a round, so where both have the same rounds the same ones are drawn for both: what slowed
    a round down slowed both. Otherwise each is resampled by itself.
    """
    value = throughput(candidate) / throughput(reference)
    paired = len(set(candidate.rounds)) > 1 and set(candidate.rounds) == set(reference.rounds)
    ref_seed, cand_seed = (seed, seed) if paired else (seed, seed + 1)
    ref_rates = _resampled_throughput(reference, np.random.default_rng(ref_seed), resamples)
    cand_rates = _resampled_throughput(candidate, np.random.default_rng(cand_seed), resamples)
    return _interval(value, cand_rates / ref_rates)


def share_interval(share: float, count: int) -> Interval:
    """Wilson's interval of a share of ``count`` images."""
    square = _Z95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = _Z95 / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    # The limits are exactly 0 and 1 at the ends, which rounding misses.
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def accuracy(outputs: Outputs, reference: Outputs | None, dataset: DatasetRecord) -> Accuracy:
    """Count ``outputs`` against the labels of ``dataset`` and the answers of ``reference``."""
    count = len(outputs.top5)
    top1 = top5 = change = agreement = sqnr = max_difference = None
    if dataset.labels:
        hits = _hits(outputs, dataset)
        top1 = sum(hits) / count
        top5 = sum(label in best for best, label in zip(outputs.top5, dataset.labels, strict=True)) / count
        if reference is not None:
            change = _paired_change(_hits(reference, dataset), hits)
    if reference is not None:
        pairs = zip(outputs.top5, reference.top5, strict=True)
        agreement = sum(bool(mine) and mine[:1] == theirs[:1] for mine, theirs in pairs) / count
    if outputs.noise:
        sqnr = _decibels(_total(outputs.signal), _total(outputs.noise))
    differences = [math.nan if value is None else value for value in outputs.max_difference]
    not_finite = sum(not best for best in outputs.top5)
    if differences:
        not_finite = sum(not math.isfinite(value) for value in differences)  # counts the reference's too
        max_difference = math.nan if not_finite else max(differences)
    return Accuracy(count, top1, top5, change, agreement, sqnr, max_difference, not_finite)


def summarize(record: BenchRecord) -> tuple[Summary, ...]:
    """Reduce every engine of ``record`` to a row, in the record's order."""
    reference = next((engine for engine in record.engines if engine.name == record.reference), None)
    return tuple(_summary(engine, reference, record.dataset) for engine in record.engines)


def stability_warnings(samples: Samples) -> tuple[str, ...]:
    """Say what makes latencies hard to trust: too few of them, or a wide or drifting spread."""
    few = len(samples.seconds) < _CALLS_FOR_P99
    warning = f"p99 of {len(samples.seconds)} calls at batch {samples.batch} is simply the slowest call"
    return (*([warning] if few else []), *_spread_warnings(samples))


def _spread_warnings(samples: Samples) -> list[str]:
    """Say whether times spread widely or drift, which moves throughput as well as latency."""
    seconds, warnings = samples.seconds, []
    p50, p99 = percentile(seconds, 50), percentile(seconds, 99)
    if p99 > 2 * p50:
        warnings.append(f"unsteady at batch {samples.batch}: p99 is {p99 / p50:.1f} times p50")
    half = len(seconds) // 2
    if half >= 10:
        drift = percentile(seconds[half:], 50) / percentile(seconds[:half], 50) - 1
        if abs(drift) > 0.1:
            warnings.append(f"drifting at batch {samples.batch}: the second half is {drift:+.0%} against the first")
    return warnings


def _summary(engine: EngineRecord, reference: EngineRecord | None, dataset: DatasetRecord | None) -> Summary:
    first, best = smallest_samples(engine), best_samples(engine)
    speedup = None
    if reference is not None:
        speedup = speedup_interval(best_samples(reference), best)
    counted = None
    if engine.outputs is not None and dataset is not None:
        counted = accuracy(engine.outputs, reference.outputs if reference is not None else None, dataset)
    warnings = list(stability_warnings(first))
    if best is not first:
        warnings += _spread_warnings(best)
    thin = [str(one.batch) for one in engine.latency if one is not first and len(one.seconds) < _CALLS_FOR_P99]
    if thin:
        warnings.append(f"p99 at batch {', '.join(thin)} is simply the slowest of fewer than {_CALLS_FOR_P99} calls")
    if (rounds := len(set(best.rounds))) < _FEWEST_ROUNDS:
        noun = "round" if rounds == 1 else "rounds"
        warnings.append(f"intervals rest on {rounds} {noun} at batch {best.batch}: they are too narrow")
    if engine.in_sample:
        warnings.append("its INT8 form was chosen on these very images: measure accuracy on others")
    if counted is not None and counted.not_finite:
        warnings.append(f"{counted.not_finite} of {counted.images} images gave logits that are NaN or infinite")
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
        warnings=tuple(warnings),
    )


def _rounds(samples: Samples) -> "list[Floats]":
    """Group the times by round, in the order of the rounds; a single round falls apart into its calls."""
    seconds, rounds = np.asarray(samples.seconds), np.asarray(samples.rounds)
    numbers = np.unique(rounds)
    if len(numbers) == 1:
        return [seconds[call : call + 1] for call in range(len(seconds))]
    return [seconds[rounds == number] for number in numbers]


def _resampled_throughput(samples: Samples, rng: np.random.Generator, resamples: int) -> "Floats":
    """Throughput of each resample of the rounds."""
    rounds = _rounds(samples)
    time = np.array(samples.wall if len(samples.wall) == len(rounds) else [seconds.sum() for seconds in rounds])
    images = np.array([samples.batch * len(seconds) for seconds in rounds])
    picks = rng.integers(0, len(rounds), size=(resamples, len(rounds)))
    rates: Floats = images[picks].sum(1) / time[picks].sum(1)
    return rates


def _interval(value: float, resampled: "Floats") -> Interval:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _nearest_rank(seconds: "Floats", percent: float) -> float:
    """Percentile as ``percentile`` has it, without sorting all of a large array."""
    rank = max(0, math.ceil(percent * len(seconds) / 100) - 1)
    return float(np.partition(seconds, rank)[rank])


def _hits(outputs: Outputs, dataset: DatasetRecord) -> list[bool]:
    return [best[:1] == (label,) for best, label in zip(outputs.top5, dataset.labels, strict=True)]


def _paired_change(before: Sequence[bool], after: Sequence[bool]) -> Interval:
    """Difference of two shares of the same images; Agresti and Min add half an image to each of the four cells."""
    gained = sum(new and not old for old, new in zip(before, after, strict=True))
    lost = sum(old and not new for old, new in zip(before, after, strict=True))
    count = len(before) + 2
    centre = (gained - lost) / count
    half = _Z95 * math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / count) / count
    return Interval((gained - lost) / len(before), max(-1.0, centre - half), min(1.0, centre + half))


def _total(values: Sequence[float | None]) -> float:
    """Sum to NaN where a value is not finite."""
    return math.fsum(math.nan if value is None or not math.isfinite(value) else value for value in values)


def _decibels(signal: float, noise: float) -> float:
    if math.isnan(signal) or math.isnan(noise):
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
