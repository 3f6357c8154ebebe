"""The TensorRT runner on stand-ins: contexts lent to threads."""

import threading

import numpy as np
import pytest
from trt_bench import Bench, images
from trt_stand_in import expected

from resnet_deploy.cuda.streams import Stream
from resnet_deploy.errors import DeviceError
from resnet_deploy.runners import trt_lanes


@pytest.mark.parametrize("contexts", [1, 2, 8])
def test_threads_get_their_own_answers(contexts):
    bench = Bench(contexts=contexts, seed=1)
    failures = []

    def work(number):
        try:
            stream = Stream.create(bench.cuda)
            feeds = [images(1 + (number + turn) % 8, 100 * number + turn) for turn in range(3)]
            arrays = [bench.on_device(feed, stream) for feed in feeds]
            for turn in range(15):
                logits = bench.runner.run_on(arrays[turn % 3], stream=stream)
                np.testing.assert_array_equal(logits.to_host(), expected(feeds[turn % 3]))
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert 1 <= bench.runner._lanes._made <= contexts
    bench.close()


class Stuck:
    """A lane that is in use until told otherwise."""

    def __init__(self, bench):
        self.bench = bench

    def __enter__(self):
        self.stream, self.taken = Stream.create(self.bench.cuda), []
        self.bench.runner._lanes._take(self.stream, self.taken)
        return self

    def __exit__(self, *_):
        self.bench.runner._lanes._give_back(self.taken)


def test_waiting_for_a_context_ends():
    bench = Bench(contexts=1, timeout_s=0.05)
    array = bench.on_device(images(2))
    with Stuck(bench), pytest.raises(DeviceError, match=r"all 1 execution contexts were in use for 0.05 seconds"):
        bench.runner.run_on(array)
    bench.runner.run_on(array)
    bench.close()


def test_a_context_that_gets_free_is_taken():
    bench = Bench(contexts=1, timeout_s=30)
    array, results = bench.on_device(images(2)), []
    with Stuck(bench):
        thread = threading.Thread(target=lambda: results.append(bench.runner.run_on(array)))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
    thread.join()
    np.testing.assert_array_equal(results[0].to_host(), expected(images(2)))
    bench.close()


def test_a_place_that_gets_free_is_taken():
    bench = Bench(contexts=1, timeout_s=30)
    lanes, array, results = bench.runner._lanes, bench.on_device(images(2)), []
    lanes._made = 1  # as if another thread were about to make the only one
    thread = threading.Thread(target=lambda: results.append(bench.runner.run_on(array)))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    with lanes._changed:  # and failed
        lanes._made = 0
        lanes._changed.notify()
    thread.join(10)
    np.testing.assert_array_equal(results[0].to_host(), expected(images(2)))
    bench.close()


def test_a_context_that_cannot_be_made_leaves_its_place():
    bench = Bench(contexts=1)
    bench.trt.contexts_left = 0
    array = bench.on_device(images(2))
    for _ in range(2):
        with pytest.raises(DeviceError, match="create_execution_context failed: no memory for a context"):
            bench.runner.run_on(array)
    bench.trt.contexts_left = None
    bench.runner.run_on(array)
    bench.close()
    assert [kind for kind in bench.cuda_stand_in.left() if kind in ("event", "graph")] == []


# --- which context is chosen, and when those that wait are told


def test_a_stream_keeps_its_context_and_a_new_one_takes_that_idle_for_longest():
    bench = Bench(contexts=2)
    array, streams = bench.on_device(images(2)), [Stream.create(bench.cuda) for _ in range(3)]
    waits = []
    for number in (0, 1, 1, 0, 2, 0):  # the third stream takes the context of the second
        bench.cuda_stand_in.calls.clear()
        bench.runner.run_on(array, stream=streams[number])
        waits.append(bench.cuda_stand_in.names().count("cudaStreamWaitEvent"))
    assert waits == [0, 0, 0, 0, 1, 0]
    bench.close()


def waiting_call(bench, array):
    """Start a call in a thread that waits for a context; return the thread, and where its error goes."""
    errors = []

    def call():
        try:
            bench.runner.run_on(array)
        except DeviceError as error:
            errors.append(error.message)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    while not bench.runner._lanes._waiting:
        thread.join(0.001)
    return thread, errors


def test_a_call_that_waits_is_told_that_a_context_could_not_be_made(monkeypatch):
    bench = Bench(contexts=1, timeout_s=60)
    array, make, begun, goes_on = bench.on_device(images(2)), trt_lanes.Lane, threading.Event(), threading.Event()

    def fails(engine):
        begun.set()
        goes_on.wait(10)
        raise KeyboardInterrupt

    def call():
        with pytest.raises(KeyboardInterrupt):
            bench.runner.run_on(array)

    monkeypatch.setattr(trt_lanes, "Lane", fails)
    first = threading.Thread(target=call)
    first.start()
    begun.wait(10)
    waiting, errors = waiting_call(bench, array)
    monkeypatch.setattr(trt_lanes, "Lane", make)
    goes_on.set()
    waiting.join(10)
    assert not waiting.is_alive()
    assert errors == []
    first.join(10)
    bench.close()


def test_a_call_that_waits_is_told_that_the_engine_is_closed():
    bench = Bench(contexts=1, timeout_s=60)
    with Stuck(bench):
        waiting, errors = waiting_call(bench, bench.on_device(images(2)))
        closing = threading.Thread(target=bench.runner.close, daemon=True)
        closing.start()
        waiting.join(10)
        assert not waiting.is_alive()
        assert errors == ["the engine is closed"]
    closing.join(10)
    assert not closing.is_alive()
    bench.close()


# --- interrupts, and closing meanwhile


def ends(work):
    """Whether ``work`` ends, in a thread of its own."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()


def test_an_interrupt_right_after_a_lane_was_taken_loses_none(monkeypatch):
    bench = Bench(contexts=1)
    lanes, array = bench.runner._lanes, bench.on_device(images(2))
    take = lanes._take

    def interrupted(*arguments):
        take(*arguments)
        raise KeyboardInterrupt

    for _ in range(2):  # a new lane, and one that was idle
        monkeypatch.setattr(lanes, "_take", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bench.runner.run_on(array)
        monkeypatch.setattr(lanes, "_take", take)
        assert len(lanes._idle) == lanes._made == 1
    np.testing.assert_array_equal(bench.runner.run_on(array).to_host(), expected(images(2)))
    del array
    assert ends(bench.close)
    assert "event" not in bench.cuda_stand_in.left()


def test_closing_does_not_wait_for_ever_for_a_lane_that_was_lost():
    bench = Bench(contexts=2, timeout_s=0.05)
    bench.runner.run_on(bench.on_device(images(2)))
    stuck = Stuck(bench)
    with stuck:
        with pytest.warns(ResourceWarning, match="not released: 1 of 2 execution contexts stayed in use for 0.05 s"):
            assert ends(bench.runner.close)
        bench.runner.close()
        assert "event" in bench.cuda_stand_in.left()
    assert "event" not in bench.cuda_stand_in.left()  # it came back, too late
    del stuck
    bench.close()


def test_a_call_that_comes_while_the_engine_is_closed_leaves_the_lane_there():
    bench = Bench(contexts=2)
    lanes, array, first, second = bench.runner._lanes, bench.on_device(images(2)), Stuck(bench), Stuck(bench)
    closing = threading.Thread(target=bench.runner.close, daemon=True)
    with first:
        with second:
            pass
        closing.start()
        while not lanes._closed:
            closing.join(0.001)
        with pytest.raises(DeviceError, match="the engine is closed"):
            bench.runner.run_on(array, stream=second.stream)
        with pytest.raises(DeviceError, match="the engine is closed"):
            bench.runner.run_on(array)
        assert len(lanes._idle) == 1
    closing.join(10)
    assert not closing.is_alive()
    del array
    bench.close()
