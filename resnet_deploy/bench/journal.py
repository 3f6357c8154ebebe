"""A file that long work is written to as it goes, and that a process killed at any moment leaves usable.

Lines are appended and never changed. Each begins with the CRC-32 of the rest, so that one that was cut off, by a kill
in the middle of a write or by a machine that stopped, is told from a whole one; what follows it does not count. Written
lines survive the end of the process at once, and that of the machine once they have been flushed to the disk.
"""

import os
import time
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Final

from resnet_deploy.artifact import translate_os_errors
from resnet_deploy.errors import FileError
from resnet_deploy.locks import open_locked, unlock
from resnet_deploy.regular_files import open_regular

_FLUSH_S: Final = 5.0  # at most so much work is lost when the machine stops


class Journal:
    """One file, for one process at a time; opened in a ``with`` statement.

    Args:
        path: Made where it is missing; its folder must be there.

    Raises:
        FileError: If it cannot be written, or another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = self._open()
        self._flushed = time.monotonic()

    def _open(self) -> FileIO:
        """Open and lock the file."""
        with translate_os_errors(self.path):
            try:
                handle, _ = open_locked(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            except BlockingIOError as error:
                raise FileError(
                    f"{self.path}: another process is writing it", hint="wait for it, or choose another -o"
                ) from error
        return FileIO(handle, "a+")

    def __iter__(self) -> Iterator[bytes]:
        """Yield every whole line from the start; then what follows the last of them is cut off."""
        with translate_os_errors(self.path):
            end = 0
            with open_regular(self.path) as file:
                for line in file:
                    content = _content(line)
                    if content is None:
                        break
                    end += len(line)
                    yield content
            self._file.truncate(end)

    def append(self, content: bytes) -> None:
        """Add a line; ``content`` has no line feed.

        Raises:
            FileError: If the disk is full.
        """
        line = f"{zlib.crc32(content):08x} ".encode() + content + b"\n"
        with translate_os_errors(self.path):
            while line:  # an unbuffered file may take a part
                line = line[self._file.write(line) :]
            if time.monotonic() - self._flushed > _FLUSH_S:
                os.fsync(self._file.fileno())
                self._flushed = time.monotonic()

    def clear(self) -> None:
        """Drop every line."""
        with translate_os_errors(self.path):
            self._file.truncate(0)

    def remove(self) -> None:
        """Remove the file: its work is done."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file, which stays unless it is empty; harmless when repeated."""
        if not self._file.closed:
            is_empty = not os.fstat(self._file.fileno()).st_size
            if is_empty:
                self.remove()
            unlock(self._file.fileno())
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _content(line: bytes) -> bytes | None:
    """Return what a whole line holds; None for any other."""
    checksum, _, content = line[:-1].partition(b" ")
    is_whole = line.endswith(b"\n") and checksum == f"{zlib.crc32(content):08x}".encode()
    return content if is_whole else None
