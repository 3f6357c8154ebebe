"""JSON that somebody else may have written, read into the type that it should be of."""

from typing import TypeVar

import msgspec

from resnet_deploy.errors import SpecError

T = TypeVar("T")


def decode_json(data: bytes | str, kind: type[T]) -> T:
    """Decode JSON, whatever the bytes are.

    Args:
        data: The text.
        kind: What it is read into.

    Raises:
        ValueError: If it is not JSON, not UTF-8, nested too deeply, or not of that type; the message says which.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError, SpecError) as error:
        raise ValueError(str(error)) from error
