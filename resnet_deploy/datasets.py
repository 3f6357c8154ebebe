"""Find images and their labels on disk, and read them in batches."""

import hashlib
import os
import stat
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnet_deploy.artifact import file_error, is_file
from resnet_deploy.environment import compute_threads
from resnet_deploy.errors import DataError, SpecError
from resnet_deploy.images import IMAGE_SUFFIXES, tensor_from_source
from resnet_deploy.labels import labels_from_file, labels_from_folders
from resnet_deploy.names import readable
from resnet_deploy.regular_files import open_regular, read_regular
from resnet_deploy.specs import ModelCard, Preprocess

if TYPE_CHECKING:
    from resnet_deploy.protocols import Array

# Looked for in a flat folder, in this order. The last is there to be refused: without it, a folder with the development
# kit's ground truth would pass as unlabelled.
LABEL_FILES: Final = (
    "val_map.txt",
    "val.txt",
    "labels.txt",
    "labels.csv",
    "LOC_val_solution.csv",
    "ILSVRC2012_validation_ground_truth.txt",
)

_MAX_WORKERS: Final = 16  # decoding scales with cores, but beyond this the memory for decoded images does too
_OR_SKIP: Final = ", or leave it out (build, bench, evaluate and run take --skip-corrupt)"
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class ImageDataset:
    """Image files in the order of their names, with a class index each where labels are known.

    Attributes:
        root: The folder that the names in the digest are relative to.
        paths: The image files, below ``root``.
        labels: Class index of each image, in the order of the logits; absent when unknown.
        labels_note: What a reader of the accuracy must know of the labels; empty if nothing.

    Raises:
        DataError: If the labels are not as many as the images.
    """

    root: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...] | None = None
    labels_note: str = ""

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.paths):
            raise DataError(f"{self.root}: {len(self.labels)} labels for {len(self.paths)} images")

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, count: int) -> "ImageDataset":
        """Return at most ``count`` images spread evenly over the set: image ``i * len // count`` for each ``i``.

        Never random and never the first so many, which in a set sorted by class would be a handful of classes. The
        subset of ``count`` images contains the subset of any divisor of ``count``.

        Raises:
            SpecError: If ``count`` is not positive.
        """
        if count < 1:
            raise SpecError(f"a subset of {count} images", hint="take at least one image")
        if count >= len(self):
            return self
        chosen = [position * len(self) // count for position in range(count)]
        labels = None if self.labels is None else tuple(self.labels[index] for index in chosen)
        return ImageDataset(self.root, tuple(self.paths[index] for index in chosen), labels, self.labels_note)

    def rest(self, start: int) -> "ImageDataset":
        """Return the images from position ``start`` on; there may be none."""
        labels = None if self.labels is None else self.labels[start:]
        return ImageDataset(self.root, self.paths[start:], labels, self.labels_note)

    def shard(self, number: int, count: int) -> "ImageDataset":
        """Return part ``number`` (from 1) of ``count`` parts that together are the set: every ``count``-th image.

        Raises:
            SpecError: If there is no such part, or it would be empty.
        """
        if not 1 <= number <= count:
            raise SpecError(f"there is no shard {number}/{count}", hint="count from 1: 1/8 to 8/8")
        if number > len(self):
            raise SpecError(f"shard {number}/{count} of {len(self)} images is empty", hint="make fewer shards")
        labels = None if self.labels is None else self.labels[number - 1 :: count]
        return ImageDataset(self.root, self.paths[number - 1 :: count], labels, self.labels_note)

    def name_of(self, path: Path) -> str:
        """Return an image's name relative to ``root``, as text."""
        return readable(path.relative_to(self.root).as_posix())

    @cached_property
    def image_digests(self) -> dict[str, str]:
        """SHA-256 of each image's file, as lower-case hex, by its name relative to ``root``.

        Reads every file once, in pieces of constant size.

        Raises:
            FileError: If a file is missing or cannot be read.
        """
        return {self.name_of(path): _file_digest(path) for path in self.paths}

    @property
    def digest(self) -> str:
        """Digest of the set, as ``digest_images``; raises as ``image_digests`` does."""
        return digest_images(self.image_digests)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images of a data set, ready for the network; the arrays belong to whoever takes the batch.

    Attributes:
        images: Shape (N, *spec.shape), dtype ``spec.dtype``.
        labels: Shape (N,), int64; absent when the data set has none.
        indices: Shape (N,), int64: positions in the data set.
    """

    images: "Array"
    labels: NDArray[np.int64] | None
    indices: NDArray[np.int64]


@dataclass(eq=False)
class BatchReader:
    """Iterate over a data set in batches that are decoded ahead in threads.

    Every image is delivered once, in the order of the data set however many threads decode; the last batch may be
    smaller and is never dropped. Memory does not grow with the data set: beside the batch in hand it is two batches and
    two images per thread. The threads end with the iteration, also when it is left early; ``close()`` on the iterator
    ends them at once.

    Attributes:
        dataset: What to read.
        spec: The input contract.
        batch_size: Images per batch.
        skip_corrupt: Leave out images that are damaged or cannot be preprocessed and note them, instead of raising on
            the first; the batches are filled up with those that follow. A missing or unreadable file is an error all
            the same.
        workers: Decoding threads; 0 for one per available core, at most 16.
        hashing: Take the digest of each file as it is read, which saves reading them all a second time.
        skipped: The images left out so far by the latest iteration.
        digests: SHA-256 of each file that the latest iteration has been through, those left out too; in order.

    Raises:
        SpecError: If ``batch_size`` is not positive or ``workers`` is negative.
        DataError: While iterating, at the first damaged image unless these are skipped; the message names it.
        FileError: While iterating, if a file is missing or cannot be read.
    """

    dataset: ImageDataset
    spec: Preprocess
    batch_size: int
    skip_corrupt: bool = field(default=False, kw_only=True)
    workers: int = field(default=0, kw_only=True)
    hashing: bool = field(default=False, kw_only=True)
    skipped: list[Path] = field(default_factory=list, init=False)
    digests: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise SpecError(f"batch size {self.batch_size} is not positive", hint="use a batch size such as 32")
        if self.workers < 0:
            raise SpecError(f"{self.workers} workers", hint="use 0 for one per core")

    def __len__(self) -> int:
        """Count the batches of a full pass; skipped images can make it fewer."""
        return (len(self.dataset) + self.batch_size - 1) // self.batch_size

    @property
    def skipped_names(self) -> tuple[str, ...]:
        """Names of the images left out, relative to the data set's folder."""
        return tuple(map(self.dataset.name_of, self.skipped))

    @property
    def threads(self) -> int:
        """How many threads decode."""
        return self.workers or min(compute_threads(), _MAX_WORKERS)

    def __iter__(self) -> Generator[Batch, None, None]:
        self.skipped.clear()
        self.digests.clear()
        workers = self.threads
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        try:
            decoded = self._decode_ahead(pool, self.batch_size + 2 * workers)
            while (batch := self._next_batch(decoded)) is not None:
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _decode_ahead(self, pool: ThreadPoolExecutor, limit: int) -> Iterator[tuple[int, "Array"]]:
        """Yield position and tensor of each sound image in order, with at most ``limit`` images under way."""
        pending: deque[tuple[int, Future[_Decoded]]] = deque()
        for index, path in enumerate(self.dataset.paths):
            if len(pending) >= limit:
                yield from self._take(*pending.popleft())
            pending.append((index, pool.submit(_decode, path, self.spec, hashing=self.hashing)))
        while pending:
            yield from self._take(*pending.popleft())

    def _take(self, index: int, future: "Future[_Decoded]") -> Iterator[tuple[int, "Array"]]:
        """Wait for one image; yield it, or nothing if it is skipped."""
        digest, tensor = future.result()
        if isinstance(tensor, DataError):
            if not self.skip_corrupt:
                raise DataError(tensor.message, hint=f"{tensor.hint}{_OR_SKIP}") from tensor
            self.skipped.append(self.dataset.paths[index])
        if self.hashing:
            self.digests.append(digest)
        if not isinstance(tensor, DataError):
            yield index, tensor

    def _next_batch(self, decoded: Iterator[tuple[int, "Array"]]) -> Batch | None:
        """Gather the next images into a batch; None when there are no more."""
        images = np.empty((min(self.batch_size, len(self.dataset)), *self.spec.shape), dtype=self.spec.dtype)
        indices: list[int] = []
        for index, tensor in islice(decoded, self.batch_size):
            images[len(indices)] = tensor
            indices.append(index)
        if not indices:
            return None
        labels = self.dataset.labels
        return Batch(
            images=images[: len(indices)],
            labels=None if labels is None else np.array([labels[index] for index in indices], dtype=np.int64),
            indices=np.array(indices, dtype=np.int64),
        )


class _Decoded(NamedTuple):
    """What became of one file: its digest, empty where nobody asked, and its tensor or what is wrong with it."""

    digest: str
    tensor: "Array | DataError"


def _decode(path: Path, spec: Preprocess, *, hashing: bool) -> _Decoded:
    data = _read(path) if hashing else None
    digest = "" if data is None else hashlib.sha256(data).hexdigest()
    try:
        return _Decoded(digest, tensor_from_source(path, spec, data))
    except DataError as error:
        return _Decoded(digest, error)


def digest_images(digests: Mapping[str, str]) -> str:
    """SHA-256 over each image's name and the digest of its content, in name order, as lower-case hex."""
    total = hashlib.sha256()
    for name, content in sorted(digests.items()):
        total.update(os.fsencode(name) + b"\0" + bytes.fromhex(content))
    return total.hexdigest()


def find_dataset(root: Path, card: ModelCard, *, labels_file: Path | None = None) -> ImageDataset:
    """Find the images at ``root`` and, where the layout has them, their labels.

    Layouts, told apart by where the images lie:

    * One folder per class: the class is that of the folder's name in ``card.folders`` or ``card.labels``. A card that
      knows no names takes the sorted folders as its classes, if they are as many. Sub-folders are read too.
    * A flat folder with one of ``LABEL_FILES`` in it, or any folder with ``labels_file``.
    * A flat folder without labels, or a single image file.

    A labels file has a line per image: its name relative to ``root``, with or without the suffix, then a class index or
    name; divided by white space or a comma. A header line is tolerated. Kaggle's ``LOC_val_solution.csv`` is read too.
    Hidden files and folders are ignored; linked files and linked class folders are followed, save those that lead to
    ``root`` or to a folder that it is in.

    Args:
        root: Folder, or one image.
        card: The model that the labels are for.
        labels_file: Read the labels from this file rather than from folders or from a file in ``root``.

    Raises:
        FileError: If ``root`` or the labels file is missing or cannot be read.
        DataError: If there is no image, or the labels are incomplete, ambiguous, or do not fit the model.
    """
    images = find_images(root)
    paths = images.paths
    names = [path.relative_to(images.root).as_posix() for path in paths]
    if labels_file is not None:
        return ImageDataset(images.root, paths, labels_from_file(labels_file, names, card))
    if images.root != root:
        return images
    nested = sum("/" in name for name in names)
    if nested == len(names):
        folders = [entry.name for entry in _visible_folders(root)]
        return ImageDataset(root, paths, *labels_from_folders(root, names, folders, card))
    if nested:
        raise DataError(
            f"{root}: images lie both in the folder itself ({len(names) - nested}) and in folders below it ({nested})",
            hint="keep one layout: a folder per class, or all images in one folder",
        )
    found = next((root / name for name in LABEL_FILES if is_file(root / name)), None)
    return ImageDataset(root, paths, None if found is None else labels_from_file(found, names, card))


def find_images(root: Path) -> ImageDataset:
    """Find the images at ``root``, a folder of any layout or a single file, without looking for labels.

    Raises:
        FileError: If ``root`` is missing or cannot be read.
        DataError: If there is no image.
    """
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except OSError as error:
        raise file_error(root, error) from error
    folder, names = (root, image_names(root)) if is_folder else (root.parent, _single_name(root))
    return ImageDataset(folder, tuple(folder / name for name in names))


def image_names(root: Path) -> list[str]:
    """List all images below a folder: sorted names, relative to it, with forward slashes.

    Hidden files and folders are left out. Linked folders are followed if they lie directly in ``root``, and lead
    neither to it nor to a folder that it is in.

    Raises:
        FileError: If a folder cannot be read.
        DataError: If there is no image.
    """

    def refuse(error: OSError) -> None:
        raise file_error(Path(error.filename), error) from error

    # os.walk does not descend into linked folders, which could lead in circles; those of the first level are classes.
    linked = [folder for folder in _visible_folders(root) if folder.is_symlink()]
    names: list[str] = []
    for top in (root, *linked):
        for folder, folders, files in os.walk(top, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            relative = str(PurePosixPath(folder).relative_to(root))
            below = "" if relative == "." else f"{relative}/"
            names += [below + file for file in files if is_image_name(file)]
    if not names:
        raise DataError(f"{root}: no images", hint=f"recognised are {' '.join(sorted(IMAGE_SUFFIXES))}")
    return sorted(names)


def _single_name(file: Path) -> list[str]:
    if not is_image_name(file.name):
        raise DataError(f"{file}: not an image", hint=f"recognised are {' '.join(sorted(IMAGE_SUFFIXES))}")
    return [file.name]


def is_image_name(name: str) -> bool:
    """Whether a file of that name is taken for an image: its suffix says so, and it is not hidden."""
    stem, dot, suffix = name.rpartition(".")  # a path object would take most of the time of listing millions
    return stem != "" and dot + suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def _visible_folders(root: Path) -> list[Path]:
    try:
        visible = [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
        whole = root.resolve()
        return [entry for entry in visible if not (entry.is_symlink() and whole.is_relative_to(entry.resolve()))]
    except OSError as error:
        raise file_error(root, error) from error


def _file_digest(path: Path) -> str:
    """SHA-256 of a file's content, read in pieces, as lower-case hex."""
    content = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                content.update(chunk)
    except OSError as error:
        raise file_error(path, error) from error
    return content.hexdigest()


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise file_error(path, error) from error
