"""Waiting until the engine that was called before has stopped.

Threads that share the work of a call go on looking for more when it is done: ONNX Runtime's for some 30 ms. An engine
called in that time would share its cores with them, and pay for the one before it.
"""

import time
from typing import Final

# Longer than a tick of 4 ms: some kernels count processor time in whole ticks, and a shorter window may hold none.
_WINDOW_S: Final = 0.005
_WINDOWS: Final = 20
_QUIET: Final = 0.1  # of one core; what watching takes is 0.02


def wait_until_quiet() -> None:
    """Return when this process has used no processor for 5 ms, or after some 100 ms where it always does."""
    for _ in range(_WINDOWS):
        before = time.process_time()
        time.sleep(_WINDOW_S)
        if time.process_time() - before < _QUIET * _WINDOW_S:
            return
