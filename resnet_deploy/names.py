"""Names from users' folders as text that a file or a terminal can take."""

import os
import unicodedata


def readable(name: "str | os.PathLike[str]") -> str:
    r"""Show a name of a file as valid text: bytes that are not UTF-8 as ``\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    r"""Write control characters and the like as ``\x1b``: some steer terminals. Spaces of any width stay."""
    if text.isprintable():
        return text
    return "".join(one if _shows(one) else one.encode("unicode_escape").decode() for one in text)


def _shows(one: str) -> bool:
    return one.isprintable() or unicodedata.category(one) == "Zs"
