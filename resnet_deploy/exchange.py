"""Two paths swapped in one step (Linux ``renameat2``), flushing to the disk, permissions by the umask."""

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import Final

_AT_FDCWD: Final = -100  # linux/fcntl.h: relative paths are relative to the working folder
_RENAME_EXCHANGE: Final = 2  # linux/fs.h


def exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step; False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    sys.audit("os.rename", os.fspath(first), os.fspath(second), -1, -1)  # as Python's own renames tell who watches
    status: int = renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return status == 0


def flush(path: Path) -> None:
    """Write a file or folder through to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_readable(path: Path) -> None:
    """Give a temporary file or folder the permissions that the umask gives to new ones."""
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())


def _umask() -> int:
    """Ask for the umask, where the system tells (Linux 4.7) without setting it: that is for all threads at once."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.partition(":")[2], 8)
    umask = os.umask(0)
    os.umask(umask)
    return umask
