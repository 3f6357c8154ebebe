"""Opening what a user names as a file: a named pipe under that name would be waited for, and a device may never end."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from resnet_deploy.errors import FileError
from resnet_deploy.names import readable


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, following links.

    Raises:
        OSError: If it cannot be opened, or is a folder, a pipe, a device or a socket.
    """
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 (handed out)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_regular(path: Path) -> bytes:
    """Read a whole regular file; raises as ``open_regular``."""
    with open_regular(path) as file:
        return file.read()


def require_utf8(path: Path) -> None:
    """Refuse a path that is not UTF-8, on behalf of what takes no others, such as libraries and JSON.

    Raises:
        FileError: If it is not.
    """
    if readable(path) != str(path):
        raise FileError(f"the name {readable(path)} is not UTF-8", hint="rename it, or choose another place")


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # which means nothing for regular files, and waits for no writer
