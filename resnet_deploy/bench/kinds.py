"""Which command wrote a record: one that is given to the wrong command is sound, and should not be called damaged."""

from pathlib import Path
from typing import Any, Literal

import msgspec

from resnet_deploy import artifact

Command = Literal["bench", "evaluate", "loadgen"]


def written_by(path: Path) -> Command | None:
    """Tell by the fields that only its records have; None for what is none of them, or damaged.

    Raises:
        FileError: If it is missing or cannot be read.
    """
    try:
        marks = msgspec.json.decode(artifact.read_bytes(path), type=_Marks)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if marks.kind == "evaluation":
        return "evaluate"
    if marks.tests is not None:
        return "loadgen"
    return None if marks.harness is None else "bench"


class _Marks(msgspec.Struct):
    kind: str = ""
    tests: list[Any] | None = None
    harness: list[Any] | None = None
