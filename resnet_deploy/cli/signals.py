"""Signals that ask a command to end, and an end that leaves nothing behind."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def orderly_end() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP are an exception, as Ctrl-C is, so that what is half-written is removed.

    By themselves they end a process on the spot. The exit status is the usual one, 128 and the number of the signal.
    """
    handled = []
    if threading.current_thread() is threading.main_thread():  # no other may
        # `nohup` has SIGHUP ignored, which is to stay.
        handled = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL]
    for number in handled:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not cut the removal short
    raise SystemExit(128 + number)
