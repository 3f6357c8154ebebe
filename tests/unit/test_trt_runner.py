"""The TensorRT runner on stand-ins for CUDA and TensorRT: order, ownership and data; no hardware is proved by it."""

import gc
import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_stand_in import CudaStandIn, Error
from trt_stand_in import GraphStrategy, TrtStandIn, expected, plan

from resnet_deploy.batching import infer, run_once
from resnet_deploy.cuda.memory import DeviceBuffer, PinnedBuffer, upload
from resnet_deploy.cuda.runtime import Cuda
from resnet_deploy.cuda.streams import Stream
from resnet_deploy.device_arrays import DeviceArray
from resnet_deploy.errors import BundleError, DeviceError, FeedError
from resnet_deploy.runners.trt import TrtRunner
from resnet_deploy.runners.trt_engine import ContextOptions, TrtEngine
from resnet_deploy.runners.trt_lanes import MOST_GRAPHS
from resnet_deploy.specs import BatchRange, ModelCard, Preprocess

SEEDS = [None, *range(5)]
CARD = ModelCard(
    architecture="resnet18",
    num_classes=3,
    weights="none",
    weights_sha256="",
    preprocess=Preprocess(image_size=2, resize=2),
)


class Bench:
    """A runner on stand-ins, and what a test looks at."""

    def __init__(self, *, seed=None, rtx=False, reuse=False, devices=1, data=None, **options):
        self.cuda_stand_in = CudaStandIn(devices=devices, seed=seed, reuse=reuse)
        self.trt = TrtStandIn(self.cuda_stand_in, rtx=rtx)
        self.cuda = Cuda(devices - 1, self.cuda_stand_in)
        self.cuda_stand_in.home = self.cuda.device
        self.engine = TrtEngine(self.trt.api(), data or plan(), self.cuda, ContextOptions(**options))
        self.runner = TrtRunner(self.engine, CARD, BatchRange(1, 2, 8))

    def on_device(self, feed, stream=None):
        """Put a feed on the device, ready; keep what is returned."""
        stream = stream or Stream.create(self.cuda)
        with PinnedBuffer(self.cuda, feed.nbytes) as pinned:
            pinned.view(feed.shape, feed.dtype.name)[...] = feed
            buffer = DeviceBuffer(self.cuda, feed.nbytes)
            upload(self.cuda, buffer.pointer, pinned.pointer, feed.nbytes, stream)
            stream.synchronize()
        return DeviceArray(self.cuda, buffer.pointer, feed.shape, feed.dtype.name, owner=buffer)

    def graphs(self):
        return len(self.cuda_stand_in.graphs)

    def launches(self):
        return self.cuda_stand_in.names().count("cudaGraphLaunch")

    def close(self):
        """Close the runner; hold the stand-ins to account."""
        self.runner.close()
        gc.collect()
        assert self.cuda_stand_in.misuses == []


@pytest.fixture(params=[False, True], ids=["trt", "rtx"])
def rtx(request):
    return request.param


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)


# --- from the host


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("graphs", [True, False])
def test_any_number_of_images_is_answered(rtx, graphs, seed):
    bench = Bench(rtx=rtx, seed=seed, graphs=graphs)
    for count in (0, 1, 29, 64, 3):
        feed = images(count, count)
        np.testing.assert_array_equal(infer(bench.runner, feed), expected(feed))
    assert bool(bench.graphs()) == (graphs and not rtx)
    bench.close()
    assert bench.cuda_stand_in.left() == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_batch_is_loaded_while_another_is_run(seed):
    bench = Bench(seed=seed)
    runner, feeds = bench.runner, [images(8, number) for number in range(12)]
    runner.load(feeds[0])
    runner.enqueue()
    for before, feed in itertools.pairwise(feeds):
        runner.load(feed)
        np.testing.assert_array_equal(runner.fetch(), expected(before))
        runner.enqueue()
    np.testing.assert_array_equal(runner.fetch(), expected(feeds[-1]))
    bench.close()


def test_loading_does_not_wait_for_the_run_before():
    bench = Bench()
    runner = bench.runner
    for _ in range(4):  # twice in each slot, so that both have their graphs
        run_once(runner, images(2))
    runner.load(images(2))
    runner.enqueue()
    del bench.cuda_stand_in.calls[:]
    runner.load(images(2, 1))
    assert not any("Synchronize" in name for name in bench.cuda_stand_in.names())
    compute, copies = runner._compute.handle, runner._copies.handle
    assert compute != copies
    assert len(bench.cuda_stand_in.streams[compute].work) > 0  # the run is still to be done
    bench.close()


def test_the_steps_are_separate():
    bench = Bench()
    runner, feed = bench.runner, images(4)
    runner.load(feed)
    feed_as_loaded = feed.copy()
    runner.enqueue()
    runner.synchronize()
    first = runner.fetch()
    second = runner.fetch()
    np.testing.assert_array_equal(first, expected(feed_as_loaded))
    np.testing.assert_array_equal(second, first)
    first[:] = 0
    assert second.any()  # fresh memory each time
    runner.enqueue()  # again, on what is loaded
    np.testing.assert_array_equal(runner.fetch(), expected(feed_as_loaded))
    bench.close()


def test_steps_out_of_order():
    bench = Bench()
    with pytest.raises(FeedError, match="nothing to run"):
        bench.runner.enqueue()
    with pytest.raises(FeedError, match="nothing to fetch"):
        bench.runner.fetch()
    bench.close()


def test_a_batch_that_does_not_fit_changes_nothing():
    bench = Bench()
    run_once(bench.runner, images(2))
    for wrong in (images(9), images(2).astype(np.float32), images(2)[:, :1], images(0)):
        with pytest.raises(FeedError):
            bench.runner.load(wrong)
    np.testing.assert_array_equal(run_once(bench.runner, images(2, 5)), expected(images(2, 5)))
    bench.close()


# --- graphs


def test_a_graph_is_captured_after_a_run_without_it():
    bench = Bench()
    feed, stream = bench.on_device(images(4)), Stream.create(bench.cuda)
    out = DeviceArray.empty((4, 3), "float32", stream)
    for _ in range(5):
        bench.runner.run_on(feed, stream=stream, out=out)
        np.testing.assert_array_equal(out.to_host(), expected(images(4)))
    kinds = [kind for kind, _ in bench.trt.enqueued]
    assert kinds == ["plain", "plain", "captured"]  # once for the call, once more in the graph's own context
    assert bench.launches() == 3
    assert bench.trt.enqueued[-1][1] != stream.handle  # never captured from the caller's stream
    bench.close()


def test_with_a_graph_three_calls_are_all():
    bench = Bench()
    feed, stream = bench.on_device(images(4)), Stream.create(bench.cuda)
    out = DeviceArray.empty((4, 3), "float32", stream)
    for _ in range(3):
        bench.runner.run_on(feed, stream=stream, out=out)
    del bench.cuda_stand_in.calls[:]
    bench.runner.run_on(feed, stream=stream, out=out)
    assert bench.cuda_stand_in.names() == ["cudaStreamIsCapturing", "cudaGraphLaunch", "cudaEventRecord"]
    bench.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_other_buffers_and_sizes_have_graphs_of_their_own(seed):
    bench = Bench(seed=seed)
    stream = Stream.create(bench.cuda)
    sets = []
    for size in (1, 8, 3, 8):
        feed = images(size, size + len(sets))
        out = DeviceArray.empty((size, 3), "float32", stream)
        sets.append((feed, bench.on_device(feed), out))
    for _ in range(4):
        for feed, array, out in sets:
            bench.runner.run_on(array, stream=stream, out=out)
            np.testing.assert_array_equal(out.to_host(), expected(feed))
    assert bench.graphs() == 4
    bench.close()


def test_growing_memory_drops_the_graphs_that_knew_the_old():
    bench = Bench()
    stream = Stream.create(bench.cuda)
    small, large = bench.on_device(images(1)), bench.on_device(images(8))
    out_small, out_large = (DeviceArray.empty((size, 3), "float32", stream) for size in (1, 8))
    for _ in range(3):
        bench.runner.run_on(small, stream=stream, out=out_small)
    assert bench.graphs() == 1
    bench.runner.run_on(large, stream=stream, out=out_large)
    assert bench.graphs() == 0
    for _ in range(3):
        bench.runner.run_on(small, stream=stream, out=out_small)
    np.testing.assert_array_equal(out_small.to_host(), expected(images(1)))
    np.testing.assert_array_equal(out_large.to_host(), expected(images(8)))
    bench.close()


def test_graphs_are_bounded():
    bench = Bench()
    stream, feed = Stream.create(bench.cuda), bench.on_device(images(1))
    outs = [DeviceArray.empty((1, 3), "float32", stream) for _ in range(MOST_GRAPHS + 4)]
    for _ in range(2):
        for out in outs:
            bench.runner.run_on(feed, stream=stream, out=out)
    assert bench.graphs() == MOST_GRAPHS
    bench.close()
    assert "graph" not in bench.cuda_stand_in.left()


def test_a_refused_capture_is_remembered_and_said():
    bench = Bench()
    bench.trt.not_capturable = True
    assert bench.runner.notes == ("CUDA graphs, one for each batch size and pair of buffers",)
    for number in range(6):
        feed = images(4, number)
        np.testing.assert_array_equal(run_once(bench.runner, feed), expected(feed))
    assert bench.cuda_stand_in.names().count("cudaStreamBeginCapture") == 1
    (note,) = bench.runner.notes
    assert note.startswith("no CUDA graphs: tensorrt: execute_async_v3 failed: cudaErrorStreamCapture")
    bench.close()


def test_no_memory_for_a_graph_is_no_failure():
    bench = Bench()
    bench.trt.contexts_left = 1
    for number in range(6):
        feed = images(4, number)
        np.testing.assert_array_equal(run_once(bench.runner, feed), expected(feed))
    assert bench.runner.notes == ("no CUDA graphs: tensorrt: create_execution_context failed: no memory for a context",)
    bench.close()


def test_without_graphs_none_is_captured():
    bench = Bench(graphs=False)
    for _ in range(6):
        run_once(bench.runner, images(4))
    assert "cudaStreamBeginCapture" not in bench.cuda_stand_in.names()
    assert bench.runner.notes == ("no CUDA graphs, as asked for",)
    bench.close()


@pytest.mark.parametrize("graphs", [True, False])
def test_rtx_captures_by_itself(graphs):
    bench = Bench(rtx=True, graphs=graphs)
    for _ in range(4):
        run_once(bench.runner, images(4))
    assert "cudaStreamBeginCapture" not in bench.cuda_stand_in.names()
    config = bench.trt.engines[0].contexts[0].config
    assert config.cuda_graph_strategy == (GraphStrategy.WHOLE_GRAPH_CAPTURE if graphs else GraphStrategy.DISABLED)
    assert ("itself" in bench.runner.notes[0]) == graphs
    bench.close()


# --- profiles


def test_the_profile_tuned_for_the_nearest_size_is_used():
    bench = Bench(data=plan(profiles=((1, 1, 2), (1, 4, 8), (2, 8, 8))))
    chosen = {size: bench.engine.profile_for(size) for size in range(1, 9)}
    assert chosen == {1: 0, 2: 0, 3: 1, 4: 1, 5: 1, 6: 1, 7: 2, 8: 2}
    for size in (1, 7, 3, 1, 8, 2):
        np.testing.assert_array_equal(run_once(bench.runner, images(size)), expected(images(size)))
    bench.close()


def test_a_size_that_no_profile_holds():
    bench = Bench()
    with pytest.raises(FeedError, match="batch of 9, the plan takes 1 to 8"):
        bench.engine.profile_for(9)
    with pytest.raises(BundleError, match=r"spec.batch is 1:2:16, and no profile of the plan holds 16"):
        TrtRunner(bench.engine, CARD, BatchRange(1, 2, 16))
    bench.close()


# --- on the device


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("default", [False, True])
def test_results_in_fresh_memory(rtx, default, seed):
    bench = Bench(rtx=rtx, seed=seed)
    feed = images(5)
    array = bench.on_device(feed)
    stream = None if default else Stream.create(bench.cuda)
    kept = [bench.runner.run_on(array, stream=stream) for _ in range(4)]
    for logits in kept:
        assert logits.shape == (5, 3)
        np.testing.assert_array_equal(logits.to_host(), expected(feed))
    assert len({logits.pointer for logits in kept}) == 4
    del kept, logits
    gc.collect()
    bench.close()
    for handle in list(bench.cuda_stand_in.streams):
        bench.cuda_stand_in.drain(handle)
    assert "ordered" not in bench.cuda_stand_in.left()


def test_memory_that_comes_back_is_served_by_one_graph():
    bench = Bench(reuse=True)
    array, stream = bench.on_device(images(5)), Stream.create(bench.cuda)
    for _ in range(10):
        np.testing.assert_array_equal(bench.runner.run_on(array, stream=stream).to_host(), expected(images(5)))
        bench.cuda_stand_in.drain(stream.handle)
    assert bench.graphs() == 1
    assert bench.launches() == 8
    bench.close()


def test_the_caller_s_memory_is_written_and_read_in_place(rtx):
    bench = Bench(rtx=rtx)
    array, stream = bench.on_device(images(5)), Stream.create(bench.cuda)
    out = DeviceArray.empty((5, 3), "float32", stream)
    given = SimpleNamespace(__cuda_array_interface__=out.__cuda_array_interface__)
    logits = bench.runner.run_on(array, stream=SimpleNamespace(cuda_stream=stream.handle), out=given)
    assert logits.pointer == out.pointer
    assert logits.owner is given
    context = bench.trt.engines[0].contexts[0]
    assert context.addresses == {"images": array.pointer, "logits": out.pointer}
    np.testing.assert_array_equal(out.to_host(), expected(images(5)))
    bench.close()


def test_no_host_waits_once_things_are_warm():
    bench = Bench()
    array = bench.on_device(images(5))
    outs = {}
    for stream in (None, Stream.create(bench.cuda), 0):
        outs[stream] = DeviceArray.empty((5, 3), "float32", Stream.borrow(bench.cuda, stream))
        for _ in range(3):
            bench.runner.run_on(array, stream=stream, out=outs[stream])
    del bench.cuda_stand_in.calls[:]
    for stream, out in outs.items():
        for _ in range(3):
            bench.runner.run_on(array, stream=stream, out=out)
    names = bench.cuda_stand_in.names()
    assert names
    assert not any("Synchronize" in name or name in ("cudaMalloc", "cudaFree") for name in names)
    bench.close()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rounds", [1, 4])
def test_contexts_that_change_streams_wait_for_their_last_call(seed, rounds):
    """One lane for all: each call must wait for the one before, for they share the memory for activations."""
    bench = Bench(seed=seed, contexts=1)
    own = [Stream.create(bench.cuda) for _ in range(3)]
    streams = [own[0], None, own[1], own[2].handle]
    feeds = [images(1 + number % 8, number) for number in range(8)]
    arrays = [bench.on_device(feed) for feed in feeds]
    outs = [DeviceArray.empty((len(feed), 3), "float32", own[0]) for feed in feeds]
    for turn in range(rounds):
        for number, (array, out) in enumerate(zip(arrays, outs, strict=True)):
            bench.runner.run_on(array, stream=streams[(number + turn) % len(streams)], out=out)
        if turn < rounds - 1:
            for stream in own:
                stream.synchronize()
    for handle in list(bench.cuda_stand_in.streams):
        bench.cuda_stand_in.drain(handle)
    for feed, out in zip(feeds, outs, strict=True):
        np.testing.assert_array_equal(out.to_host(), expected(feed))
    bench.close()
    del array, arrays, out, outs  # they remember a bare handle, whose stream goes first from Python 3.12 on


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("default", [False, True])
def test_images_may_still_be_on_their_way(seed, default):
    bench = Bench(seed=seed)
    stream = Stream.borrow(bench.cuda, None) if default else Stream.create(bench.cuda)
    for number in range(5):
        feed = images(4, number)
        pinned = PinnedBuffer(bench.cuda, feed.nbytes)
        pinned.view(feed.shape, "uint8")[...] = feed
        array = DeviceArray.empty(feed.shape, "uint8", stream)
        upload(bench.cuda, array.pointer, pinned.pointer, feed.nbytes, stream)
        logits = bench.runner.run_on(array, stream=None if default else stream)
        np.testing.assert_array_equal(logits.to_host(), expected(feed))
    bench.close()


def test_a_bare_handle_may_come_to_mean_another_stream():
    bench = Bench()
    array, stream = bench.on_device(images(2)), Stream.create(bench.cuda)
    for given, waits in ((stream, 0), (stream.handle, 1)):
        bench.runner.run_on(array, stream=given)
        del bench.cuda_stand_in.calls[:]
        bench.runner.run_on(array, stream=given)
        assert bench.cuda_stand_in.names().count("cudaStreamWaitEvent") == waits
    bench.close()


@pytest.mark.parametrize("change", ["batch", "dtype", "shape", "strides"])
def test_what_does_not_fit_is_named(change):
    bench = Bench()
    buffer = DeviceBuffer(bench.cuda, 4096)
    interface = {"data": (buffer.pointer, False), "shape": (2, 2, 2, 3), "typestr": "|u1", "version": 3}
    wrong, message = {
        "batch": ({"shape": (9, 2, 2, 3)}, "batch of 9, the engine takes 1 to 8"),
        "dtype": ({"typestr": "<f4"}, "has dtype float32, the engine takes uint8"),
        "shape": ({"shape": (2, 3, 2, 2)}, r"has shape \(2, 3, 2, 2\), the engine takes \(N, 2, 2, 3\)"),
        "strides": ({"strides": (12, 1, 4, 2)}, "not contiguous"),
    }[change]
    with pytest.raises(FeedError, match=message):
        bench.runner.run_on(SimpleNamespace(__cuda_array_interface__=interface | wrong))
    bench.runner.run_on(SimpleNamespace(__cuda_array_interface__=interface))
    bench.close()


def test_what_does_not_take_the_logits_is_named():
    bench = Bench()
    array, stream = bench.on_device(images(2)), Stream.create(bench.cuda)
    for shape, dtype in (((3, 3), "float32"), ((2, 3), "float16"), ((6,), "float32")):
        with pytest.raises(FeedError, match=r"out is .*, the logits are float32"):
            bench.runner.run_on(array, stream=stream, out=DeviceArray.empty(shape, dtype, stream))
    out = DeviceArray.empty((2, 3), "float32", stream)
    out.read_only = True
    with pytest.raises(FeedError, match="out is read-only"):
        bench.runner.run_on(array, stream=stream, out=out)
    bench.close()


def test_the_engine_s_device_is_used_and_the_thread_s_given_back():
    bench = Bench(devices=2)
    feed = images(3)
    assert bench.cuda_stand_in.device() == 0
    for _ in range(3):
        np.testing.assert_array_equal(run_once(bench.runner, feed), expected(feed))
    assert bench.cuda_stand_in.device() == 0
    assert {one.device for one in bench.cuda_stand_in.memory.values() if one.kind == "device"} == {1}
    bench.close()


@pytest.mark.parametrize("end", ["copied", "dropped", "read elsewhere", "read on the default stream"])
def test_results_on_the_default_stream_are_those_of_the_engine_s_device(end):
    """The handle of the default stream means that of whatever device the thread is on: here another one."""
    bench = Bench(devices=2)
    array, feed, reader = bench.on_device(images(2)), images(2), Stream.create(bench.cuda)
    for _ in range(3):
        logits = bench.runner.run_on(array)
        if end == "copied":
            np.testing.assert_array_equal(logits.to_host(), expected(feed))
        elif end == "read elsewhere":
            logits.__dlpack__(stream=reader.handle)
        elif end == "read on the default stream":
            logits.__dlpack__(stream=1)
        del logits
    assert bench.cuda_stand_in.device() == 0
    del array
    bench.close()


def test_a_wait_that_failed_is_made_up_for():
    """Two calls of one lane would otherwise work in the same memory at the same time."""
    bench = Bench(contexts=1, graphs=False)
    array, first, second = bench.on_device(images(2)), Stream.create(bench.cuda), Stream.create(bench.cuda)
    bench.runner.run_on(array, stream=first)
    bench.cuda_stand_in.failing["cudaStreamWaitEvent"] = Error.cudaErrorNotReady
    with pytest.raises(DeviceError, match="cudaStreamWaitEvent failed"):
        bench.runner.run_on(array, stream=second)
    del bench.cuda_stand_in.failing["cudaStreamWaitEvent"]
    bench.cuda_stand_in.calls.clear()
    logits = bench.runner.run_on(array, stream=second)
    assert "cudaStreamWaitEvent" in bench.cuda_stand_in.names()
    np.testing.assert_array_equal(logits.to_host(), expected(images(2)))
    del logits, array
    bench.close()


def test_a_stream_that_is_being_captured_is_refused():
    bench = Bench()
    array, stream = bench.on_device(images(2)), Stream.create(bench.cuda)
    bench.cuda.call("cudaStreamBeginCapture", stream.native, 1)
    with pytest.raises(FeedError, match="the stream is being captured"):
        bench.runner.run_on(array, stream=stream)
    bench.cuda.call("cudaGraphDestroy", bench.cuda.call("cudaStreamEndCapture", stream.native))
    np.testing.assert_array_equal(bench.runner.run_on(array, stream=stream).to_host(), expected(images(2)))
    del array
    bench.close()


@pytest.mark.parametrize("fails", [False, True])
def test_memory_given_as_out_waits_for_whoever_reads_the_result(fails):
    bench = Bench()
    array, stream, reader = bench.on_device(images(2)), Stream.create(bench.cuda), Stream.create(bench.cuda)
    out = DeviceArray.empty((2, 3), "float32", stream)
    result = bench.runner.run_on(array, stream=stream, out=out)
    capsule = result.__dlpack__(stream=reader.handle)
    if fails:  # as where the reader's stream was destroyed meanwhile
        bench.cuda_stand_in.failing["cudaEventRecord"] = Error.cudaErrorInvalidValue
    bench.cuda_stand_in.calls.clear()
    del result, out, capsule
    gc.collect()
    names = bench.cuda_stand_in.names()
    waited = "cudaDeviceSynchronize" if fails else "cudaStreamWaitEvent"
    assert names.index(waited) < names.index("cudaFreeAsync")
    bench.cuda_stand_in.failing.clear()
    del array
    bench.close()


# --- threads


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


# --- failures


def test_tensorrt_s_no_becomes_an_error_with_its_reason(rtx):
    bench = Bench(rtx=rtx)
    run_once(bench.runner, images(2))
    bench.trt.fails = True
    bench.runner.load(images(3))
    with pytest.raises(DeviceError, match=r"tensorrt.*: execute_async_v3 failed: enqueue failed"):
        bench.runner.enqueue()
    bench.trt.fails = False
    np.testing.assert_array_equal(run_once(bench.runner, images(3)), expected(images(3)))
    bench.close()


def test_no_memory_is_said_with_what_to_do():
    bench = Bench()
    bench.cuda_stand_in.failing["cudaMalloc"] = Error.cudaErrorMemoryAllocation
    with pytest.raises(DeviceError, match="cudaMalloc failed: cudaErrorMemoryAllocation") as caught:
        bench.runner.load(images(2))
    assert "--batch" in caught.value.hint
    bench.cuda_stand_in.failing.clear()
    np.testing.assert_array_equal(run_once(bench.runner, images(2)), expected(images(2)))
    bench.close()
    assert bench.cuda_stand_in.left() == []


def test_a_closed_runner_says_so():
    bench = Bench()
    array = bench.on_device(images(2))
    bench.runner.run_on(array)
    bench.runner.close()
    bench.runner.close()
    with pytest.raises(DeviceError, match="the engine is closed"):
        bench.runner.run_on(array)
    bench.close()


def test_nothing_is_left_after_many_calls():
    bench = Bench(reuse=True)
    array, stream = bench.on_device(images(2)), Stream.create(bench.cuda)

    def calls(count):
        for _ in range(count):
            bench.runner.run_on(array, stream=stream)
            run_once(bench.runner, images(2))
            bench.cuda_stand_in.drain(stream.handle)
        del bench.cuda_stand_in.calls[:]
        return bench.cuda_stand_in.left()

    warm = calls(10)
    assert {"device", "graph", "event"} <= set(warm)
    assert calls(500) == warm
    bench.close()


def test_a_plan_of_another_model():
    stand_in = CudaStandIn()
    trt, cuda = TrtStandIn(stand_in), Cuda(0, stand_in)
    with pytest.raises(BundleError, match="the plan has tensors logits, x, expected are images and logits"):
        TrtEngine(trt.api(), plan(names=("x", "logits")), cuda)
    with pytest.raises(DeviceError, match="tensorrt cannot load the plan: magic tag does not match"):
        TrtEngine(trt.api(), b"no plan at all", cuda)


# --- the stand-in catches what is wrong


@pytest.mark.parametrize("missing", ["address", "memory", "shape"])
def test_stand_in_catches_what_is_not_set(missing):
    bench = Bench()
    context = bench.engine.new_context()
    buffer = DeviceBuffer(bench.cuda, 4096)
    if missing != "shape":
        context.set_optimization_profile_async(0, 0)
        context.set_input_shape("images", (2, 2, 2, 3))
        context.update_device_memory_size_for_shapes()
    if missing != "memory":
        context.set_device_memory(buffer.pointer, 4096)
    if missing != "address":
        context.set_tensor_address("images", buffer.pointer)
    context.set_tensor_address("logits", buffer.pointer)
    assert context.execute_async_v3(0) is False
    assert len(bench.cuda_stand_in.misuses) == 1


def test_stand_in_catches_a_capture_without_a_run_before():
    bench = Bench()
    context, side = bench.engine.new_context(), Stream.create(bench.cuda)
    buffer = DeviceBuffer(bench.cuda, 4096)
    context.set_optimization_profile_async(0, 0)
    context.set_input_shape("images", (2, 2, 2, 3))
    context.update_device_memory_size_for_shapes()
    context.set_device_memory(buffer.pointer, 4096)
    for name in ("images", "logits"):
        context.set_tensor_address(name, buffer.pointer)
    bench.cuda.call("cudaStreamBeginCapture", side.native, 1)
    assert context.execute_async_v3(side.handle) is False
    with pytest.raises(DeviceError, match="Invalidated"):
        bench.cuda.call("cudaStreamEndCapture", side.native)


def test_stand_in_has_no_name_that_tensorrt_lacks():
    trt = pytest.importorskip("tensorrt_rtx")
    bench = Bench(rtx=True)
    config = bench.engine._config
    pairs = [
        (bench.trt.engines[0], trt.ICudaEngine, {"runtime", "model", "contexts"}),
        (bench.engine._runtime, trt.Runtime, {"logger", "trt"}),
        (config, trt.IRuntimeConfig, {"strategy", "cache", "accepts"}),
        (config.create_runtime_cache(), trt.IRuntimeCache, {"accepts", "kernels"}),
    ]
    for stand_in, real, own in pairs:
        names = {name for name in dir(stand_in) if not name.startswith("_")} - own
        assert len(names) > 1
        assert {name for name in names if not hasattr(real, name)} == set()
    methods = {"set_input_shape", "set_tensor_address", "set_device_memory", "execute_async_v3", "is_stream_capturable"}
    assert all(hasattr(trt.IExecutionContext, name) for name in methods)
