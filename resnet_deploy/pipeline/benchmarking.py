"""PyTorch and engines of one model, side by side in one run, into a record."""

import contextlib
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from resnet_deploy import environment
from resnet_deploy.bench.evaluate import evaluate
from resnet_deploy.bench.measure import WARMUP_CALLS, Entrant, measure_in_turns
from resnet_deploy.bench.records import BenchRecord, DatasetRecord, EngineRecord, Outputs, Samples, write_record
from resnet_deploy.datasets import BatchReader, find_dataset
from resnet_deploy.errors import DataError
from resnet_deploy.pipeline.diagnosing import search_steps, worst_histograms
from resnet_deploy.pipeline.lineup import EVALUATION_BATCH, BenchInputs, Candidate, Lineup, open_lineup
from resnet_deploy.pipeline.matching import open_bundles
from resnet_deploy.pipeline.references import REFERENCE
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.runners.null import NullRunner
from resnet_deploy.specs import BatchRange, BenchSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resnet_deploy.protocols import Array, Progress

NULL: Final = "null"


def bench(inputs: BenchInputs, spec: BenchSpec, *, threads: int, progress: "Progress") -> BenchRecord:
    """Open every engine, measure all in turns, collect their answers on the data.

    Raises:
        UserError: If the engines are of several models, one was altered, or data or reference are at fault.
    """
    bundles, card = open_bundles(inputs.engines, "bench", (REFERENCE, NULL))
    reader = None
    if inputs.data is not None:
        dataset = find_dataset(inputs.data, card, labels_file=inputs.labels_file)
        reader = BatchReader(dataset, card.preprocess, EVALUATION_BATCH, skip_corrupt=inputs.skip_corrupt)
    with contextlib.ExitStack() as stack:
        with progress.task("opening the engines"):
            opening = open_lineup(bundles, inputs, spec, threads or environment.compute_threads())
            lineup = stack.enter_context(opening)
        return _run(lineup, reader, spec, progress)


def save(record: BenchRecord, folder: Path) -> Path:
    """Write ``record`` into ``folder`` under a name made of the model and the time; return the path."""
    stamp = record.created.replace(":", "").replace("-", "")
    path = folder / f"{record.architecture}-{stamp}.json"
    write_record(record, path)
    return path


def _run(lineup: Lineup, reader: BatchReader | None, spec: BenchSpec, progress: "Progress") -> BenchRecord:
    outputs: dict[str, Outputs] = {}
    if reader is None:
        images = synthetic_images(lineup.card.preprocess, max(spec.batches))
    else:
        evaluation = _Evaluation(reader)
        outputs = evaluate(lineup.entrants, evaluation.batches(progress), lineup.reference)
        images = evaluation.first
    null = Entrant(NULL, NullRunner(lineup.card, BatchRange(1, 1, max(spec.batches))))
    latency = measure_in_turns([*lineup.entrants, null], images, spec, progress)
    with progress.task("hashing the data set"):
        dataset = None if reader is None else _dataset_record(reader)
        in_sample = [reader is not None and one.was_fitted_to(reader.dataset) for one in lineup.candidates]
    return BenchRecord(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
        environment=environment.collect(),
        architecture=lineup.card.architecture,
        weights_sha256=lineup.card.weights_sha256,
        preprocess=lineup.card.preprocess,
        threads=lineup.threads,
        warmup_calls=WARMUP_CALLS,
        seed=spec.seed,
        dataset=dataset,
        harness=latency[NULL],
        engines=tuple(
            msgspec.structs.replace(_engine_record(candidate, latency, outputs), in_sample=seen)
            for candidate, seen in zip(lineup.candidates, in_sample, strict=True)
        ),
        reference=lineup.reference,
        not_run=lineup.not_run,
    )


def _engine_record(
    candidate: Candidate, latency: dict[str, tuple[Samples, ...]], outputs: dict[str, Outputs]
) -> EngineRecord:
    name, bundle = candidate.entrant.name, candidate.bundle
    return EngineRecord(
        name=name,
        backend=candidate.backend,
        precision=candidate.precision,
        size_bytes=candidate.size_bytes,
        sha256=candidate.sha256,
        device=candidate.entrant.runner.device,
        latency=latency[name],
        outputs=outputs.get(name),
        histograms=worst_histograms(bundle) if bundle is not None else (),
        search=search_steps(bundle) if bundle is not None else (),
        role=candidate.role,
        settings=candidate.settings,
        notes=tuple(getattr(candidate.entrant.runner, "notes", ())),
    )


class _Evaluation:
    """Hands batches on and keeps the first, to time the engines on real images."""

    def __init__(self, reader: BatchReader) -> None:
        self.reader = reader
        self._first: Array | None = None

    def batches(self, progress: "Progress") -> "Iterator[Array]":
        for batch in progress.track(self.reader, "evaluating", len(self.reader)):
            if self._first is None:
                self._first = batch.images
            yield batch.images

    @property
    def first(self) -> "Array":
        if self._first is None:
            raise DataError(f"{self.reader.dataset.root}: every image is damaged", hint="give --data sound images")
        return self._first


def _dataset_record(reader: BatchReader) -> DatasetRecord:
    dataset = reader.dataset
    skipped = set(reader.skipped)
    kept = [index for index, path in enumerate(dataset.paths) if path not in skipped]
    return DatasetRecord(
        name=dataset.root.name,
        digest=dataset.digest,
        images=len(kept),
        labels=tuple(dataset.labels[index] for index in kept) if dataset.labels else (),
        labels_note=dataset.labels_note,
        skipped=reader.skipped_names,
    )
