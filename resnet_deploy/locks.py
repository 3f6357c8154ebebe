"""Locks on folders (``flock``), which the system releases with the process that holds them, however it ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked_folder(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Keep others out who lock the same folder; children do not inherit the lock.

    Args:
        path: The folder.
        wait: Whether to wait for whoever has it.

    Yields:
        Whether it is ours; False without ``wait`` where somebody else has it. On a file system that has no locks, it
            is everybody's.

    Raises:
        OSError: If there is no such folder, or it cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = True
        except BlockingIOError:
            is_ours = False
        except OSError:
            is_ours = True
        yield is_ours
    finally:
        os.close(handle)
