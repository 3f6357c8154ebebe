"""Protocol Buffers' text format, as far as a Triton configuration needs it; written without the library.

The grammar is https://protobuf.dev/reference/protobuf/textformat-spec. Names of fields are taken as they come: that
they exist, and take such values, is proved by tests, which parse what is written with Triton's own schema.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias, Union

_INDENT: Final = "  "


@dataclass(frozen=True)
class Word:
    """A member of an enumeration, which goes without quotes: ``Word("TYPE_UINT8")``."""

    name: str


Scalar: TypeAlias = str | bool | int | Word
Message: TypeAlias = "tuple[tuple[str, Value], ...]"
# A tuple is a message; a list is what a repeated field of scalars holds.
Value: TypeAlias = Union[Scalar, list[int], list[str], "Message"]


def text_from_message(fields: Message, indent: str = "") -> str:
    """Write a message, one line for each scalar.

    Args:
        fields: Names and values in order. A repeated field of messages is there once for each.
        indent: What each line begins with.
    """
    lines = []
    for name, value in fields:
        if isinstance(value, tuple):
            lines += [f"{indent}{name} {{", text_from_message(value, indent + _INDENT).rstrip("\n"), f"{indent}}}"]
        elif isinstance(value, list):
            lines.append(f"{indent}{name}: [{', '.join(map(_scalar, value))}]")
        else:
            assert isinstance(value, Scalar)
            lines.append(f"{indent}{name}: {_scalar(value)}")
    return "".join(f"{line}\n" for line in lines if line)


def entry(key: str, value: Value) -> Message:
    """Make the entry of a map."""
    return (("key", key), ("value", value))


def _scalar(value: Scalar) -> str:
    if isinstance(value, Word):
        return value.name
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quoted(value) if isinstance(value, str) else str(value)


def _quoted(text: str) -> str:
    """Quote a string: UTF-8, with what is not printable ASCII as octal escapes."""
    return '"' + "".join(_escaped(byte) for byte in text.encode()) + '"'


def _escaped(byte: int) -> str:
    character = chr(byte)
    if character in '"\\':
        return f"\\{character}"
    return character if " " <= character <= "~" else f"\\{byte:03o}"
