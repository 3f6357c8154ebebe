"""Who may work at an engine: its own process, and there one thread at a time, first come first."""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from resnet_deploy.errors import FeedError

LOOK_AGAIN_S: Final = 1.0  # an interrupt may take along what was to wake the next in line


class Signal:
    """Wakes the one thread that waits for it; set before that, it stays set until then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Let the wait end, this one or the next."""
        with contextlib.suppress(RuntimeError):  # it is set already
            self._lock.release()

    def wait(self, seconds: float) -> None:
        """Wait until it is set, at most so long; not at all where that is past, and for ever where it is infinite."""
        self._lock.acquire(timeout=max(seconds, 0) if seconds < threading.TIMEOUT_MAX else -1)


class FairLock:
    """A lock that threads get in the order in which they asked for it.

    Whoever lets go of a ``threading.Lock`` and asks for it again mostly gets it before those who wait.

    An interrupt at any moment leaves the line: a place in it is given up when the generator that took it is dropped.
    """

    def __init__(self) -> None:
        self._line: deque[Signal] = deque()  # the first one has the lock

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait in line, and have the lock until the end of the ``with``."""
        mine = Signal()
        try:
            self._line.append(mine)
            while self._line[0] is not mine:
                mine.wait(LOOK_AGAIN_S)
            yield
        finally:
            with contextlib.suppress(ValueError, IndexError):  # it was not in line yet; there is nobody
                self._line.remove(mine)
                self._line[0].set()

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits."""
        return len(self._line) > 1


def require_process(process: int) -> None:
    """Refuse to work in a process that was forked from ``process``: threads, the backend's too, stay behind there.

    Raises:
        FeedError: If this is another process.
    """
    if os.getpid() != process:
        raise FeedError("the engine was opened in another process", hint="load it in each process, after the fork")
