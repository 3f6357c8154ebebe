r"""pyarrow: scores as Parquet tables, and folders that are addressed by URI, such as ``s3://bucket/images``.

Paths are text in Parquet, and names of files are bytes. A name that is not UTF-8 is shown with its odd bytes as
``\xNN`` in ``path``, and kept as it is in ``path_bytes``, which is null for all others.
"""

import contextlib
import importlib
import io
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from resnet_deploy.datasets import is_image_name
from resnet_deploy.errors import BackendError, DataError, FileError, SpecError
from resnet_deploy.images import tensor_from_source
from resnet_deploy.names import readable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resnet_deploy.protocols import Array
    from resnet_deploy.specs import Preprocess

_PREFIX: Final = "resnet_deploy."  # of our keys in a file's metadata
_LENGTH_AND_MAGIC: Final = 8  # bytes at the end of a Parquet file
# What is written there appears when it is whole; elsewhere it is renamed into place.
_ATOMIC: Final = frozenset({"s3", "gcs", "abfs"})


@dataclass(frozen=True, eq=False)
class Scores:
    """What an engine said of some images.

    Attributes:
        names: Of the images, in the order of the rows.
        classes: Shape (N, k), int32: the best classes of each, best first.
        labels: Name of each class of the model.
        probabilities: Shape (N, k), float32: the softmax of the logits at ``classes``.
        logits: Shape (N, number of classes), float32; absent where nobody asked.
    """

    names: Sequence[str]
    classes: "NDArray[np.int32]"
    labels: Sequence[str]
    probabilities: "NDArray[np.float32]"
    logits: "NDArray[np.float32] | None"


def require_parquet() -> None:
    """Refuse to begin what could not be written in the end.

    Raises:
        BackendError: If pyarrow is not installed.
    """
    _import("pyarrow.parquet")


def scores_to_parquet(scores: Scores, metadata: Mapping[str, str]) -> bytes:
    """Write a table: path, path_bytes, classes, labels, probabilities, and logits where there are any."""
    pa = _import("pyarrow")
    names = np.asarray(scores.labels, dtype=object)[scores.classes]
    columns = _path_columns(scores.names) | {
        "classes": _lists(scores.classes, pa.int32()),
        "labels": _lists(names, pa.string()),
        "probabilities": _lists(scores.probabilities, pa.float32()),
    }
    if scores.logits is not None:
        columns["logits"] = _lists(scores.logits, pa.float32())
    return _encode(columns, metadata)


def errors_to_parquet(errors: Mapping[str, str], metadata: Mapping[str, str]) -> bytes:
    """Write a table of what is wrong with each image, by name: path, path_bytes, error."""
    pa = _import("pyarrow")
    texts = pa.array([readable(text) for text in errors.values()], pa.string())
    return _encode(_path_columns(list(errors)) | {"error": texts}, metadata)


def read_footer(file: BinaryIO) -> tuple[int, dict[str, str]] | None:
    """Read how many rows a Parquet file has, and our part of its metadata; None of a file that is none, or damaged.

    Its end is read first, and understood apart from that: pyarrow has an OSError for damage, too.

    Raises:
        OSError: If the file cannot be read.
    """
    pa, pq = _import("pyarrow"), _import("pyarrow.parquet")
    data, prefix = _end_of_parquet(file), _PREFIX.encode()
    try:
        footer = pq.read_metadata(io.BytesIO(data))
        ours = {key: value.decode() for key, value in (footer.metadata or {}).items() if key.startswith(prefix)}
        about = {key.removeprefix(prefix).decode(): value for key, value in ours.items()}
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return None
    return footer.num_rows, about


def _end_of_parquet(file: BinaryIO) -> bytes:
    """Read the footer, the four bytes of its length before the last four, and these; as much as there is of it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LENGTH_AND_MAGIC))
    length = int.from_bytes(file.read(4), "little")
    file.seek(max(0, size - _LENGTH_AND_MAGIC - length))
    return file.read()


def _path_columns(names: Sequence[str]) -> dict[str, Any]:
    pa, texts = _import("pyarrow"), [readable(name) for name in names]
    odd = [None if text == name else os.fsencode(name) for name, text in zip(names, texts, strict=True)]
    return {"path": pa.array(texts, pa.string()), "path_bytes": pa.array(odd, pa.binary())}


def _lists(rows: "NDArray[Any]", kind: Any) -> Any:
    """Make a column of lists that are all as long."""
    pa = _import("pyarrow")
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1), kind), rows.shape[1])


def _encode(columns: dict[str, Any], metadata: Mapping[str, str]) -> bytes:
    pa, pq = _import("pyarrow"), _import("pyarrow.parquet")
    table = pa.table(columns).replace_schema_metadata({_PREFIX + key: value for key, value in metadata.items()})
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


class RemoteFolder:
    """A folder behind a file system of pyarrow's.

    Args:
        files: ``pyarrow.fs.FileSystem``.
        root: The folder in it.
        uri: What it is called in messages.
    """

    def __init__(self, files: Any, root: str, uri: str) -> None:
        self._files, self._root, self.uri = files, root.rstrip("/"), uri

    @classmethod
    def open(cls, uri: str) -> "RemoteFolder":
        """Find the file system that a URI names, among pyarrow's own and fsspec's.

        Raises:
            SpecError: If nothing that is installed knows such URIs.
            FileError: If it cannot be reached.
        """
        pa, fs = _import("pyarrow"), _import("pyarrow.fs")
        try:
            files, root = fs.FileSystem.from_uri(uri)
            return cls(files, root, uri)
        except pa.ArrowInvalid as error:
            try:
                files, root = _import("fsspec.core").url_to_fs(uri)
            except (BackendError, ImportError, ValueError):
                reason = str(error).partition("\n")[0]
                raise SpecError(
                    f"{uri}: {reason}", hint="give a folder, or s3://, gs://, file:// and a path"
                ) from error
            return cls(fs.PyFileSystem(fs.FSSpecHandler(files)), root, uri)
        except OSError as error:
            raise _file_error(uri, error) from error

    def require(self) -> None:
        """Raise FileError if there is no such folder: an object store has it if anything is in it."""
        kinds = _import("pyarrow.fs").FileType
        with self._translated(self._root):
            if self._files.get_file_info(self._root).type != kinds.Directory:
                raise FileError(f"{self.uri}: no such folder", hint="check the address")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep nobody out: object stores have no locks. Two commands would write the same tables twice."""
        yield

    def image_names(self) -> list[str]:
        """List the images below, sorted, relative to the folder; raise DataError if there are none."""
        self.require()
        names = sorted(name for name in self._listed("", recursive=True) if _is_visible_image(name))
        if not names:
            raise DataError(f"{self.uri}: no images", hint="recognised are .jpg, .png and the like")
        return names

    def names(self, below: str) -> list[str]:
        """List the files directly in a folder below; none where it is not there."""
        return [PurePosixPath(name).name for name in self._listed(below, recursive=False)]

    def tensor(self, name: str, spec: "Preprocess") -> "Array":
        """Read and preprocess one image; raises as ``images.tensor_from_source``."""
        with self.open_file(name) as file:
            data = file.read()
        return tensor_from_source(Path(name), spec, data)

    @contextlib.contextmanager
    def open_file(self, name: str) -> "Iterator[BinaryIO]":
        """Open a file below for reading at any place."""
        with self._translated(name), self._files.open_input_file(self._path(name)) as file:
            yield file

    def write(self, name: str, data: bytes) -> None:
        """Write a file below, whole or not at all."""
        path = self._path(name)
        with self._translated(name):
            if self._files.type_name in _ATOMIC:
                self._put(path, data)
                return
            parent, _, last = path.rpartition("/")
            self._files.create_dir(parent, recursive=True)
            temporary = f"{parent}/.{last}.{uuid.uuid4().hex}.tmp"
            try:
                self._put(temporary, data)
                self._files.move(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._files.delete_file(temporary)
                raise

    def remove(self, name: str) -> None:
        """Remove a file below, if it is there."""
        with self._translated(name), contextlib.suppress(FileNotFoundError):
            self._files.delete_file(self._path(name))

    def _put(self, path: str, data: bytes) -> None:
        with self._files.open_output_stream(path) as stream:
            stream.write(data)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _listed(self, below: str, *, recursive: bool) -> Iterator[str]:
        """Yield names of files relative to the folder."""
        fs, top = _import("pyarrow.fs"), self._path(below)
        with self._translated(below):
            found = self._files.get_file_info(fs.FileSelector(top, allow_not_found=True, recursive=recursive))
        start = len(self._root.lstrip("/")) + 1
        yield from (info.path.lstrip("/")[start:] for info in found if info.type == fs.FileType.File)

    @contextlib.contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        """Turn an OSError into a FileError; its cause says whether it may pass."""
        try:
            yield
        except OSError as error:
            raise _file_error(f"{self.uri}/{name}" if name != self._root else self.uri, error) from error


def _is_visible_image(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return is_image_name(parts[-1]) and not any(part.startswith(".") for part in parts)


def _file_error(what: str, error: OSError) -> FileError:
    reason = error.strerror or _first_line(error)
    return FileError(f"{what}: {reason}", hint="check the address, and that this machine may use it")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        hint = 'install it with `pip install "resnet-deploy[parquet]"`'
        raise BackendError(f"{name.partition('.')[0]} cannot be imported: {error}", hint=hint) from error
