"""The end of a batcher, wanted or not, and callbacks and tasks around it."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
from fake_engine import LONG_S, answers, await_line, image

from resnet_deploy import trays
from resnet_deploy.errors import FeedError
from resnet_deploy.microbatching import Batching


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
