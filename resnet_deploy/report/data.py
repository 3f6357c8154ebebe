"""The figures that tables and pages show, as plain values under stable names: what ``--json`` prints.

Seconds, bytes and shares, not milliseconds, megabytes and percent; a figure that cannot be had is null. Everything here
is computed from a record by the functions that the tables call.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec

from resnet_deploy.bench import statistics
from resnet_deploy.bench.evaluation_records import EvaluationRecord
from resnet_deploy.bench.records import BenchRecord, Samples
from resnet_deploy.bench.statistics import PERCENTS, Summary

if TYPE_CHECKING:
    from resnet_deploy.parity import Ladder


def bench_data(record: BenchRecord) -> dict[str, Any]:
    """Reduce a record of `bench` to its figures: one entry per engine, in it one per way of calling."""
    return {
        "kind": "bench",
        "created": record.created,
        "architecture": record.architecture,
        "reference": record.reference or None,
        "images": None if record.dataset is None else record.dataset.images,
        "engines": [_engine(row, record.reference) for row in statistics.summarize(record)],
        "warnings": list(statistics.machine_warnings(record.machine)),
    }


def evaluation_data(record: EvaluationRecord) -> dict[str, Any]:
    """Reduce a record of `evaluate` to its figures; agreement and what follows are against the first engine."""
    first = record.engines[0]
    engines = []
    for engine in record.engines:
        reference = None if engine is first else first.outputs
        counted = statistics.accuracy(engine.outputs, reference, record.dataset)
        figures = _accuracy(counted, is_reference=engine is first)
        engines.append({"name": engine.name, "precision": engine.precision, "accuracy": figures})
    return {
        "kind": "evaluate",
        "created": record.created,
        "architecture": record.architecture,
        "reference": first.name,
        "images": record.dataset.images,
        "skipped": list(record.dataset.skipped),
        "engines": engines,
    }


def ladder_data(ladder: "Ladder") -> dict[str, Any]:
    """Write a parity ladder with the layer that diverges; null where none does."""
    diverging = ladder.diverging
    return {**asdict(ladder), "diverging": None if diverging is None else diverging.layer}


def _engine(row: Summary, reference: str) -> dict[str, Any]:
    engine = row.engine
    counted = row.accuracy
    return {
        "name": engine.name,
        "backend": engine.backend,
        "precision": engine.precision,
        "role": engine.role,
        "size_bytes": engine.size_bytes,
        "sha256": engine.sha256,
        "accuracy": None if counted is None else _accuracy(counted, is_reference=engine.name == reference),
        "accuracy_verdict": row.accuracy_verdict,
        "speedup": None if row.speedup is None else asdict(row.speedup),
        "speed_verdict": row.speed_verdict,
        "ways": [_way(samples) for samples in engine.latency],
        "warnings": list(row.warnings),
    }


def _way(samples: Samples) -> dict[str, Any]:
    paced = samples.offered is not None
    return {
        **msgspec.structs.asdict(samples.way),
        "calls": len(samples.seconds),
        "rounds": len(set(samples.rounds)),
        "latency_s": {f"p{percent:g}": statistics.percentile(samples.seconds, percent) for percent in PERCENTS},
        "images_per_s": None if paced else asdict(statistics.throughput_interval(samples)),
    }


def _accuracy(counted: statistics.Accuracy, *, is_reference: bool) -> dict[str, Any]:
    """Write what was counted; what compares the reference with itself says nothing, and is null."""
    figures = asdict(counted)
    if is_reference:
        figures |= dict.fromkeys(("top1_change", "agreement", "sqnr_db", "max_difference", "flips"))
    for name in ("top1", "top5"):
        share = figures[name]
        figures[name] = None if share is None else asdict(statistics.share_interval(share, counted.images))
    return figures
