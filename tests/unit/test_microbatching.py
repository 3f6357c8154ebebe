"""Requests gathered into batches: each answered once, with its own answer, whatever happens around it."""

import asyncio
import contextlib
import itertools
import logging
import math
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeoutError  # the built-in one from Python 3.11 on
from dataclasses import dataclass, field

import numpy as np
import pytest

from resnet_deploy import microbatching, trays
from resnet_deploy.errors import BusyError, DeadlineError, FeedError, SpecError
from resnet_deploy.microbatching import Batching, MicroBatcher
from resnet_deploy.protocols import TensorSpec
from resnet_deploy.turns import Signal

IMAGES, LOGITS = TensorSpec("images", "int32", (2,)), TensorSpec("logits", "float32", (3,))
LONG_S = 60.0  # so long that a test has failed


class Fake:
    """Answers (number, 2 number, -number); notes what it saw; waits when told to; fails for batches it is told of."""

    def __init__(self):
        self.batches = []
        self.failing = {}  # number of an image to what its batch raises
        self.begun, self.go = threading.Semaphore(0), threading.Event()
        self.go.set()

    def __call__(self, images, logits):
        numbers = images[:, 0].tolist()
        assert images.shape == (len(numbers), 2)
        assert logits.shape == (len(numbers), 3)
        np.testing.assert_array_equal(images[:, 1], -images[:, 0])  # a row is whole
        self.batches.append(numbers)
        self.begun.release()
        assert self.go.wait(LONG_S)
        for number in numbers:
            if number in self.failing:
                raise self.failing[number]
        logits[...] = answers(numbers)

    def turn(self):
        return contextlib.nullcontext(self)

    def hold(self):
        """Let batches begin and not end, until ``go`` is set."""
        self.go.clear()

    def await_begin(self):
        assert self.begun.acquire(timeout=LONG_S)

    @property
    def seen(self):
        return [number for batch in self.batches for number in batch]


def image(number):
    return np.array([number, -number], np.int32)


def several(*numbers):
    return np.stack([image(number) for number in numbers])


def answers(numbers):
    return np.array([[number, 2 * number, -number] for number in numbers], np.float32)


@pytest.fixture
def fake():
    return Fake()


@pytest.fixture
def make(fake):
    """Make a batcher: (size=4, **batching); closed at the end."""
    made = []

    def run(size=4, **batching):
        settings = Batching(**{"max_delay_s": 0.0} | batching)
        made.append(MicroBatcher(fake.turn, IMAGES, LOGITS, size, settings))
        return made[-1]

    yield run
    fake.go.set()
    for batcher in made:
        batcher.close()


@pytest.fixture
def held(make, fake):
    """A batcher whose engine is busy with image 0 until ``fake.go`` is set: what is submitted waits. (size=4, ...)."""

    def run(size=4, **batching):
        batcher = make(size, **batching)
        fake.hold()
        batcher.first = batcher.submit(image(0))
        fake.await_begin()
        return batcher

    return run


# --- what is asked and what is answered


def test_one_image_and_several(make):
    batcher = make()
    one, two = batcher.submit(image(7)), batcher.submit(several(8, 9))
    np.testing.assert_array_equal(one.result(LONG_S), [7, 14, -7])
    np.testing.assert_array_equal(two.result(LONG_S), answers([8, 9]))
    assert one.result().dtype == np.float32


def test_answers_are_the_callers_own(make):
    batcher = make()
    first = batcher.submit(image(7)).result(LONG_S)
    assert first.base is None
    first[...] = 0
    np.testing.assert_array_equal(batcher.submit(image(7)).result(LONG_S), [7, 14, -7])
    np.testing.assert_array_equal(first, 0)


def test_images_are_copied_when_they_are_accepted(held, fake):
    batcher, given_away = held(), image(5)
    future = batcher.submit(given_away)
    given_away[...] = 99
    fake.go.set()
    np.testing.assert_array_equal(future.result(LONG_S), [5, 10, -5])


def test_images_in_any_memory_order(make):
    batcher = make()
    rows = several(1, 2, 3, 4)
    for images, numbers in ((rows[::2], [1, 3]), (np.asfortranarray(rows), [1, 2, 3, 4]), (rows[::-1], [4, 3, 2, 1])):
        np.testing.assert_array_equal(batcher.submit(images).result(LONG_S), answers(numbers))
    read_only = image(7)
    read_only.flags.writeable = False
    np.testing.assert_array_equal(batcher.submit(read_only).result(LONG_S), [7, 14, -7])


def test_what_waits_is_run_together_in_order(held, fake):
    batcher = held(size=4)
    futures = [batcher.submit(image(number)) for number in range(1, 11)]
    fake.go.set()
    wait(futures, LONG_S)
    assert fake.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_a_request_is_never_split(held, fake):
    batcher = held(size=4)
    futures = [batcher.submit(several(*part)) for part in ((1, 2, 3), (4, 5), (6,), (7, 8, 9, 10), (11,))]
    fake.go.set()
    wait(futures, LONG_S)
    assert fake.batches == [[0], [1, 2, 3], [4, 5, 6], [7, 8, 9, 10], [11]]
    np.testing.assert_array_equal(futures[3].result(), answers([7, 8, 9, 10]))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (several(1, 2, 3, 4, 5), "a request of 5 images, batches have 1 to 4"),
        (np.empty((0, 2), np.int32), "a request of 0 images"),
        (np.zeros(2, np.int64), "has dtype int64"),
        (np.zeros(3, np.int32), r"the engine takes \(N, 2\)"),
        (np.zeros((1, 1, 2), np.int32), r"the engine takes \(N, 2\)"),
        (np.array(1, np.int32), r"the engine takes \(N, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(make, fake, images, message):
    with pytest.raises(FeedError, match=message) as caught:
        make().submit(images)
    assert caught.value.hint
    assert fake.batches == []


def test_an_error_is_every_callers_of_that_batch_and_of_no_other(held, fake):
    batcher = held(size=4)
    error = fake.failing[2] = ValueError("of the backend")
    futures = [batcher.submit(image(number)) for number in range(1, 8)]
    fake.go.set()
    assert [future.exception(LONG_S) for future in futures] == [error] * 4 + [None] * 3
    np.testing.assert_array_equal(futures[5].result(), [6, 12, -6])


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_no_error_of_the_backend_ends_the_batcher(make, fake, error):
    batcher = make()
    fake.failing[1] = error
    assert batcher.submit(image(1)).exception(LONG_S) is error
    np.testing.assert_array_equal(batcher.submit(image(2)).result(LONG_S), [2, 4, -2])


# --- waiting for company


def test_a_full_batch_goes_at_once(make, fake):
    batcher = make(size=3, max_delay_s=LONG_S)
    futures = [batcher.submit(image(number)) for number in (1, 2, 3)]
    wait(futures, LONG_S / 2)
    assert fake.batches == [[1, 2, 3]]


def test_a_batch_goes_at_once_when_the_next_request_does_not_fit(make, fake):
    batcher = make(size=3, max_delay_s=LONG_S)
    first = batcher.submit(several(1, 2))
    batcher.submit(several(3, 4))
    np.testing.assert_array_equal(first.result(LONG_S / 2), answers([1, 2]))
    batcher.close()  # and what waits for company is not kept waiting
    assert fake.batches == [[1, 2], [3, 4]]


def test_company_is_waited_for(make, fake):
    batcher = make(size=8, max_delay_s=0.2)
    futures = [batcher.submit(image(1))]
    time.sleep(0.02)
    futures.append(batcher.submit(image(2)))
    wait(futures, LONG_S)
    assert fake.batches == [[1, 2]]


def test_company_is_not_waited_for_without_a_delay(make, fake):
    batcher = make(size=8, max_delay_s=0.0)
    for number in (1, 2):
        batcher.submit(image(number)).result(LONG_S)
    assert fake.batches == [[1], [2]]


def test_a_deadline_is_not_spent_on_waiting_for_company(make, fake):
    batcher = make(size=8, max_delay_s=LONG_S)
    futures = [batcher.submit(image(1)), batcher.submit(image(2), deadline=time.monotonic() + LONG_S / 2)]
    wait(futures, LONG_S / 2)
    assert [future.exception(0) for future in futures] == [None, None]
    assert fake.batches == [[1, 2]]


def await_true(condition):
    end = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def patience(monkeypatch):
    """For how long threads have begun to wait, in order."""
    noted = []

    class Noting(Signal):
        def wait(self, seconds):
            noted.append(seconds)
            super().wait(seconds)

    monkeypatch.setattr(microbatching, "Signal", Noting)
    return noted


def test_an_earlier_deadline_wakes_who_waits_for_company(patience, make, fake):
    """Not only where the thread had not begun to wait."""
    batcher = make(size=8, max_delay_s=LONG_S)
    futures = [batcher.submit(image(1))]
    await_true(lambda: LONG_S / 2 < patience[-1] <= LONG_S)
    futures.append(batcher.submit(image(2), deadline=time.monotonic() + LONG_S / 2))
    assert not wait(futures, LONG_S / 4).not_done
    assert fake.batches == [[1, 2]]


def test_the_delay_begins_when_the_engine_is_free(held):
    batcher = held(size=4, max_delay_s=0.1)
    batcher.submit(image(1))
    free_since = time.monotonic() + 1000
    assert batcher._patience_s(free_since) > 999  # from its arrival, it would be 0.1 s
    assert batcher._patience_s(0) <= 0.1


# --- deadlines and cancellation


def test_a_request_that_is_too_late_is_not_run(held, fake):
    batcher = held()
    late, timely = batcher.submit(image(1), deadline=time.monotonic() + 0.01), batcher.submit(image(2))
    time.sleep(0.02)
    fake.go.set()
    with pytest.raises(DeadlineError, match="before the engine came to it"):
        late.result(LONG_S)
    np.testing.assert_array_equal(timely.result(LONG_S), [2, 4, -2])
    assert fake.batches == [[0], [2]]


def test_a_cancelled_request_is_not_run(held, fake):
    batcher = held()
    futures = [batcher.submit(several(number, 10 * number)) for number in (1, 2, 3, 4)]
    assert futures[0].cancel()
    assert futures[2].cancel()
    fake.go.set()
    for future in (futures[0], futures[2]):
        with pytest.raises(CancelledError):
            future.result(LONG_S)
    np.testing.assert_array_equal(futures[3].result(LONG_S), answers([4, 40]))
    wait(futures, LONG_S)
    assert fake.batches == [[0], [2, 20], [4, 40]]


def test_nothing_is_run_where_all_are_cancelled(held, fake):
    batcher = held()
    assert all(batcher.submit(image(number)).cancel() for number in (1, 2))
    fake.go.set()
    batcher.close()
    assert fake.batches == [[0]]


def test_what_runs_cannot_be_cancelled(held, fake):
    batcher = held()
    assert not batcher.first.cancel()
    fake.go.set()
    np.testing.assert_array_equal(batcher.first.result(LONG_S), [0, 0, 0])


class Shared:
    """An engine that somebody else may have: ``lock``."""

    def __init__(self, fake):
        self.fake, self.lock, self.asked = fake, threading.Lock(), threading.Semaphore(0)

    @contextlib.contextmanager
    def turn(self):
        self.asked.release()
        with self.lock:
            yield self.fake


@pytest.fixture
def shared(fake):
    """An engine, and a batcher at it with batches of one."""
    engine = Shared(fake)
    batcher = MicroBatcher(engine.turn, IMAGES, LOGITS, 1, Batching(max_delay_s=0.0))
    yield engine, batcher
    batcher.close()


def test_what_happens_until_the_engine_is_free_counts(shared, fake):
    """While somebody else has the engine: one is cancelled, one becomes too late, one is dropped by a close."""
    engine, batcher = shared
    with engine.lock:
        cancelled = batcher.submit(image(1))
        assert engine.asked.acquire(timeout=LONG_S)
        assert cancelled.cancel()
    await_true(lambda: batcher._running is None)  # a lock that is asked for again at once is not handed over
    with engine.lock:
        late = batcher.submit(image(2), deadline=time.monotonic() + 0.01)
        assert engine.asked.acquire(timeout=LONG_S)
        time.sleep(0.02)
    with pytest.raises(DeadlineError):
        late.result(LONG_S)
    with ThreadPoolExecutor(1) as pool:
        with engine.lock:
            dropped = batcher.submit(image(3))
            assert engine.asked.acquire(timeout=LONG_S)
            closing = pool.submit(batcher.close, drain=False)
            await_true(lambda: batcher._closed)
        closing.result(LONG_S)
    assert dropped.cancelled()
    assert fake.batches == []


def test_callbacks_do_not_keep_the_engine(shared, fake):
    """They may call it themselves: those of requests that were run, failed or are too late."""
    engine, batcher = shared
    fake.failing[2] = ValueError("of the backend")
    free = []
    for number, deadline in ((1, math.inf), (2, math.inf), (3, 0.0)):
        future = batcher.submit(image(number), deadline=deadline)
        future.add_done_callback(lambda _: free.append(not engine.lock.locked()))
        future.exception(LONG_S)
    batcher.close()
    assert free == [True] * 3


# --- a full queue


def test_a_full_queue_is_said(held, fake):
    batcher = held(size=2, max_waiting=3)
    batcher.submit(several(1, 2))
    with pytest.raises(BusyError, match="2 images are waiting"):
        batcher.submit(several(3, 4), block=False)
    future = batcher.submit(image(3), block=False)
    with pytest.raises(BusyError, match="3 images are waiting") as caught:
        batcher.submit(image(4), block=False)
    assert caught.value.hint
    fake.go.set()
    future.result(LONG_S)
    batcher.submit(image(5), block=False).result(LONG_S)
    assert fake.seen == [0, 1, 2, 3, 5]


def test_a_full_queue_blocks_callers_and_lets_them_in_as_they_came(held, fake):
    batcher = held(size=2, max_waiting=2)
    batcher.submit(several(1, 2))
    futures = {}

    def call(number):
        futures[number] = batcher.submit(image(number))

    threads = []
    for number in range(3, 9):
        threads.append(threading.Thread(target=call, args=(number,)))
        threads[-1].start()
        await_line(batcher, len(threads))
    with pytest.raises(BusyError):  # nobody overtakes
        batcher.submit(image(9), block=False)
    fake.go.set()
    for thread in threads:
        thread.join(LONG_S)
    assert all(futures[number].result(LONG_S)[0] == number for number in range(3, 9))
    assert fake.seen == list(range(9))


def await_line(batcher, count):
    await_true(lambda: len(batcher._in_line) >= count)


def test_nobody_overtakes_into_room_that_is_too_small_for_the_first(held, fake):
    batcher = held(size=4, max_waiting=4)
    batcher.submit(several(1, 2, 3))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(batcher.submit, several(4, 5, 6))
        await_line(batcher, 1)
        try:
            with pytest.raises(BusyError, match="3 images are waiting"):
                batcher.submit(image(7), block=False)
        finally:
            fake.go.set()
        first.result(LONG_S).result(LONG_S)
    assert fake.batches == [[0], [1, 2, 3], [4, 5, 6]]


def test_who_gets_in_wakes_the_next_in_line(held, fake, monkeypatch):
    """At once: the look that everybody takes now and then is put off."""
    monkeypatch.setattr(microbatching, "LOOK_AGAIN_S", 100 * LONG_S)
    batcher = held(size=2, max_waiting=2)
    batcher.submit(several(1, 2))
    with ThreadPoolExecutor(2) as pool:
        calls = []
        for number in (3, 4):
            calls.append(pool.submit(batcher.submit, image(number)))
            await_line(batcher, len(calls))
        batcher._begin()  # makes room for both and wakes the first of them
        try:
            for call in calls:
                assert call.result(LONG_S / 6)
        finally:
            batcher._wake_all()
            fake.go.set()


def test_memory_of_batches_is_used_again(make, monkeypatch):
    made = []

    class Counted(trays.Tray):
        def __init__(self, *args):
            made.append(self)
            super().__init__(*args)

    monkeypatch.setattr(microbatching, "Tray", Counted)
    batcher = make()
    for number in range(20):
        batcher.submit(image(number)).result(LONG_S)
    assert 1 <= len(made) <= 3  # one is filled while another is put away


def test_memory_that_is_used_again_has_no_deadline_of_before():
    tray = trays.Tray(2, IMAGES, LOGITS)
    tray.first_deadline = 3.0
    tray.clear()
    assert tray.first_deadline == math.inf


def test_a_deadline_passes_while_there_is_no_room(held):
    batcher = held(size=1, max_waiting=1)
    batcher.submit(image(1))
    with pytest.raises(DeadlineError, match="before there was room"):
        batcher.submit(image(2), deadline=time.monotonic() + 0.01)


def test_who_waits_for_room_hears_of_the_end(held, fake):
    batcher = held(size=1, max_waiting=1)
    accepted = batcher.submit(image(1))
    with ThreadPoolExecutor(3) as pool:
        blocked = [pool.submit(batcher.submit, image(number)) for number in (2, 3)]
        await_line(batcher, 2)
        closing = pool.submit(batcher.close)
        for call in blocked:
            with pytest.raises(FeedError, match="the engine is closed"):
                call.result(LONG_S)
        fake.go.set()
        closing.result(LONG_S)
    assert accepted.result(0)[0] == 1


# --- the end


def test_close_answers_what_was_accepted(make, fake):
    batcher = make(size=2, max_delay_s=LONG_S)
    fake.hold()
    futures = [batcher.submit(image(number)) for number in range(5)]
    fake.await_begin()
    fake.go.set()
    batcher.close()  # the last one does not wait for company any more
    assert [future.result(0)[0] for future in futures] == [0, 1, 2, 3, 4]
    with pytest.raises(FeedError, match="the engine is closed"):
        batcher.submit(image(6))
    batcher.close()
    assert fake.batches == [[0, 1], [2, 3], [4]]


def test_close_without_draining_cancels_what_waits(held, fake):
    batcher = held(size=2)
    futures = [batcher.submit(image(number)) for number in range(1, 6)]
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(batcher.close, drain=False)
        while not batcher._closed:
            time.sleep(0.001)
        fake.go.set()
        closing.result(LONG_S)
    assert all(future.cancelled() for future in futures)
    assert wait(futures, 0).not_done == set()
    assert batcher.first.result(0) is not None
    assert fake.batches == [[0]]


def test_close_within_a_callback_is_refused(make):
    batcher, heard = make(), []

    def close(future):
        with pytest.raises(FeedError, match="closed from a callback"):
            batcher.close()
        heard.append(future.result())

    batcher.submit(image(3)).add_done_callback(close)
    batcher.close()
    np.testing.assert_array_equal(heard, [[3, 6, -3]])


def test_callbacks_may_submit_and_fail(make, caplog):
    batcher, later = make(), []

    def again(future):
        later.append(batcher.submit(image(int(future.result()[0]) + 1)))
        raise SystemExit

    with caplog.at_level(logging.ERROR):
        batcher.submit(image(1)).add_done_callback(again)
        while not later:
            time.sleep(0.001)
        np.testing.assert_array_equal(later[0].result(LONG_S), [2, 4, -2])
    assert "a callback of a request failed" in caplog.text


def test_a_future_that_somebody_else_answered_harms_nobody(held, fake, caplog):
    batcher = held()
    foreign, own = batcher.submit(image(1)), batcher.submit(image(2))
    foreign.set_result("mine")
    fake.go.set()
    np.testing.assert_array_equal(own.result(LONG_S), [2, 4, -2])
    assert foreign.result() == "mine"


def test_everybody_hears_when_the_thread_dies(held, fake, monkeypatch):
    """Of something that nobody foresaw, in the midst of a batch."""
    batcher = held(size=2, max_waiting=4)

    def die(tray, requests):
        raise MemoryError("unforeseen")

    futures = [batcher.submit(image(number)) for number in range(1, 5)]
    futures[3].cancel()
    with ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(batcher.submit, image(9))
        await_line(batcher, 1)
        monkeypatch.setattr(trays.Tray, "close_ranks", die)
        monkeypatch.setattr(batcher, "_batching", Batching(max_waiting=2))  # no room comes: the line is still there
        fake.go.set()
        for future in futures[:3]:
            with pytest.raises(RuntimeError, match="thread that makes batches") as caught:
                future.result(LONG_S)
            assert isinstance(caught.value.__cause__, MemoryError)
        with pytest.raises(RuntimeError, match="thread that makes batches"):
            blocked.result(LONG_S).result(LONG_S)
    assert futures[3].cancelled()
    np.testing.assert_array_equal(batcher.first.result(0), [0, 0, 0])
    with pytest.raises(RuntimeError, match="thread that makes batches"):
        batcher.submit(image(5))
    batcher.close()


def test_asyncio_awaits_them(make, fake):
    batcher = make(size=64, max_delay_s=0.01)

    async def ask(number):
        return await asyncio.wrap_future(batcher.submit(image(number), block=False))

    async def ask_all():
        return await asyncio.gather(*(ask(number) for number in range(64)))

    np.testing.assert_array_equal(asyncio.run(ask_all()), answers(range(64)))
    assert len(fake.batches) < 64


def test_an_awaiting_task_that_is_cancelled_cancels_its_request(held, fake):
    batcher = held()

    async def give_up():
        await asyncio.wait_for(asyncio.wrap_future(batcher.submit(image(1))), 0.01)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(give_up())
    fake.go.set()
    batcher.close()
    assert fake.seen == [0]


# --- settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_batch": 0}, "batches of at most 0"),
        ({"max_delay_s": -1.0}, "a delay of -1"),
        ({"max_delay_s": math.nan}, "a delay of nan"),
        ({"max_delay_s": math.inf}, "a delay of inf"),
        ({"max_waiting": 0}, "0 images may wait"),
    ],
)
def test_settings_out_of_range(wrong, message):
    with pytest.raises(SpecError, match=message) as caught:
        Batching(**wrong)
    assert caught.value.hint


def test_the_size_of_a_batch():
    assert Batching().batch_for(64) == 64
    assert Batching(max_batch=8).batch_for(64) == 8
    assert Batching(max_waiting=10).batch_for(64) == 10
    with pytest.raises(SpecError, match="max_batch is 65, the engine takes 64"):
        Batching(max_batch=65).batch_for(64)
    with pytest.raises(SpecError, match="max_batch is 1000000, the engine takes 64"):  # and not of max_waiting
        Batching(max_batch=10**6).batch_for(64)
    with pytest.raises(SpecError, match="7 images may wait, a batch has up to 8"):
        Batching(max_batch=8, max_waiting=7).batch_for(64)


# --- any schedule


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
    monkeypatch.setattr("test_microbatching.LONG_S", 0.2)

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
