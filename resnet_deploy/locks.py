"""Locks on files (``flock``), which the system releases with the process that holds them, however it ends.

Over NFS an exclusive lock takes a handle that is open for writing, which a folder's never is: what is to be one
process's at a time gets a file for its lock.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked_file(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Make a file and lock it; it vanishes with the block. Programs that are started meanwhile hold nothing.

    Args:
        path: The file; a process that was killed leaves it behind, and the next one takes it over.
        wait: Whether to wait for whoever has it.

    Yields:
        Whether it is ours; False without ``wait`` where somebody else has it. On a file system that has no locks, it
            is everybody's.

    Raises:
        OSError: If it cannot be made or opened for writing.
    """
    handle = None
    with contextlib.suppress(BlockingIOError):
        handle, _ = open_locked(path, os.O_RDWR | os.O_CREAT, wait=wait)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                if _is_at(handle, path):  # and not that of others, in a folder that was made anew
                    path.unlink()
            _release(handle)


def open_locked(path: Path, flags: int, *, wait: bool = False) -> tuple[int, bool]:
    """Open a file or folder and lock it; one that was removed or replaced before it could be locked is opened anew.

    Args:
        path: The file or folder.
        flags: As ``os.open`` takes them.
        wait: Whether to wait for whoever has it.

    Returns:
        The handle, which whoever closes it has to ``unlock`` first, and whether the file system has locks.

    Raises:
        BlockingIOError: If somebody else has it.
        OSError: If it cannot be opened.
    """
    while True:
        handle = os.open(path, flags, 0o666)
        try:
            has_locks = _lock(handle, wait=wait)
            if _is_at(handle, path):
                return handle, has_locks
        except BaseException:
            _release(handle)
            raise
        _release(handle)


def unlock(handle: int) -> None:
    """Release a lock: to close the handle is not enough where a forked child has a copy of it."""
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(handle, fcntl.LOCK_UN)


def _release(handle: int) -> None:
    unlock(handle)
    os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool:
    """Lock an open file; return whether its file system has locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is the one that bears the name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
