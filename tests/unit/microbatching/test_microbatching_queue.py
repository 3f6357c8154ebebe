"""A full queue: callers get in as they came, memory is used again."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_engine import IMAGES, LOGITS, LONG_S, await_line, image, several

from resnet_deploy import microbatching, trays
from resnet_deploy.errors import BusyError, DeadlineError, FeedError
from resnet_deploy.fair_lock import Signal


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


@pytest.mark.parametrize("look_again_s", [1.0, 100 * LONG_S])
def test_who_waits_for_room_looks_again_and_at_its_deadline(held, fake, monkeypatch, look_again_s):
    noted, caller = [], threading.current_thread()

    class Noting(Signal):
        def wait(self, seconds):
            if threading.current_thread() is caller:
                noted.append(seconds)
                fake.go.set()  # there will be room
            super().wait(seconds)

    batcher = held(size=1, max_waiting=1)
    batcher.submit(image(1))
    monkeypatch.setattr(microbatching, "Signal", Noting)
    monkeypatch.setattr(microbatching, "LOOK_AGAIN_S", look_again_s)
    batcher.submit(image(2), deadline=time.monotonic() + LONG_S)
    assert noted[0] <= min(look_again_s, LONG_S)


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
