"""The TensorRT runner on stand-ins: images and logits that stay on the device, in the order of streams."""

import gc
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_stand_in import Error
from trt_bench import FLAVOURS, SEEDS, Bench, images
from trt_stand_in import expected

from resnet_deploy.batching import run_once
from resnet_deploy.cuda.memory import DeviceBuffer, PinnedBuffer, upload
from resnet_deploy.cuda.streams import Stream
from resnet_deploy.device_arrays import DeviceArray
from resnet_deploy.errors import DeviceError, FeedError


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("default", [False, True])
@FLAVOURS
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


@FLAVOURS
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
    del array, arrays, out, outs  # they remember a bare handle, whose stream goes first from Python 3.12 on
    bench.close()


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


@pytest.mark.parametrize(("offset", "overlaps"), [(-60, False), (-4, True), (0, True), (56, True), (60, False)])
def test_logits_are_not_written_over_images_that_are_read(offset, overlaps):
    """Five images and their logits take 60 bytes each."""
    bench = Bench()
    memory = bench.on_device(np.concatenate([images(8), images(8)]))
    array = DeviceArray(bench.cuda, memory.pointer + 60, (5, 2, 2, 3), "uint8", owner=memory)
    out = DeviceArray(bench.cuda, array.pointer + offset, (5, 3), "float32", owner=memory)
    if overlaps:
        with pytest.raises(FeedError, match=r"^out overlaps with the images$") as caught:
            bench.runner.run_on(array, out=out)
        assert caught.value.hint
        assert bench.trt.enqueued == []
    else:
        before = array.to_host()
        np.testing.assert_array_equal(bench.runner.run_on(array, out=out).to_host(), expected(before))
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
