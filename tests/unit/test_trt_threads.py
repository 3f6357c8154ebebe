"""The TensorRT runner on stand-ins: contexts lent to threads."""

import threading

import numpy as np
import pytest
from trt_bench import Bench, images
from trt_stand_in import expected

from resnet_deploy.cuda.streams import Stream
from resnet_deploy.errors import DeviceError


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
        self.lane = self.bench.runner._lanes._take(Stream.create(self.bench.cuda))

    def __exit__(self, *_):
        lanes = self.bench.runner._lanes
        with lanes._changed:
            lanes._idle.append(self.lane)
            lanes._changed.notify()


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
