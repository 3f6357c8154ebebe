"""How records are kept in files: JSON that people can read too, told apart by kind, refused where of a later schema.

Fields that a reader does not know are ignored; what a later version adds has a default that says what was meant before.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec

from resnet_deploy import artifact
from resnet_deploy.errors import FileError
from resnet_deploy.json_files import decode_json

T = TypeVar("T")

_STAMP: Final = r"\d{8}T\d{6}Z"  # as ``file_stamp`` writes it
BENCH: Final = "bench"  # what a file is that does not say of which kind it is: the first records did not


@dataclass(frozen=True)
class Format(Generic[T]):
    """What a kind of record is.

    Attributes:
        kind: As files have it; also the command that writes them.
        version: The newest schema version that is known.
        type: What it is read into.
    """

    kind: str
    version: int
    type: type[T]


class _Head(msgspec.Struct):
    schema_version: int
    kind: str = BENCH


def created_now() -> str:
    """Write the present time as records have it: UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def file_stamp(created: str) -> str:
    """Write the time of a record as names of files have it, such as ``20261126T131415Z``."""
    return created.replace(":", "").replace("-", "")


def encode(record: Any) -> bytes:
    """Write a record as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def write(record: Any, path: Path) -> None:
    """Write a record atomically.

    Its name has the time, so that no later command comes to write the same: what a killed one has left half-written of
    another time's record, or of the page beside it, is removed here.

    Raises:
        FileError: If the folder cannot be written.
    """
    of_any_time = re.sub(_STAMP, lambda _: _STAMP, re.escape(path.stem))
    artifact.remove_abandoned_like(path.parent, rf"{of_any_time}\.(?:json|html)")
    artifact.write_bytes(path, encode(record))


def kind_of(path: Path) -> str:
    """Say of which kind a file is; that of a benchmark where it does not tell.

    Raises:
        FileError: If it is missing or cannot be read.
    """
    try:
        return decode_json(artifact.read_bytes(path), _Head).kind
    except ValueError:
        return BENCH  # whoever reads it as one says what is wrong


def read(path: Path, form: Format[T]) -> T:
    """Read a record of one kind.

    Raises:
        FileError: If it is missing, damaged, of another kind, or of a later schema than this version knows.
    """
    data = artifact.read_bytes(path)
    hint = f"give a file from `{form.kind}`"
    try:
        head = decode_json(data, _Head)
        if head.kind != form.kind:
            raise FileError(f"{path} is a record of `{head.kind}`", hint=hint)
        if head.schema_version > form.version:
            raise FileError(
                f"{path} has schema version {head.schema_version}", hint="read it with a newer resnet-deploy"
            )
        return decode_json(data, form.type)
    except ValueError as error:
        raise FileError(f"{path} is no record of `{form.kind}`: {error}", hint=hint) from error
