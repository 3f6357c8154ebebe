"""Requests of many callers, gathered into batches.

Every request is a ``concurrent.futures.Future``. Its images are copied into the memory of a batch by the caller's own
thread, so that the next batch is whole when the engine has done one. One thread takes batches in the order in which
requests came, and is the only one to answer.

What may strike a caller at any moment (a KeyboardInterrupt, a cancellation) meets one of two states, for a request is
accepted by a single append, and the thread is woken before that, under the lock. Nobody waits with the lock in hand:
an interrupted ``Condition.wait`` may come back without its lock and give back another's.
"""

import atexit
import contextlib
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from resnet_deploy.batching import check_images
from resnet_deploy.errors import BusyError, DeadlineError, FeedError, SpecError
from resnet_deploy.fair_lock import LOOK_AGAIN_S, Signal, require_process
from resnet_deploy.trays import Request, Tray

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from resnet_deploy.protocols import Array, TensorSpec

_LOGGER: Final = logging.getLogger(__name__)
_SPARE_TRAYS: Final = 2  # one is filled while one is run


class Batching(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How ``Engine.submit`` gathers images into batches.

    Attributes:
        max_batch: Images in one batch at most; None for as many as the engine takes at once.
        max_delay_s: Seconds that a request waits for company at most, once the engine is free. A full batch goes at
            once. More fills batches better where callers come one by one, and is what each of them pays.
        max_waiting: Images that may wait, without those that are run; more are refused, or their callers blocked.

    Raises:
        SpecError: If one is out of range.
    """

    max_batch: int | None = None
    max_delay_s: float = 0.002
    max_waiting: int = 1024

    def __post_init__(self) -> None:
        if self.max_batch is not None and self.max_batch < 1:
            raise SpecError(f"batches of at most {self.max_batch}", hint="give a positive max_batch, or None")
        if not 0 <= self.max_delay_s <= threading.TIMEOUT_MAX:
            raise SpecError(f"a delay of {self.max_delay_s} s", hint="give max_delay_s in seconds, such as 0.002")
        if self.max_waiting < 1:
            raise SpecError(f"{self.max_waiting} images may wait", hint="give a max_waiting of at least one batch")

    def batch_for(self, largest: int) -> int:
        """Settle the size of batches for an engine that takes ``largest`` images at once.

        Raises:
            SpecError: If more are asked for, or ``max_waiting`` holds no batch of ``max_batch``.
        """
        if self.max_batch is not None and self.max_batch > largest:
            hint = "lower max_batch, or build the engine with another --batch"
            raise SpecError(f"max_batch is {self.max_batch}, the engine takes {largest} at once", hint=hint)
        if self.max_waiting < (self.max_batch or 1):
            hint = "give a max_waiting of at least one batch"
            raise SpecError(f"{self.max_waiting} images may wait, a batch has up to {self.max_batch}", hint=hint)
        return min(self.max_batch or largest, self.max_waiting)


class MicroBatcher:
    """Gathers requests into batches and answers each exactly once.

    First come, first run. The images of a request stay together: one that does not fit into what is left of a batch
    begins the next one. A request that was cancelled, or whose deadline has passed, when the engine is free for its
    batch is not run.

    >>> from resnet_deploy.protocols import TensorSpec
    >>> def brightness(images, logits):
    ...     logits[:, 0] = images.mean(axis=(1, 2))
    >>> specs = TensorSpec("images", "uint8", (8, 8)), TensorSpec("logits", "float32", (1,))
    >>> turn = contextlib.nullcontext(brightness)
    >>> batcher = MicroBatcher(lambda: turn, *specs, 32, Batching(max_delay_s=0.01))
    >>> futures = [batcher.submit(np.full((8, 8), value, np.uint8)) for value in (3, 5, 9)]
    >>> [float(future.result()[0]) for future in futures]
    [3.0, 5.0, 9.0]
    >>> batcher.close()

    Args:
        turn: Waits until the engine is free, keeps it for the length of a ``with``, and gives what runs a batch: it
            writes the logits of (n, *images.shape) into the (n, *logits.shape) that it is given next. From one thread.
            What running a batch raises is raised by every request of that batch.
        images: Of one image.
        logits: Of one image.
        size: Images in a batch at most.
        batching: The delay, and how many may wait.
    """

    def __init__(
        self,
        turn: "Callable[[], AbstractContextManager[Callable[[Array, Array], object]]]",
        images: "TensorSpec",
        logits: "TensorSpec",
        size: int,
        batching: Batching,
    ) -> None:
        self.input = images
        self._output, self._turn, self._size, self._batching = logits, turn, size, batching
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._work = Signal()  # there is a batch to begin, or to begin earlier
        self._in_line: deque[Signal] = deque()  # of callers that wait for room, first come first
        self._trays: deque[Tray] = deque()  # none of them empty
        self._spare: list[Tray] = []
        self._running: Tray | None = None
        self._begun = 0  # images of batches that have begun, of all ever
        self._closed = self._dropping = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="resnet-deploy batching", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # before daemons are stopped: what was accepted is answered then too

    def submit(self, images: "Array", *, deadline: float = math.inf, block: bool = True) -> "Future[Array]":
        """Accept one image, or several that are answered together; they are copied before this returns.

        Args:
            images: (*input.shape) or (n, *input.shape).
            deadline: When it is too late to begin, by ``time.monotonic``.
            block: Whether to wait while too many images wait already; callers get in first come, first served.

        Returns:
            Logits, (*logits.shape) or (n, *logits.shape), in memory of their own.

        Raises:
            FeedError: If dtype or shape does not fit, there are none or more than fit into a batch, or it is closed,
                or this is a process that was forked from its own.
            BusyError: If too many images wait, and ``block`` is false.
            DeadlineError: If the deadline passes before there is room.
        """
        require_process(self._process)
        alone = images.ndim == len(self.input.shape)
        rows = images[np.newaxis] if alone else images
        check_images(rows, self)
        if not 1 <= len(rows) <= self._size:
            hint = "call the engine itself, which splits them" if len(rows) else "give at least one"
            raise FeedError(f"a request of {len(rows)} images, batches have 1 to {self._size}", hint=hint)
        rows = np.ascontiguousarray(rows)
        request = Request(Future(), slice(0, len(rows)), alone, deadline)
        with self._lock:
            self._require_open()
            if not self._in_line and self._has_room(len(rows)):
                self._accept(request, rows)
                return request.future
            if not block:
                hint = "try again later, shed load, or raise max_waiting"
                raise BusyError(f"{self._accepted - self._begun} images are waiting for the engine", hint=hint)
        self._accept_in_turn(request, rows)
        return request.future

    def close(self, *, drain: bool = True) -> None:
        """Refuse what comes from here on, answer what was accepted, and wait for that; harmless when repeated.

        Does nothing in a process that was forked from its own: what was accepted is answered there.

        Args:
            drain: False cancels what has not begun instead.

        Raises:
            FeedError: If called from a callback of a future, for which it would wait itself.
        """
        if os.getpid() != self._process:
            return
        if threading.current_thread() is self._thread:
            raise FeedError("closed from a callback of a request", hint="close from another thread")
        with self._lock:
            self._dropping |= not drain
            self._closed = True
        self._wake_all()
        self._thread.join()
        atexit.unregister(self.close)

    @property
    def _accepted(self) -> int:
        """Images accepted, of all requests ever."""
        return self._trays[-1].requests[-1].end if self._trays else self._begun

    def _has_room(self, count: int) -> bool:
        return self._accepted - self._begun + count <= self._batching.max_waiting

    def _require_open(self) -> None:
        if self._failure is not None:
            raise RuntimeError("the thread that makes batches has failed") from self._failure
        if self._closed:
            raise FeedError("the engine is closed", hint="load it again")

    def _accept_in_turn(self, request: Request, rows: "Array") -> None:
        turn = Signal()
        try:
            with self._lock:
                self._in_line.append(turn)
            while not self._is_decided(turn, request, rows):
                turn.wait(min(request.deadline - time.monotonic(), LOOK_AGAIN_S))
        except BaseException:  # an interrupt, or what was decided against it
            with self._lock, contextlib.suppress(ValueError):
                self._in_line.remove(turn)
            raise

    def _is_decided(self, turn: Signal, request: Request, rows: "Array") -> bool:
        """Accept or refuse a request in line, as soon as it can be told which."""
        with self._lock:
            is_late = request.deadline <= time.monotonic()
            is_next = self._in_line[0] is turn and self._has_room(len(rows))
            if not (self._closed or is_late or is_next):
                return False
            self._in_line.remove(turn)
            if self._in_line:
                self._in_line[0].set()
            self._require_open()
            if is_late:
                raise _too_late("there was room for it")
            self._accept(request, rows)
            return True

    def _accept(self, request: Request, rows: "Array") -> None:
        tray = self._trays[-1] if self._trays else None
        if tray is None or tray.used + len(rows) > self._size:
            tray = self._spare.pop() if self._spare else Tray(self._size, self.input, self._output)
        start, stop = tray.used, tray.used + len(rows)
        tray.stage(start, rows)
        if not start or stop == self._size or request.deadline < tray.first_deadline:
            self._work.set()
        tray.first_deadline = min(tray.first_deadline, request.deadline)
        request.rows, request.end, request.arrived = slice(start, stop), self._accepted + len(rows), time.monotonic()
        tray.requests.append(request)
        if not start:
            self._trays.append(tray)

    def _serve(self) -> None:
        """Take batches until closed; the one thread that answers."""
        try:
            while (tray := self._next_tray()) is not None:
                self._answer(tray)
                self._put_away(tray)
        except BaseException as error:  # noqa: BLE001 - whatever it is, nobody may be left waiting
            self._fail(error)

    def _next_tray(self) -> Tray | None:
        """Wait for a batch and for its company; None when all is done and closed."""
        free_since = time.monotonic()
        while True:
            with self._lock:
                patience_s = self._patience_s(free_since)
                if patience_s <= 0:
                    return self._begin()
            self._work.wait(patience_s)

    def _patience_s(self, free_since: float) -> float:
        """Seconds until the next batch is to begin; never within ``max_delay_s`` of a deadline in it."""
        if self._closed or len(self._trays) > 1:
            return 0
        if not self._trays:
            return math.inf
        tray, delay = self._trays[0], self._batching.max_delay_s
        if tray.used == self._size:
            return 0
        company = max(free_since, tray.requests[0].arrived) + delay
        return min(company, tray.first_deadline - delay) - time.monotonic()

    def _begin(self) -> Tray | None:
        if not self._trays:
            return None
        tray = self._running = self._trays.popleft()
        self._begun = tray.requests[-1].end
        if self._in_line:
            self._in_line[0].set()
        return tray

    def _answer(self, tray: Tray) -> None:
        """Run a batch and answer its requests; without keeping the engine, which a callback of theirs may call."""
        failure: BaseException | None = None
        with self._turn() as infer:
            begun, refused = self._sort(tray)
            if begun:
                count = tray.close_ranks(begun)
                try:
                    infer(tray.images[:count], tray.logits[:count])
                except BaseException as error:  # noqa: BLE001 - it is the callers' to handle
                    failure = error
        for request in refused:
            self._refuse(request)
        for request in begun:
            if failure is not None:
                _deliver(request.future.set_exception, failure)
            else:
                logits = tray.logits[request.rows]
                _deliver(request.future.set_result, (logits[0] if request.alone else logits).copy())

    def _sort(self, tray: Tray) -> tuple[list[Request], list[Request]]:
        """Part the requests to be run, which from here on cannot be cancelled, from those to be refused."""
        begun, refused, now = [], [], time.monotonic()
        for request in tray.requests:
            if self._dropping or request.deadline <= now:
                refused.append(request)
            elif _starts(request.future):
                begun.append(request)
        return begun, refused

    def _refuse(self, request: Request) -> None:
        if self._dropping:
            _deliver(Future.cancel, request.future)
        if _starts(request.future):
            _deliver(request.future.set_exception, _too_late("the engine came to it"))

    def _put_away(self, tray: Tray) -> None:
        tray.clear()
        with self._lock:
            self._running = None
            if len(self._spare) < _SPARE_TRAYS:
                self._spare.append(tray)

    def _wake_all(self) -> None:
        self._work.set()
        with self._lock:
            for turn in self._in_line:
                turn.set()

    def _fail(self, error: BaseException) -> None:
        """Let every request that has no answer raise, and refuse others."""
        with self._lock:
            self._failure, self._closed = error, True
            trays = [*([self._running] if self._running else []), *self._trays]
            self._trays.clear()
        self._wake_all()
        failure = RuntimeError("the thread that makes batches has failed")
        failure.__cause__ = error
        for future in (request.future for tray in trays for request in tray.requests):
            with contextlib.suppress(RuntimeError):  # it was answered, or somebody else has answered it
                if future.running() or future.set_running_or_notify_cancel():
                    _deliver(future.set_exception, failure)


def _starts(future: "Future[Array]") -> bool:
    """Whether a future takes an answer still; from here on it cannot be cancelled."""
    try:
        return future.set_running_or_notify_cancel()
    except RuntimeError:  # whoever holds the future has answered it
        return False


def _deliver(give: Callable[[Any], object], what: object) -> None:
    """Give an answer; what callbacks of the future raise must not keep others from theirs."""
    try:
        give(what)
    except BaseException:
        _LOGGER.exception("a callback of a request failed")


def _too_late(what: str) -> DeadlineError:
    return DeadlineError(f"its deadline passed before {what}", hint="give it more time, or ask for less at once")
