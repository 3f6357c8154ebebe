"""Any schedule of callers, failures and the end; broken batchers, which are found by the same checks."""

import contextlib
import itertools
import math
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeoutError  # the built-in one from Python 3.11 on
from dataclasses import dataclass, field

import numpy as np
import pytest
from fake_engine import IMAGES, LOGITS, LONG_S, Fake, answers, image, several

from resnet_deploy.errors import BusyError, DeadlineError, FeedError
from resnet_deploy.microbatching import Batching, MicroBatcher


@dataclass
class Outcome:
    """What became of a schedule: what was accepted and what it holds; what the backend saw."""

    accepted: dict = field(default_factory=dict)  # future -> numbers of its images
    fake: Fake = field(default_factory=Fake)
    cancelled: set = field(default_factory=set)  # futures whose cancel() returned true
    due: dict = field(default_factory=dict)  # future -> deadline, if it has one


def check(outcome, failing):
    """Hold an outcome against what is promised: every accepted request is answered once, with its own answer."""
    seen = Counter(outcome.fake.seen)
    assert not [number for number, times in seen.items() if times > 1], "run twice"
    for future, numbers in outcome.accepted.items():
        assert future.done(), "lost"
        ran = [number in seen for number in numbers]
        assert len(set(ran)) == 1, "split"
        if future.cancelled():
            assert not ran[0], "cancelled and run"
            continue
        assert future not in outcome.cancelled, "cancelled and answered"
        error = future.exception(0)
        if isinstance(error, DeadlineError):
            assert future in outcome.due
            assert not ran[0], "too late and run"
        elif error is not None:
            batch = next(batch for batch in outcome.fake.batches if numbers[0] in batch)
            assert set(numbers) <= set(batch), "in two batches"
            assert error in [failing[number] for number in batch if number in failing], "another's error"
        else:
            assert ran[0], "answered and not run"
            np.testing.assert_array_equal(np.atleast_2d(future.result(0)), answers(numbers), "another's answer")
    accepted = {number for numbers in outcome.accepted.values() for number in numbers}
    assert set(seen) <= accepted, "run and not accepted"


class Caller:
    """Submits, cancels and sets deadlines by chance."""

    def __init__(self, seed, number, batcher, outcome, size):
        self.chance = random.Random(f"{seed} {number}")
        self.numbers = iter(range(number * 1000, (number + 1) * 1000))
        self.batcher, self.outcome, self.size = batcher, outcome, size

    def ask(self):
        """Submit once; false when the batcher is closed."""
        chance = self.chance
        numbers = [next(self.numbers) for _ in range(chance.choice((1, 1, 1, min(2, self.size), min(3, self.size))))]
        images = image(numbers[0]) if len(numbers) == 1 else several(*numbers)
        deadline = time.monotonic() + chance.choice((0.0001, 0.002)) if chance.random() < 0.2 else math.inf
        try:
            future = self.batcher.submit(images, deadline=deadline, block=chance.random() < 0.8)
        except (BusyError, DeadlineError):
            return True
        except FeedError:
            return False
        self.outcome.accepted[future] = numbers
        if deadline < math.inf:
            self.outcome.due[future] = deadline
        self.go_on(future)
        return True

    def go_on(self, future):
        if self.chance.random() < 0.2:
            time.sleep(self.chance.choice((0, 0.0005)))
            if future.cancel():
                self.outcome.cancelled.add(future)
        elif self.chance.random() < 0.3:
            wait([future], LONG_S)


def play(seed, *, kind=MicroBatcher, callers=6, asks=30):
    """Let threads call by chance, the backend fail, and one of the threads close at some moment."""
    chance = random.Random(seed)
    outcome, size = Outcome(), chance.choice((1, 3, 8))
    delay, room = chance.choice((0.0, 0.001)), chance.choice((size, 3 * size, 1000))
    drain, closes_at = chance.random() < 0.5, chance.choice((None, chance.randrange(asks)))
    failing = {number: ValueError(number) for number in chance.sample(range(callers * 1000), 25 * callers)}
    outcome.fake.failing = failing
    batcher = kind(outcome.fake.turn, IMAGES, LOGITS, size, Batching(max_delay_s=delay, max_waiting=room))

    def call(number):
        caller = Caller(seed, number, batcher, outcome, size)
        for ask in range(asks):
            if number == 0 and ask == closes_at:
                batcher.close(drain=drain)
            if not caller.ask():
                return

    with ThreadPoolExecutor(callers) as pool:
        for done in [pool.submit(call, number) for number in range(callers)]:
            done.result(LONG_S)
    batcher.close()
    return outcome, failing


def test_every_accepted_request_is_answered_once_with_its_own_answer():
    """Schedules are drawn by seed; how the threads meet is another with every run."""
    became = Counter()
    for seed in range(60):
        outcome, failing = play(seed)
        check(outcome, failing)
        for future in outcome.accepted:
            became["cancelled" if future.cancelled() else type(future.exception(0)).__name__] += 1
    assert set(became) == {"cancelled", "NoneType", "ValueError", "DeadlineError"}
    assert became["NoneType"] > 1000


class Forgetful(MicroBatcher):
    """Runs what was cancelled or is too late."""

    def _sort(self, tray):
        begun, refused = super()._sort(tray)
        return sorted(begun + refused, key=lambda request: request.end), []


class Shifted(MicroBatcher):
    """Moves images together and forgets that the answers move along."""

    def _answer(self, tray):
        tray.close_ranks = len
        super()._answer(tray)


class Twice(MicroBatcher):
    """Runs the first image of a batch again."""

    def _put_away(self, tray):
        with contextlib.suppress(ValueError):
            self._turn().enter_result(tray.images[:1], tray.logits[:1])
        super()._put_away(tray)


class Lossy(MicroBatcher):
    """Loses a batch now and then."""

    def _answer(self, tray):
        if self._begun % 7:
            super()._answer(tray)


@pytest.mark.parametrize("kind", [Forgetful, Shifted, Twice, Lossy])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_broken_batcher_is_found(kind, monkeypatch):
    if kind is Lossy:  # whose callers wait for what is lost
        monkeypatch.setattr(f"{__name__}.LONG_S", 0.2)

    def play_on():
        for seed in range(20):
            check(*play(seed, kind=kind))

    with pytest.raises((AssertionError, FutureTimeoutError)):
        play_on()


def submit_until_interrupted(batcher, outcome, numbers, armed, struck):
    """Submit until a signal has struck; its exception is lost where it strikes in a hook of the garbage collector."""
    try:
        armed.set()
        while not struck.is_set():
            number = next(numbers)
            future = batcher.submit(image(number))
            outcome.accepted[future] = [number]
    except KeyboardInterrupt:
        return


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_in_a_caller_lose_nothing():
    """A KeyboardInterrupt at any moment: what was accepted is answered, nothing runs twice, the batcher lives on."""
    outcome, numbers = Outcome(), itertools.count()
    batcher = MicroBatcher(outcome.fake.turn, IMAGES, LOGITS, 4, Batching(max_delay_s=0.0, max_waiting=8))
    armed, struck, over = threading.Event(), threading.Event(), threading.Event()
    main = threading.main_thread().ident

    def strike(*_):
        struck.set()
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGUSR1, strike)

    def interrupt():
        chance = random.Random(3)
        while armed.wait(LONG_S) and not over.is_set():
            armed.clear()
            time.sleep(chance.uniform(0.0001, 0.004))
            signal.pthread_kill(main, signal.SIGUSR1)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        for _ in range(150):
            struck.clear()
            submit_until_interrupted(batcher, outcome, numbers, armed, struck)
            assert struck.wait(LONG_S)
    finally:
        signal.signal(signal.SIGUSR1, lambda *_: None)  # a strike that is under way would end the run of all tests
        over.set()
        armed.set()
        thread.join()
        signal.signal(signal.SIGUSR1, handler)
    last = next(numbers)
    np.testing.assert_array_equal(batcher.submit(image(last)).result(LONG_S), answers([last])[0])
    batcher.close()
    for future, own in outcome.accepted.items():
        np.testing.assert_array_equal(future.result(0), answers(own)[0])
    seen = Counter(outcome.fake.seen)
    assert max(seen.values()) == 1
    assert {number for (number,) in outcome.accepted.values()} <= set(seen)  # one more may run: its caller was told no
