"""Engines of one model on a whole data set, in one pass that can be interrupted and gone on with."""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from resnet_deploy import artifact, environment
from resnet_deploy.bench import record_files
from resnet_deploy.bench.decoding import measure_decoding
from resnet_deploy.bench.evaluation import Collected, Step, Subject, collect, take_steps
from resnet_deploy.bench.evaluation_records import EvaluatedEngine, EvaluationRecord, write_evaluation
from resnet_deploy.bench.journal import Journal
from resnet_deploy.bench.records import DatasetRecord, DecodeTimes
from resnet_deploy.bench_spec import BenchSpec
from resnet_deploy.datasets import BatchReader, ImageDataset, digest_images, find_dataset
from resnet_deploy.errors import DataError, FileError, SpecError
from resnet_deploy.json_files import decode_json
from resnet_deploy.names import readable
from resnet_deploy.pipeline.lineup import BenchInputs, Lineup, open_lineup
from resnet_deploy.pipeline.matching import open_bundles
from resnet_deploy.pipeline.references import REFERENCE
from resnet_deploy.specs import MAX_BATCH, require_at_most
from resnet_deploy.version import __version__

if TYPE_CHECKING:
    from resnet_deploy.protocols import Progress

JOURNAL: Final = "evaluation.journal"
_DECODING_IMAGES: Final = 512  # that decoding is timed on, spread evenly over the set


@dataclass(frozen=True)
class EvaluationSpec:
    """How engines are evaluated.

    Attributes:
        batch: Images that are decoded and shown to every engine at once; an engine that takes fewer is called again.
        threads: CPU threads for each engine; 0 for one per physical core.
        workers: Decoding threads; 0 for one per core, at most 16.
        decoding: Whether to time decoding alone, each engine alone, and both together, too.

    Raises:
        SpecError: If a number is out of range.
    """

    batch: int = 32
    threads: int = 0
    workers: int = 0
    decoding: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise SpecError(f"batch size {self.batch} is not positive", hint="use a batch size such as 32")
        require_at_most("batch size", self.batch, MAX_BATCH)


def evaluate(
    inputs: BenchInputs, spec: EvaluationSpec, folder: Path, progress: "Progress", *, restart: bool = False
) -> EvaluationRecord:
    """Collect every engine's answers on all images, going on with what an interrupted evaluation left in ``folder``.

    Args:
        inputs: Engines and images; the first engine, or PyTorch, is what the others are compared with.
        spec: How.
        folder: Of the journal, and of the record that takes its place.
        progress: Shows how far it is.
        restart: Drop what is left of an earlier evaluation instead of going on with it.

    Returns:
        The record, which lies in ``folder`` (``record_path``).

    Raises:
        UserError: If the engines are of several models or one was altered, the images are at fault, or what is left in
            ``folder`` is of other engines or images.
    """
    bundles, card = open_bundles(inputs.engines, "evaluate", [REFERENCE])
    assert inputs.data is not None
    with progress.task("finding the images"):
        dataset = find_dataset(inputs.data, card, labels_file=inputs.labels_file)
    # The batch that each engine is tuned for is one it takes, which is all that is asked here: batches are split.
    sizes = {spec.batch, *(bundle.manifest.spec.batch.opt for bundle in bundles)}
    threads = spec.threads or environment.compute_threads()
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(Journal(folder / JOURNAL))
        if restart:
            journal.clear()
        with progress.task("opening the engines"):
            lineup = stack.enter_context(open_lineup(bundles, inputs, BenchSpec(batches=tuple(sorted(sizes))), threads))
        work = _Work(inputs, spec, dataset, lineup, journal)
        work.run(progress)
        decoding = work.time_decoding(progress) if spec.decoding else None
        with progress.task("putting the answers together"):
            record = work.record(decoding)
        write_evaluation(record, record_path(record, folder))
        journal.remove()
    return record


def record_path(record: EvaluationRecord, folder: Path) -> Path:
    """Where a record lies in ``folder``."""
    stamp = record_files.file_stamp(record.created)
    return folder / f"{record.architecture}-evaluation-{stamp}.json"


@dataclass(frozen=True)
class _Work:
    """An evaluation in the course of which a journal is filled."""

    inputs: BenchInputs
    spec: EvaluationSpec
    dataset: ImageDataset
    lineup: Lineup
    journal: Journal

    def run(self, progress: "Progress") -> None:
        """Take every step that the journal does not have yet."""
        wanted, found = self.subject(), read_subject(self.journal)
        if found is None:
            self.journal.clear()
            self.journal.append(msgspec.json.encode(wanted))
        else:
            _require_same(found, wanted, self.journal.path)
        last: Step | None = None
        for last in read_steps(self.journal):
            if not self.inputs.skip_corrupt and len(last.kept) < len(last.digests):
                raise SpecError(
                    f"{self.journal.path} has left damaged images out", hint="add --skip-corrupt, or --restart"
                )
        start, session = (last.end, last.session + 1) if last is not None else (0, 1)
        reader = self._reader(self.dataset.rest(start), hashing=True)
        shown = f"evaluating, {start:,} images done before" if start else "evaluating"
        batches = progress.track(reader, shown, len(reader))
        for step in take_steps(batches, reader, self.lineup.entrants, start, session):
            self.journal.append(msgspec.json.encode(step))

    def time_decoding(self, progress: "Progress") -> DecodeTimes:
        """Time decoding, alone and beside each engine, on some of the images."""
        reader = self._reader(self.dataset.subset(min(_DECODING_IMAGES, len(self.dataset))), hashing=False)
        return measure_decoding(reader, self.lineup.entrants, progress)

    def record(self, decoding: DecodeTimes | None) -> EvaluationRecord:
        """Put all that the journal has together."""
        collected = collect(read_steps(self.journal))
        if not collected.kept:
            raise DataError(f"{self.dataset.root}: every image is damaged", hint="give --data sound images")
        card, subject = self.lineup.card, read_subject(self.journal)
        assert subject is not None
        return EvaluationRecord(
            created=subject.created,
            environment=subject.environment,
            architecture=card.architecture,
            weights_sha256=card.weights_sha256,
            preprocess=card.preprocess,
            threads=self.lineup.threads,
            batch=self.spec.batch,
            workers=self._reader(self.dataset, hashing=False).threads,
            dataset=_dataset_record(self.dataset, collected),
            engines=tuple(
                EvaluatedEngine(
                    name=one.entrant.name,
                    backend=one.backend,
                    precision=one.precision,
                    size_bytes=one.size_bytes,
                    sha256=one.sha256,
                    device=one.entrant.runner.device,
                    role=one.role,
                    in_sample=one.was_fitted_to(self.dataset),
                    outputs=outputs,
                )
                for one, outputs in zip(self.lineup.candidates, collected.answers, strict=True)
            ),
            cost=collected.cost,
            not_run=self.lineup.not_run,
            decoding=decoding,
        )

    def subject(self) -> Subject:
        """Say what this evaluation is of."""
        card = self.lineup.card
        return Subject(
            version=__version__,
            created=record_files.created_now(),
            environment=environment.collect(),
            weights_sha256=card.weights_sha256,
            classes=card.num_classes,
            preprocess_sha256=card.preprocess.digest,
            engines=tuple((one.entrant.name, one.sha256, one.entrant.runner.device) for one in self.lineup.candidates),
            threads=self.lineup.threads,
            batch=self.spec.batch,
            images=len(self.dataset),
            files_sha256=_files_digest(self.dataset),
        )

    def _reader(self, dataset: ImageDataset, *, hashing: bool) -> BatchReader:
        return BatchReader(
            dataset,
            self.lineup.card.preprocess,
            self.spec.batch,
            skip_corrupt=self.inputs.skip_corrupt,
            workers=self.spec.workers,
            hashing=hashing,
        )


def read_subject(journal: Journal) -> Subject | None:
    """Read what a journal is of; None of an empty one.

    Raises:
        FileError: If another version wrote it, or it is damaged.
    """
    line = next(iter(journal), None)
    if line is None:
        return None
    try:
        return decode_json(line, Subject)
    except ValueError as error:
        raise FileError(f"{journal.path} is of another version of resnet-deploy, or damaged", hint=_RESTART) from error


def read_steps(journal: Journal) -> Iterator[Step]:
    """Read the steps taken so far.

    Raises:
        FileError: If the journal is damaged: a step does not go on where the one before it ended, or is of other
            engines.
    """
    subject, last = read_subject(journal), None
    assert subject is not None
    for line in itertools.islice(journal, 1, None):
        try:
            step = decode_json(line, Step)
            step.require_next(last, subject)
        except ValueError as error:
            raise FileError(f"{journal.path} is damaged: {error}", hint=_RESTART) from error
        yield step
        last = step


def _require_same(begun: Subject, wanted: Subject, path: Path) -> None:
    if difference := wanted.difference_from(begun):
        raise SpecError(f"{path} is of another evaluation, which differs in {difference}", hint=_RESTART)


_RESTART: Final = "add --restart to drop it, or choose another -o"


def _files_digest(dataset: ImageDataset) -> str:
    """Digest over name, size and time of change of every file."""
    total = hashlib.sha256()
    for path in dataset.paths:
        with artifact.translate_os_errors(path):
            status = path.stat()
        name = os.fsencode(path.relative_to(dataset.root))
        total.update(name + f"\0{status.st_size} {status.st_mtime_ns}\n".encode())
    return total.hexdigest()


def _dataset_record(dataset: ImageDataset, collected: Collected) -> DatasetRecord:
    names = [dataset.name_of(path) for path in dataset.paths]
    kept = set(collected.kept)
    return DatasetRecord(
        name=readable(dataset.root.name),
        digest=digest_images(dict(zip(names, collected.digests, strict=True))),
        images=len(collected.kept),
        labels=tuple(dataset.labels[index] for index in collected.kept) if dataset.labels else (),
        labels_note=dataset.labels_note,
        skipped=tuple(name for index, name in enumerate(names) if index not in kept),
    )
