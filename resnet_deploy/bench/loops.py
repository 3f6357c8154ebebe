"""One turn of an engine: callers that call again once they are answered, or when their next call is due."""

import math
import select
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from resnet_deploy.collector import no_garbage_collection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resnet_deploy.bench.calls import Call

# A TensorRT runner captures a graph in the second call of each of its two slots, which take turns. Where two calls have
# both taken longer than the turn is to last, they are enough: many short rounds tell more than a few long ones. One
# alone may be slow because something was compiled or tuned in it, once.
WARMUP_CALLS: Final = 4
_SLOW_CALLS: Final = 2
# A turn makes at least this many timed calls, however slow they are, and stops after this many, however fast.
LEAST_CALLS: Final = 1
MOST_CALLS: Final = 2000
# A sleep ends some 100 microseconds late on Linux (its timer slack, and waking up): the rest is polled.
_POLLED_NS: Final = 200_000
_LEAD_NS: Final = 2_000_000  # until the first call is due: callers are then all awake


class Loop(Protocol):
    """How callers go about it; one object for all callers of a turn."""

    start: int
    budget_ns: int

    def begin(self) -> None:
        """Set ``start``, in nanoseconds of ``time.perf_counter_ns``."""
        ...

    def rest(self, taken: float) -> None:
        """Come between an untimed call that has taken so many seconds and the next call."""
        ...

    def run(self, call: "Call") -> list[float]:
        """Be one of the callers; return the seconds of each of its calls."""
        ...

    def end(self, calls: int, answered: int) -> int:
        """Say when a turn of so many calls, the last of them answered at ``answered``, was over."""
        ...


@dataclass(frozen=True)
class Turn:
    """What a turn left.

    Attributes:
        seconds: Of each call, those of one caller after those of the other.
        wall_s: From the common start to its end.
    """

    seconds: list[float]
    wall_s: float


class ClosedLoop:
    """Each caller calls again as soon as it has its answer.

    Args:
        budget_s: For how long.
    """

    def __init__(self, budget_s: float) -> None:
        self.start = 0
        self.budget_ns = int(budget_s * 1e9)

    def begin(self) -> None:
        """Start now."""
        self.start = time.perf_counter_ns()

    def rest(self, taken: float) -> None:
        """Call again at once."""

    def run(self, call: "Call") -> list[float]:
        """Call until the time is over; a call that was begun is finished."""
        taken: list[float] = []
        clock, end = time.perf_counter_ns, self.start + self.budget_ns
        while len(taken) < LEAST_CALLS or (clock() < end and len(taken) < MOST_CALLS):
            taken.append(call())
        return taken

    def end(self, calls: int, answered: int) -> int:
        """Take the last answer for the end."""
        del calls
        return answered


class PacedLoop:
    """Calls are due at even distances, and go to whichever caller is free.

    A latency counts from when the call was due, whether or not anybody was free to make it: otherwise one slow answer
    would put off the calls that it should have delayed, and hide them ("coordinated omission", Gil Tene, How NOT to
    Measure Latency; wrk2 counts likewise). An engine that does not keep up shows growing latencies. Its turn ends when
    twice the time has passed, with calls left that would have come later still.

    Each caller's untimed calls keep the distance too, so that the first timed one finds the machine as the others do,
    and not a moment after a burst.

    Args:
        budget_s: For how long calls are due.
        rate: Calls per second, of all callers together.
    """

    def __init__(self, budget_s: float, rate: float) -> None:
        self.start = 0
        self._period_ns = 1e9 / rate
        self.budget_ns = int(budget_s * 1e9)
        count = min(max(round(budget_s * rate), LEAST_CALLS), MOST_CALLS)
        self._numbers = iter(range(count))  # handed out one at a time, to whoever asks

    def begin(self) -> None:
        """Let the first call be due in a moment."""
        self.start = time.perf_counter_ns() + _LEAD_NS

    def rest(self, taken: float) -> None:
        """Wait until the next call would be due."""
        wait_until(time.perf_counter_ns() + int(self._period_ns - taken * 1e9))

    def run(self, call: "Call") -> list[float]:
        """Make calls as they fall due, while there are any."""
        taken: list[float] = []
        clock = time.perf_counter_ns
        give_up = self.start + 2 * self.budget_ns
        for number in self._numbers:
            due = self.start + int(number * self._period_ns)
            if number >= LEAST_CALLS and clock() > give_up:
                break
            wait_until(due)
            call()
            taken.append((clock() - due) * 1e-9)
        return taken

    def end(self, calls: int, answered: int) -> int:
        """Take the last answer, but not before the last call's period is over: nothing is due earlier.

        So no more calls are answered per second than were due.
        """
        return max(answered, self.start + math.ceil(calls * self._period_ns))


def wait_until(due: int) -> None:
    """Return when ``time.perf_counter_ns`` has reached ``due``, some microseconds late at most where a core is free.

    The last fifth of a millisecond is polled, which keeps one core busy. Each poll lets go of the interpreter, which
    other callers need, by a ``select`` on nothing: half a microsecond, where ``time.sleep(0)`` takes 80.
    """
    while (left := due - time.perf_counter_ns()) > 0:
        if left > _POLLED_NS:
            time.sleep((left - _POLLED_NS) * 1e-9)
        else:
            select.select((), (), (), 0)


def take_turn(calls: "Sequence[Call]", loop: Loop) -> Turn:
    """Warm every caller up, then let all run ``loop``: one in this thread, several in a thread each."""
    if len(calls) > 1:
        return _at_once(calls, loop)
    _warm_up(calls[0], loop)
    with no_garbage_collection():
        loop.begin()
        taken = loop.run(calls[0])
        return Turn(taken, (loop.end(len(taken), time.perf_counter_ns()) - loop.start) * 1e-9)


def _warm_up(call: "Call", loop: Loop) -> None:
    taken: list[float] = []
    while len(taken) < WARMUP_CALLS and not (len(taken) == _SLOW_CALLS and min(taken) * 1e9 > loop.budget_ns):
        taken.append(call())
        loop.rest(taken[-1])


def _at_once(calls: "Sequence[Call]", loop: Loop) -> Turn:
    barrier = threading.Barrier(len(calls), action=loop.begin)

    def caller(call: "Call") -> tuple[list[float], int]:
        try:
            _warm_up(call, loop)
            barrier.wait()
            return loop.run(call), time.perf_counter_ns()
        except BaseException:
            barrier.abort()  # nobody waits for one who will not come
            raise

    with no_garbage_collection(), ThreadPoolExecutor(len(calls), thread_name_prefix="caller") as pool:
        futures = [pool.submit(caller, call) for call in calls]
        wait(futures)  # in here, so that an interrupt lets no caller go on with an engine that is being closed
    failures = [error for future in futures if (error := future.exception()) is not None]
    if failures:
        raise min(failures, key=lambda one: isinstance(one, threading.BrokenBarrierError))  # a cause, no consequence
    done = [future.result() for future in futures]
    taken = [second for seconds, _ in done for second in seconds]
    return Turn(taken, (loop.end(len(taken), max(answered for _, answered in done)) - loop.start) * 1e-9)
