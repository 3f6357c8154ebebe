"""The schema version of a file, read before anything else of it is: a later version may have another form."""

from typing import Final

import msgspec

UPGRADE: Final = "upgrade resnet-deploy"


def later_version(text: bytes | str, known: int) -> int | None:
    """Return the schema version of a JSON text if it is later than ``known``.

    None too where the text does not tell: whoever reads it says what is wrong.
    """
    try:
        version = msgspec.json.decode(text, type=_Head).schema_version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return version if version > known else None


class _Head(msgspec.Struct):
    schema_version: int
