"""Requests gathered into batches: each answered once, with its own answer, in the order of asking."""

import contextlib
import math
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import numpy as np
import pytest
from fake_engine import IMAGES, LOGITS, LONG_S, answers, await_true, image, several

from resnet_deploy import microbatching
from resnet_deploy.errors import DeadlineError, FeedError, SpecError
from resnet_deploy.fair_lock import Signal
from resnet_deploy.microbatching import Batching, MicroBatcher

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
