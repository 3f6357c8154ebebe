"""PyTorch and engines of one model, side by side in one run, into a record."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from resnet_deploy import environment
from resnet_deploy.bench import record_files
from resnet_deploy.bench.loops import WARMUP_CALLS
from resnet_deploy.bench.machine import governor
from resnet_deploy.bench.measure import pace_notes
from resnet_deploy.bench.records import BenchRecord, DatasetRecord, EngineRecord, write_record
from resnet_deploy.bench_spec import BenchSpec
from resnet_deploy.datasets import BatchReader, find_dataset
from resnet_deploy.errors import SpecError
from resnet_deploy.names import readable
from resnet_deploy.pipeline.diagnosing import search_steps, worst_histograms
from resnet_deploy.pipeline.lineup import EVALUATION_BATCH, BenchInputs, Candidate, Lineup, open_lineup
from resnet_deploy.pipeline.matching import open_bundles
from resnet_deploy.pipeline.measuring import Measurements, measure
from resnet_deploy.pipeline.peers import choose_peers, with_peers
from resnet_deploy.pipeline.references import REFERENCE
from resnet_deploy.protocols import ProfilesLayers
from resnet_deploy.runners.null import NULL

if TYPE_CHECKING:
    from resnet_deploy.protocols import Progress


def bench(inputs: BenchInputs, spec: BenchSpec, *, threads: int, progress: "Progress") -> BenchRecord:
    """Open every engine, measure all in turns, collect their answers on the data.

    Raises:
        UserError: If the engines are of several models, one was altered, data or reference are at fault, or something
            is asked for that no engine here can do.
    """
    if "end_to_end" in spec.scopes and inputs.data is None:
        raise SpecError("the scope end_to_end begins with image files", hint="add --data DIR, or drop it")
    chosen = choose_peers(inputs)
    bundles, card = open_bundles(inputs.engines, "bench", (REFERENCE, NULL, *(peer.name for peer in chosen)))
    reader = None
    if inputs.data is not None:
        dataset = find_dataset(inputs.data, card, labels_file=inputs.labels_file)
        reader = BatchReader(dataset, card.preprocess, EVALUATION_BATCH, skip_corrupt=inputs.skip_corrupt)
    with contextlib.ExitStack() as stack:
        with progress.task("opening the engines"):
            opening = open_lineup(bundles, inputs, spec, threads or environment.compute_threads())
            lineup = stack.enter_context(opening)
        if chosen:
            lineup = stack.enter_context(with_peers(lineup, bundles, inputs, spec, progress))
        if inputs.layers and not any(isinstance(one.runner, ProfilesLayers) for one in lineup.entrants):
            raise SpecError("no engine here has a profiler of layers", hint="drop --layers")
        return _run(lineup, reader, spec, inputs.layers, progress)


def save(record: BenchRecord, folder: Path) -> Path:
    """Write ``record`` into ``folder`` under a name made of the model and the time; return the path."""
    path = folder / f"{record.architecture}-{record_files.file_stamp(record.created)}.json"
    write_record(record, path)
    return path


def _run(
    lineup: Lineup, reader: BatchReader | None, spec: BenchSpec, layers: bool, progress: "Progress"
) -> BenchRecord:
    measured = measure(lineup, reader, spec, layers, progress)
    with progress.task("hashing the data set"):
        dataset = None if reader is None else _dataset_record(reader)
        in_sample = [reader is not None and one.was_fitted_to(reader.dataset) for one in lineup.candidates]
    return BenchRecord(
        created=record_files.created_now(),
        environment=environment.collect(),
        architecture=lineup.card.architecture,
        weights_sha256=lineup.card.weights_sha256,
        preprocess=lineup.card.preprocess,
        threads=lineup.threads,
        warmup_calls=WARMUP_CALLS,
        seed=spec.seed,
        dataset=dataset,
        harness=measured.latency[NULL],
        engines=tuple(
            msgspec.structs.replace(_engine_record(candidate, measured, spec), in_sample=seen)
            for candidate, seen in zip(lineup.candidates, in_sample, strict=True)
        ),
        reference=lineup.reference,
        not_run=lineup.not_run,
        machine=measured.machine,
        decoding=measured.decoding,
        governor=governor(),
    )


def _engine_record(candidate: Candidate, measured: Measurements, spec: BenchSpec) -> EngineRecord:
    entrant, bundle = candidate.entrant, candidate.bundle
    name, layers = entrant.name, measured.layers.get(entrant.name)
    notes = [*entrant.notes, *entrant.remarks(spec), *pace_notes(measured.latency[name])]
    if layers is None and name in measured.layers:
        notes.append("no time of layers: its backend has no profiler that is asked here")
    return EngineRecord(
        name=name,
        backend=candidate.backend,
        precision=candidate.precision,
        size_bytes=candidate.size_bytes,
        sha256=candidate.sha256,
        device=entrant.runner.device,
        latency=measured.latency[name],
        outputs=measured.outputs.get(name),
        histograms=worst_histograms(bundle) if bundle is not None else (),
        search=search_steps(bundle) if bundle is not None else (),
        role=candidate.role,
        settings=candidate.settings,
        notes=tuple(dict.fromkeys(notes)),
        layers=layers,
    )


def _dataset_record(reader: BatchReader) -> DatasetRecord:
    dataset = reader.dataset
    skipped = set(reader.skipped)
    kept = [index for index, path in enumerate(dataset.paths) if path not in skipped]
    return DatasetRecord(
        name=readable(dataset.root.name),
        digest=dataset.digest,
        images=len(kept),
        labels=tuple(dataset.labels[index] for index in kept) if dataset.labels else (),
        labels_note=dataset.labels_note,
        skipped=reader.skipped_names,
    )
