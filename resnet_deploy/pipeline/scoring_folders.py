"""Where images come from and scores go to: a folder of this machine, or one that a URI names."""

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from resnet_deploy import artifact
from resnet_deploy.datasets import image_names
from resnet_deploy.errors import FileError
from resnet_deploy.images import tensor_from_source
from resnet_deploy.integrations.pyarrow import RemoteFolder
from resnet_deploy.regular_files import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resnet_deploy.protocols import Array
    from resnet_deploy.specs import Preprocess

_LOCK: Final = "_scoring.lock"  # readers of folders of tables pass over names that begin so
_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class Folder(Protocol):
    """A folder; names are relative to it, with forward slashes. What goes wrong is a FileError."""

    def require(self) -> None:
        """Raise FileError if it is not there."""
        ...

    def held(self) -> "contextlib.AbstractContextManager[None]":
        """Make it where need be, and keep other commands from writing to it, as far as that can be done."""
        ...

    def image_names(self) -> list[str]:
        """List the images below, sorted; raise DataError if there are none."""
        ...

    def names(self, below: str) -> list[str]:
        """List the files directly in a folder below, or in this one where ``below`` is empty; none if it is absent."""
        ...

    def tensor(self, name: str, spec: "Preprocess") -> "Array":
        """Read and preprocess one image; raises as ``images.tensor_from_source``."""
        ...

    def open_file(self, name: str) -> "contextlib.AbstractContextManager[BinaryIO]":
        """Open a file below for reading at any place."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file below, whole or not at all, making its folder if need be."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file below, if it is there."""
        ...


def open_folder(place: str) -> Folder:
    """Open a path of this machine or a URI; nothing is made there yet."""
    return RemoteFolder.open(place) if is_uri(place) else LocalFolder(Path(place))


def is_uri(place: str) -> bool:
    """Whether a place is named by URI."""
    return _URI.match(place) is not None


def absolute(place: str) -> str:
    """Name a place such that it means the same in another process."""
    return place if is_uri(place) else str(Path(place).resolve())


class LocalFolder:
    """A folder of this machine, or one that it has mounted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def require(self) -> None:
        """Raise FileError if it is not there."""
        if not artifact.is_folder(self.path):
            what = " is not a folder" if artifact.exists(self.path) else ": no such folder"
            raise FileError(f"{self.path}{what}", hint="check the path; every machine that works must see it")

    @contextlib.contextmanager
    def held(self) -> "Iterator[None]":
        """Make it, and lock a file in it; the lock ends with this process, whatever becomes of its workers.

        Raises:
            FileError: If it cannot be written to, or another command is scoring into it.
        """
        with artifact.writable_folder(self.path), artifact.locked(self.path / _LOCK, wait=False) as is_ours:
            if not is_ours:
                raise FileError(
                    f"{self.path}: another command is scoring into it", hint="wait for it, or choose another --out"
                )
            yield

    def image_names(self) -> list[str]:
        """List the images below, as ``datasets.image_names``."""
        self.require()
        return image_names(self.path)

    def names(self, below: str) -> list[str]:
        """List the files directly in a folder below; none where it is not there."""
        folder = self.path / below
        listed = artifact.list_folder(folder) if artifact.is_folder(folder) else []
        return [path.name for path in listed if artifact.is_file(path)]

    def tensor(self, name: str, spec: "Preprocess") -> "Array":
        """Read and preprocess one image."""
        return tensor_from_source(self.path / name, spec)

    @contextlib.contextmanager
    def open_file(self, name: str) -> "Iterator[BinaryIO]":
        """Open a file below."""
        path = self.path / name
        with artifact.translate_os_errors(path), open_regular(path) as file:
            yield file

    def write(self, name: str, data: bytes) -> None:
        """Write a file below atomically."""
        artifact.write_bytes(self.path / name, data)

    def remove(self, name: str) -> None:
        """Remove a file below, if it is there."""
        path = self.path / name
        with artifact.translate_os_errors(path):
            path.unlink(missing_ok=True)
