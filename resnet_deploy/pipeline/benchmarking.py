"""PyTorch and engines of one model, side by side in one run, into a record."""

import contextlib
import glob
import itertools
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from resnet_deploy import artifact, environment
from resnet_deploy.bench.evaluate import evaluate
from resnet_deploy.bench.measure import WARMUP_CALLS, Entrant, measure_in_turns
from resnet_deploy.bench.records import BenchRecord, DatasetRecord, EngineRecord, NotRun, Outputs, Samples, write_record
from resnet_deploy.bundle import Bundle, find_bundles, open_bundle
from resnet_deploy.datasets import BatchReader, ImageDataset, find_dataset
from resnet_deploy.engine import check_fits
from resnet_deploy.errors import BackendError, BundleError, DataError, DeviceError, FileError, SpecError
from resnet_deploy.fleet import folders_beside
from resnet_deploy.pipeline.diagnosing import read_search, search_steps, worst_histograms
from resnet_deploy.pipeline.references import REFERENCE, find_reference, open_reference
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.runners import find_runner
from resnet_deploy.runners.null import NullRunner
from resnet_deploy.specs import BatchRange, BenchSpec, ModelCard

if TYPE_CHECKING:
    from resnet_deploy.protocols import Array, Progress

NULL: Final = "null"
_EVALUATION_BATCH: Final = 32


@dataclass(frozen=True)
class BenchInputs:
    """What a benchmark runs on.

    Attributes:
        engines: Bundles, all of one model.
        data: Folder of images; None times the engines on synthetic ones.
        labels_file: Labels of the images, where their folder does not tell.
        reference: Weights to run in PyTorch; None looks for them beside the engines.
        pytorch: Whether PyTorch runs at all; it is what the others are compared with.
        skip_corrupt: Leave damaged images out instead of stopping.

    Raises:
        SpecError: If something is asked for that would have no effect.
    """

    engines: tuple[Path, ...]
    data: Path | None = None
    labels_file: Path | None = None
    reference: Path | None = None
    pytorch: bool = True
    skip_corrupt: bool = False

    def __post_init__(self) -> None:
        if self.data is None and self.labels_file is not None:
            raise SpecError("--labels-file has no effect without --data", hint="add --data DIR, or drop it")
        if self.data is None and self.skip_corrupt:
            raise SpecError("--skip-corrupt has no effect without --data", hint="add --data DIR, or drop it")
        if self.reference is not None and not self.pytorch:
            raise SpecError("--reference has no effect with --no-pytorch", hint="drop one of the two")


@dataclass(frozen=True)
class _Candidate:
    """An entrant and what its record says of it; the reference has no bundle."""

    entrant: Entrant
    backend: str
    precision: str
    size_bytes: int
    sha256: str
    bundle: Bundle | None = None

    def was_fitted_to(self, dataset: ImageDataset) -> bool:
        """Whether a build that is given ``dataset`` would take just the images that this engine was built with.

        To calibrate on, or to choose on which layers to keep in floating point.
        """
        if self.bundle is None:
            return False
        spec, images = self.bundle.manifest.spec.calibration, self.bundle.manifest.chain.images
        if spec is not None and images != "" and dataset.subset(spec.max_images).digest == images:
            return True
        search = read_search(self.bundle)
        return search is not None and len(search.steps) > 1 and search.dataset_sha256 == dataset.digest


def find_engines(folder: Path) -> tuple[Path, ...]:
    """List the bundles in ``folder``.

    Raises:
        FileError: If there is none.
    """
    found = tuple(find_bundles(folder))
    if not found:
        raise FileError(
            f"no engines in {folder}/", hint="build one with `resnet-deploy build --fp16`, or name a bundle"
        )
    return found


def bench(inputs: BenchInputs, spec: BenchSpec, *, threads: int, progress: "Progress") -> BenchRecord:
    """Open every engine, measure all in turns, collect their answers on the data.

    Raises:
        UserError: If the engines are of several models, one was altered, or data or reference are at fault.
    """
    # A relative path such as `.` has no name to appear under.
    bundles = [open_bundle(path if path.name not in ("", "..") else path.resolve()) for path in inputs.engines]
    require_distinct_names(bundles)
    card = common_card(bundles)
    reader = None
    if inputs.data is not None:
        dataset = find_dataset(inputs.data, card, labels_file=inputs.labels_file)
        reader = BatchReader(dataset, card.preprocess, _EVALUATION_BATCH, skip_corrupt=inputs.skip_corrupt)
    threads = threads or environment.compute_threads()
    with contextlib.ExitStack() as stack:
        with progress.task("opening the engines"):
            candidates, not_run = _open_all(bundles, inputs, card, spec, threads)
        for candidate in candidates:
            stack.callback(candidate.entrant.runner.close)
        if not candidates:
            raise BackendError(
                f"none of the engines can run here: {not_run[0].name}: {not_run[0].reason}",
                hint="see `resnet-deploy doctor`",
            )
        _require_common_batch(candidates, spec)
        return _run(_Lineup(tuple(candidates), tuple(not_run), card, threads), reader, spec, progress)


def save(record: BenchRecord, folder: Path) -> Path:
    """Write ``record`` into ``folder`` under a name made of the model and the time; return the path."""
    stamp = record.created.replace(":", "").replace("-", "")
    path = folder / f"{record.architecture}-{stamp}.json"
    write_record(record, path)
    return path


@dataclass(frozen=True)
class _Lineup:
    """What takes part in a run: engines that can, those that cannot, their model and the CPU threads each gets."""

    candidates: tuple[_Candidate, ...]
    not_run: tuple[NotRun, ...]
    card: ModelCard
    threads: int

    @property
    def entrants(self) -> list[Entrant]:
        return [candidate.entrant for candidate in self.candidates]

    @property
    def reference(self) -> str:
        return REFERENCE if self.candidates[0].entrant.name == REFERENCE else ""


def _run(lineup: _Lineup, reader: BatchReader | None, spec: BenchSpec, progress: "Progress") -> BenchRecord:
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
    candidate: _Candidate, latency: dict[str, tuple[Samples, ...]], outputs: dict[str, Outputs]
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


def _require_common_batch(candidates: Sequence[_Candidate], spec: BenchSpec) -> None:
    """Refuse batch sizes of which an engine takes none: it would be left out of the timing unnoticed."""
    for candidate in candidates:
        taken = candidate.entrant.runner.batch
        if not any(taken.min <= batch <= taken.max for batch in spec.batches):
            raise SpecError(
                f"{candidate.entrant.name} takes batches of {taken.min} to {taken.max}, none of which is measured",
                hint=f"add one to --batches, such as --batches {taken.min}",
            )


def require_distinct_names(bundles: Sequence[Bundle]) -> None:
    """Refuse engines that the record could not tell apart from each other, the reference or the harness."""
    names = [REFERENCE, NULL, *(bundle.path.name for bundle in bundles)]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"more than one engine would appear as {name!r}", hint="name each once, or rename a folder")


def common_card(bundles: Sequence[Bundle], command: str = "bench") -> ModelCard:
    """Return the card that all bundles share; engines of different models have nothing to compare.

    Raises:
        SpecError: If they share none; the hint has a ``command`` for each model.
    """
    first = bundles[0]
    for other in bundles[1:]:
        for field, mine, theirs in (
            ("weights_sha256", first.manifest.card.weights_sha256, other.manifest.card.weights_sha256),
            ("preprocess", first.manifest.card.preprocess.digest, other.manifest.card.preprocess.digest),
            ("labels", first.manifest.card.labels, other.manifest.card.labels),
            ("folders", first.manifest.card.folders, other.manifest.card.folders),
        ):
            if mine != theirs:
                raise SpecError(
                    f"{first.path} and {other.path} are of different models: {field} differs",
                    hint=f"name the engines of one model: {' or '.join(_commands_by_model(bundles, command))}",
                )
    return first.manifest.card


def _commands_by_model(bundles: Sequence[Bundle], command: str) -> list[str]:
    """Write the command that takes the engines of each model, for a few models."""
    models: dict[tuple[str, str], list[Path]] = {}
    for bundle in bundles:
        card = bundle.manifest.card
        models.setdefault((card.weights_sha256, card.preprocess.digest), []).append(bundle.path)
    return [f"`resnet-deploy {command} {_in_shell(paths)}`" for paths in list(models.values())[:3]]


def _in_shell(paths: Sequence[Path]) -> str:
    """Name ``paths`` as in a shell: by what their names begin with, where nothing else begins like that."""
    parts = zip(*(path.name.split("-") for path in paths), strict=False)
    start = "-".join(part[0] for part in itertools.takewhile(lambda part: len(set(part)) == 1, parts))
    folder = paths[0].parent
    if len(paths) > 1 and start and set(folder.glob(f"{glob.escape(start)}-*")) == set(paths):
        return f"{shlex.quote(str(folder / start))}-*"
    return shlex.join(map(str, paths))


def _open_all(
    bundles: Sequence[Bundle], inputs: BenchInputs, card: ModelCard, spec: BenchSpec, threads: int
) -> tuple[list[_Candidate], list[NotRun]]:
    """Open the reference, where wanted, and every engine that can run here; say why the others cannot."""
    candidates, not_run = [], []
    if inputs.pytorch:
        path = inputs.reference or find_reference(
            [folder for bundle in bundles for folder in folders_beside(bundle)], card
        )
        runner = open_reference(path, card, BatchRange(1, 1, max(*spec.batches, _EVALUATION_BATCH)), threads)
        entrant = Entrant(REFERENCE, runner)
        candidates.append(_Candidate(entrant, "torch", "fp32", path.stat().st_size, card.weights_sha256))
    for bundle in bundles:
        bundle.verify_files()
        manifest, size = bundle.manifest, bundle.engine_path.stat().st_size
        try:
            check_fits(bundle, environment.collect())
            runner = find_runner(manifest.spec.backend)(bundle, threads)
        except (BackendError, BundleError, DeviceError) as error:
            row = NotRun(
                name=bundle.path.name,
                backend=manifest.spec.backend,
                precision=manifest.spec.precision,
                size_bytes=size,
                reason=error.message,
            )
            not_run.append(row)
            continue
        entrant = Entrant(bundle.path.name, runner)
        digest = artifact.sha256_file(bundle.engine_path)
        candidates.append(_Candidate(entrant, manifest.spec.backend, manifest.spec.precision, size, digest, bundle))
    return candidates, not_run
