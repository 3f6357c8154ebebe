"""Scoring one shard: the one piece of work that worker processes and Ray's actors do.

A shard ends up in two files. Its bad images come first, in ``_errors/``, if there are any; then its scores, by which
the shard is done. So a worker may end at any moment, and two may do the same shard: the later one writes the same over
it. Hidden names are skipped by what reads folders of Parquet files, which therefore finds scores alone.
"""

import errno
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from resnet_deploy.engine import load
from resnet_deploy.errors import DataError, FileError, UserError
from resnet_deploy.integrations.pyarrow import Scores, errors_to_parquet, scores_to_parquet
from resnet_deploy.pipeline.scoring_folders import Folder, open_folder
from resnet_deploy.verify import best_classes, softmax
from resnet_deploy.version import __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resnet_deploy.contract import Preprocess
    from resnet_deploy.protocols import Array

ERRORS: Final = "_errors"  # folder of the tables of bad images
ATTEMPTS: Final = 3  # that a shard may fail, or that a worker's start may, before it is given up
# What an image is not to blame for: these pass, or concern all images.
_FAULTS_OF_THE_MACHINE: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN}
)


@dataclass(frozen=True)
class ScoringTask:
    """What a worker must know, whatever the shard.

    Attributes:
        engine: Folder of the engine bundle.
        engine_sha256: Of its manifest.
        source: Folder of the images, as a path that means the same everywhere, or a URI.
        output: Folder of the scores, likewise.
        scoring_sha256: Digest of what was asked for, which every file carries.
        top: Best classes to name.
        logits: Whether to keep all logits, too.
        threads: CPU threads of the engine, and as many that decode.
        on_gpu: Whether the engine runs on a GPU, of which each worker is to have one.
    """

    engine: str
    engine_sha256: str
    source: str
    output: str
    scoring_sha256: str
    top: int
    logits: bool
    threads: int
    on_gpu: bool = False


@dataclass(frozen=True)
class Shard:
    """Some images next to each other in the sorted list."""

    number: int
    names: tuple[str, ...]

    @property
    def file(self) -> str:
        """Name of its table of scores, and of that of its bad images."""
        return part_name(self.number)


@dataclass(frozen=True)
class ShardDone:
    """How many images of a shard were scored, and how many are bad."""

    number: int
    scored: int
    bad: int


@dataclass(frozen=True)
class ShardFailed:
    """Why a shard was given up."""

    number: int
    reason: str


Outcome: TypeAlias = ShardDone | ShardFailed


def part_name(number: int) -> str:
    """Name the file of a shard."""
    return f"part-{number:05}.parquet"


def is_part(name: str) -> bool:
    """Whether a file has the name of a shard's."""
    return name.startswith("part-") and name.endswith(".parquet")


class ShardScorer:
    """An engine and two folders, open for one shard after the other; use it as a context manager, or call ``close``.

    Raises:
        UserError: If the engine cannot be opened here, or this machine does not see the folders.
    """

    def __init__(self, task: ScoringTask) -> None:
        self.task = task
        self._source, self._output = open_folder(task.source), open_folder(task.output)
        self._source.require()
        self._output.require()
        self._engine = load(Path(task.engine), threads=task.threads)
        self._batch = self._engine.manifest.spec.batch.max
        self._pool = ThreadPoolExecutor(task.threads, thread_name_prefix="decode")

    def score(self, shard: Shard, after_batch: Callable[[], None] = lambda: None) -> ShardDone:
        """Score a shard and write it.

        Args:
            shard: The images.
            after_batch: Called after every batch; what it raises ends the work, and nothing is written.

        Raises:
            FileError: If a folder is gone, or the output cannot be written.
        """
        card, top = self._engine.manifest.card, self.task.top
        bad: dict[str, str] = {}
        names: list[str] = []
        classes: list[NDArray[np.int32]] = [np.zeros((0, min(top, card.num_classes)), np.int32)]
        probabilities: list[NDArray[np.float32]] = [np.zeros(classes[0].shape, np.float32)]
        logits: list[NDArray[np.float32]] = [np.zeros((0, card.num_classes), np.float32)]
        for some, images in self._batches(shard, card.preprocess, bad):
            answers = self._engine(images)
            names += some
            best = best_classes(answers, top)
            classes.append(best.astype(np.int32))
            probabilities.append(np.take_along_axis(softmax(answers), best, axis=1).astype(np.float32))
            if self.task.logits:
                logits.append(answers.astype(np.float32))
            after_batch()
        labels = [card.label(index) for index in range(card.num_classes)]
        kept = np.concatenate(logits) if self.task.logits else None
        scores = Scores(names, np.concatenate(classes), labels, np.concatenate(probabilities), kept)
        self._write(shard, scores, bad)
        return ShardDone(shard.number, len(names), len(bad))

    def attempt(self, shard: Shard, after_batch: Callable[[], None] = lambda: None) -> Outcome:
        """Score a shard as ``score``; what no user can cause is a failure of this attempt, told on standard error."""
        try:
            return self.score(shard, after_batch)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - a bug, an engine or a network: the other shards go on
            traceback.print_exc()
            return ShardFailed(shard.number, f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Release the engine and the threads."""
        self._pool.shutdown(cancel_futures=True)
        self._engine.close()

    def __enter__(self) -> "ShardScorer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _batches(self, shard: Shard, spec: "Preprocess", bad: dict[str, str]) -> "Iterator[tuple[list[str], Array]]":
        """Yield names and tensors of as many sound images as the engine takes; note the others in ``bad``."""
        sound = _sound_images(self._decode_ahead(shard.names, spec), bad, self._source)
        while batch := list(islice(sound, self._batch)):
            yield [name for name, _ in batch], np.stack([tensor for _, tensor in batch])

    def _decode_ahead(self, names: Sequence[str], spec: "Preprocess") -> "Iterator[tuple[str, Future[Array]]]":
        """Yield each image's name and its decoding, with a batch and two for each thread under way."""
        pending: deque[tuple[str, Future[Array]]] = deque()
        limit = self._batch + 2 * self.task.threads
        read = partial(self._source.tensor, spec=spec)
        try:
            for name in names:
                if len(pending) >= limit:
                    yield pending.popleft()
                pending.append((name, self._pool.submit(read, name)))
            while pending:
                yield pending.popleft()
        finally:
            for _, future in pending:
                future.cancel()

    def _write(self, shard: Shard, scores: Scores, bad: dict[str, str]) -> None:
        manifest = self._engine.manifest
        metadata = {
            "version": __version__,
            "engine": manifest.name,
            "engine_sha256": self.task.engine_sha256,
            "scoring_sha256": self.task.scoring_sha256,
            "shard": str(shard.number),
            "bad": str(len(bad)),
        }
        errors = f"{ERRORS}/{shard.file}"
        if bad:
            self._output.write(errors, errors_to_parquet(bad, metadata))
        else:
            self._output.remove(errors)  # of an earlier attempt, when an image was bad that is sound now
        self._output.write(shard.file, scores_to_parquet(scores, metadata))


def _sound_images(
    decoded: "Iterator[tuple[str, Future[Array]]]", bad: dict[str, str], source: Folder
) -> "Iterator[tuple[str, Array]]":
    """Yield name and tensor of each image that has one; note what is wrong with the others in ``bad``.

    Raises:
        FileError: If the folder is gone, or every image is: then the folder is another one on this machine.
        MemoryError: If an image takes more than there is, sound as it may be.
        OSError: If reading failed for a reason that lies with the machine or the network.
    """
    missing = total = 0
    for name, future in decoded:
        total += 1
        try:
            tensor = future.result()
        except (DataError, FileError) as error:
            missing += _examine(error)
            bad[name] = error.message
        except MemoryError as error:
            raise MemoryError(f"{name} takes more memory than there is") from error
        else:
            yield name, tensor
    if bad:
        source.require()
    if missing == total > 1:
        raise FileError(f"none of {total} images in a row is there any more", hint="is the folder mounted here?")


def _examine(error: UserError) -> bool:
    """Whether a file is missing; raise what it is not to blame for."""
    cause = error.__cause__
    if not isinstance(cause, OSError):
        return False
    is_from_here = cause.errno is not None
    if (isinstance(error, FileError) and not is_from_here) or cause.errno in _FAULTS_OF_THE_MACHINE:
        raise cause  # object stores' errors have no number, save that of a missing file
    return cause.errno == errno.ENOENT
