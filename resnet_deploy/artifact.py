"""Files and folders that are whole or absent, and their digests.

Everything is written beside its target, flushed to the disk and then renamed into place: whoever looks at the target
sees the old content or the new one, never a part (POSIX ``rename``; for folders Linux ``renameat2``).

What is being written is locked (``flock``), and the system releases the lock with the process, however that ends: a
temporary without a lock was left behind by a process that was killed, and the next to write that target removes it.
"""

import contextlib
import errno
import hashlib
import itertools
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from resnet_deploy.errors import FileError
from resnet_deploy.exchange import exchange as _exchange
from resnet_deploy.exchange import flush as _flush
from resnet_deploy.exchange import make_readable
from resnet_deploy.locks import locked_file, open_locked, unlock
from resnet_deploy.regular_files import open_regular

_CHUNK_BYTES: Final = 1 << 20


def sha256_bytes(data: bytes) -> str:
    """Digest as lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Digest of a file's content as lower-case hex, read in pieces.

    Raises:
        FileError: If it cannot be read.
    """
    digest = hashlib.sha256()
    with translate_os_errors(path), open_regular(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def read_bytes(path: Path, *, most_mib: int | None = None) -> bytes:
    """Read a whole file, of at most ``most_mib`` MiB where that is given.

    Raises:
        FileError: If it is missing, no regular file, larger than that, or cannot be read.
    """
    with translate_os_errors(path), open_regular(path) as file:
        if most_mib is not None and os.fstat(file.fileno()).st_size > most_mib << 20:
            raise FileError(f"{path} is larger than {most_mib} MiB", hint="give a file of the right kind")
        return file.read()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically, making its folder if need be.

    Raises:
        FileError: If the folder is not writable or the disk is full; nothing is left behind.
    """
    with atomic_file(path) as temporary, translate_os_errors(path):
        temporary.write_bytes(data)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Hand out a temporary path that becomes ``path`` when the block ends well, and vanishes when it does not.

    Where ``path`` is a link, what it leads to is replaced and the link stays.

    Raises:
        FileError: If the folder is not writable, the disk is full, or ``path`` is a folder or a device.
    """
    with atomic_files(path) as (temporary,):
        yield temporary


@contextlib.contextmanager
def atomic_files(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Hand out a temporary path for each of ``paths``, as ``atomic_file``; they all take their places, or none does.

    Two writers of the same paths take turns in renaming, so that what lies there is of one of them. Only a process or a
    machine that is stopped between two renames can leave some of them behind.

    Raises:
        FileError: As ``atomic_file``.
    """
    with contextlib.ExitStack() as stack:
        temporaries = tuple(stack.enter_context(_temporary_file(path)) for path in paths)
        yield temporaries
        for temporary, path in zip(temporaries, paths, strict=True):
            with translate_os_errors(path):
                make_readable(temporary)
                _flush(temporary)
        if len(paths) > 1:
            first = _final(paths[0])
            stack.enter_context(locked(first.with_name(f".{first.name}.lock")))
        _move_together(temporaries, paths)


@contextlib.contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    """Make an empty file beside ``path``, and its folder if need be; whatever is there afterwards is removed."""
    target = _final(path)
    with translate_os_errors(path):
        if target.exists() and not target.is_file():
            raise FileError(f"{path} is not a regular file", hint="give a file that may be replaced")
    with _folder_of(target, path):
        with translate_os_errors(path):
            remove_abandoned(target)
            temporary, lock = _make_locked(target, _make_file)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
            unlock(lock)
            os.close(lock)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Make a file and lock it, as ``locks.locked_file``; what the block raises stays as it is.

    Raises:
        FileError: If it cannot be made or opened for writing.
    """
    with contextlib.ExitStack() as stack:
        with translate_os_errors(path):
            is_ours = stack.enter_context(locked_file(path, wait=wait))
        yield is_ours


@contextlib.contextmanager
def writable_folder(path: Path) -> Iterator[None]:
    """Make a folder, or find that it takes new files, before the work whose results go there.

    Should the block fail, a folder that was made for it and is still empty vanishes.

    Raises:
        FileError: If the folder cannot be made or written to, or ``path`` is a file.
    """
    if exists(path) and not is_folder(path):
        raise FileError(f"{path} is not a folder", hint="give a folder, or a name that is not taken")
    with _folder_of(_final(path) / "any", path):
        with translate_os_errors(path), tempfile.TemporaryFile(dir=path):
            pass
        yield


def _move_together(temporaries: Sequence[Path], paths: Sequence[Path]) -> None:
    """Rename every temporary file into its place; where one cannot be, put the earlier ones back."""
    targets = [_final(path) for path in paths]
    moved: list[tuple[Path, Path]] = []
    try:
        for temporary, target, path in zip(temporaries, targets, paths, strict=True):
            with translate_os_errors(path):
                if path is paths[-1]:
                    temporary.replace(target)
                else:
                    _move_into_place(temporary, target)  # which keeps the old file under the temporary name
                    moved.append((temporary, target))
    except BaseException:
        for temporary, target in reversed(moved):
            if temporary.exists():
                temporary.replace(target)
            else:
                target.unlink()
        raise
    for target, path in zip(targets, paths, strict=True):
        with translate_os_errors(path):
            _flush(target.parent)


@contextlib.contextmanager
def atomic_folder(path: Path, *, staging: Path | None = None) -> Iterator[Path]:
    """Hand out a temporary folder that takes the place of ``path`` when the block ends well, and vanishes otherwise.

    Where ``path`` is a link, what it leads to is replaced and the link stays.

    Args:
        path: The folder.
        staging: Where the temporary is made, on the same file system; beside ``path`` by default.

    Raises:
        FileError: If the parent is not writable, the disk is full, or ``path`` is a file.
    """
    target = _final(path)
    staged = target if staging is None else _final(staging) / target.name
    with translate_os_errors(path):
        if target.exists() and not target.is_dir():
            raise FileError(f"{path} is not a folder", hint="give a folder, or a name that is not taken")
    with _folder_of(target, path):
        with translate_os_errors(path):
            remove_abandoned(staged)
            temporary, lock = _make_locked(staged, _make_folder)
        try:
            yield temporary
            with translate_os_errors(path):
                for file in temporary.rglob("*"):
                    if not file.is_symlink():  # which may lead nowhere
                        _flush(file)
                make_readable(temporary)
                _flush(temporary)
                _move_into_place(temporary, target)
                _flush(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            unlock(lock)
            os.close(lock)


def is_file(path: Path) -> bool:
    """Whether ``path`` is a regular file; where that cannot be told, this raises in every version of Python.

    Raises:
        FileError: If a folder on the way may not be searched, or the name is too long.
    """
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder; raises as ``is_file`` does."""
    return stat.S_ISDIR(_mode(path))


def exists(path: Path) -> bool:
    """Whether there is anything at ``path``; raises as ``is_file`` does."""
    return _mode(path) != 0


def list_folder(path: Path) -> list[Path]:
    """List what is directly inside a folder, by name.

    Raises:
        FileError: If it is no folder or cannot be read.
    """
    with translate_os_errors(path):
        return sorted(path.iterdir())


@contextlib.contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about ``path`` into a FileError that says what to do."""
    try:
        yield
    except OSError as error:
        raise file_error(path, error) from error


def file_error(path: Path, error: OSError) -> FileError:
    """Say what an OSError about ``path`` means and what to do, in the same words wherever it comes from."""
    reason, hint = _EXPLANATIONS.get(error.errno or 0, (error.strerror or str(error), "check the path"))
    return FileError(f"{path}: {reason}", hint=hint)


_EXPLANATIONS: Final = {
    errno.ENOENT: ("no such file or folder", "check the path"),
    errno.EACCES: ("permission denied", "choose a place you may read and write, or change its permissions"),
    errno.EPERM: ("operation not permitted", "choose a place you may read and write"),
    errno.EROFS: ("the file system is read-only", "choose another output folder with -o"),
    errno.ENOSPC: ("no space left on the device", "free some space, or choose another output folder with -o"),
    errno.EDQUOT: ("disk quota exceeded", "free some space, or choose another output folder with -o"),
    errno.EFBIG: ("the file would be larger than is allowed", "raise the limit (ulimit -f), or choose another place"),
    errno.EEXIST: ("a file is where a folder must be", "check the path"),
    errno.ENOTDIR: ("a part of the path is not a folder", "check the path"),
    errno.EISDIR: ("is a folder, not a file", "give a file"),
    errno.ENAMETOOLONG: ("the name is too long", "give a shorter one"),
}


def _mode(path: Path) -> int:
    """Type and permissions of what ``path`` leads to; 0 if there is nothing."""
    with translate_os_errors(path):
        try:
            return path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return 0


def _final(path: Path) -> Path:
    """Follow links, and give `.` its name."""
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def _folder_of(target: Path, path: Path) -> Iterator[None]:
    """Make the folder that ``target`` will lie in; should the block fail, unmake what was made."""
    made: list[Path] = []
    try:
        with translate_os_errors(path):
            made += itertools.takewhile(lambda folder: not folder.exists(), target.parents)
            target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # somebody else's files have come to lie in it
                folder.rmdir()
        raise


def _make_file(target: Path) -> Path:
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    return Path(name)


def _make_folder(target: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))


def _make_locked(target: Path, make: Callable[[Path], Path]) -> tuple[Path, int]:
    """Make a temporary beside ``target`` and lock it; the lock is held until the returned handle is closed."""
    while True:
        temporary = make(target)
        lock = _lock(temporary, where_there_are_none=True)
        if lock is not None:
            return temporary, lock
        # Between its making and its locking, somebody took it for abandoned, and removes it.


def remove_abandoned(path: Path) -> None:
    """Remove the temporaries of ``path`` whose process is gone; leave those of which that cannot be told.

    Whoever writes ``path`` does so; whoever finds that it is there already has to ask for it.
    """
    target = _final(path)
    remove_abandoned_like(target.parent, re.escape(target.name))


def remove_abandoned_like(folder: Path, names: str) -> None:
    """Remove, as ``remove_abandoned``, the temporaries of all in a folder whose names match a regular expression."""
    temporaries = re.compile(rf"\.(?:{names})\.[a-z0-9_]{{8}}\.tmp")  # as tempfile makes them up
    with contextlib.suppress(OSError):
        for found in folder.iterdir():
            if temporaries.fullmatch(found.name):
                _remove_if_abandoned(found)


def _remove_if_abandoned(path: Path) -> None:
    with contextlib.suppress(OSError):  # another user's, or a link: none of ours
        lock = _lock(path, where_there_are_none=False)
        if lock is None:
            return
        try:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        finally:
            unlock(lock)
            os.close(lock)


def _lock(path: Path, *, where_there_are_none: bool) -> int | None:
    """Lock a file or folder; return the handle, or None if somebody else holds the lock or has removed ``path``.

    On a file system without locks, ``where_there_are_none`` says whether it counts as locked: it does for its maker,
    and for nobody else.
    """
    try:
        handle, has_locks = open_locked(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (BlockingIOError, FileNotFoundError):
        return None
    if has_locks or where_there_are_none:
        return handle
    os.close(handle)
    return None


def _move_into_place(temporary: Path, path: Path) -> None:
    """Rename ``temporary`` to ``path``; what is there already is swapped out and left under the temporary name."""
    if not path.exists():
        try:
            temporary.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # a folder that was put there just now
                raise
        else:
            return
    if not _exchange(temporary, path):
        # Without renameat2 there is a moment with nothing at all, but never one with a partial folder.
        aside = temporary.with_suffix(".old")
        path.rename(aside)
        try:
            temporary.rename(path)
        except BaseException:
            aside.rename(path)
            raise
        aside.rename(temporary)
