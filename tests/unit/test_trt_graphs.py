"""The TensorRT runner on stand-ins: when a graph is captured, what it knows, and when it is given up."""

import numpy as np
import pytest
from cuda_stand_in import Error
from trt_bench import SEEDS, Bench, images
from trt_stand_in import GraphStrategy, IExecutionContext, expected

from resnet_deploy.batching import run_once
from resnet_deploy.cuda.streams import Stream
from resnet_deploy.device_arrays import DeviceArray
from resnet_deploy.errors import DeviceError
from resnet_deploy.runners import trt_lanes
from resnet_deploy.runners.trt_lanes import MOST_GRAPHS


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
    bench.runner.run_on(small, stream=stream, out=out_small)
    assert bench.graphs() == 0  # again after a run without
    for _ in range(2):
        bench.runner.run_on(small, stream=stream, out=out_small)
    assert bench.graphs() == 1
    np.testing.assert_array_equal(out_small.to_host(), expected(images(1)))
    np.testing.assert_array_equal(out_large.to_host(), expected(images(8)))
    bench.close()


def test_where_memory_does_not_grow_the_old_is_not_used_any_more():
    bench = Bench()
    small, large = bench.on_device(images(1)), bench.on_device(images(8))
    bench.runner.run_on(small)
    bench.cuda_stand_in.failing["cudaMalloc"] = Error.cudaErrorMemoryAllocation
    with pytest.raises(DeviceError, match="cudaErrorMemoryAllocation"):
        bench.runner.run_on(large)
    bench.cuda_stand_in.failing.clear()
    for array, size in ((small, 1), (large, 8)):
        np.testing.assert_array_equal(bench.runner.run_on(array).to_host(), expected(images(size)))
    bench.close()


def test_a_context_that_says_so_is_not_captured(monkeypatch):
    monkeypatch.setattr(IExecutionContext, "is_stream_capturable", lambda *_: False, raising=False)
    bench = Bench()
    for _ in range(4):
        run_once(bench.runner, images(2))
    assert "cudaStreamBeginCapture" not in bench.cuda_stand_in.names()
    assert bench.runner.notes == ("no CUDA graphs: tensorrt cannot be captured with this engine",)
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


def test_the_graph_used_longest_ago_goes_first():
    bench = Bench()
    stream, feed = Stream.create(bench.cuda), bench.on_device(images(1))
    *outs, new = [DeviceArray.empty((1, 3), "float32", stream) for _ in range(MOST_GRAPHS + 1)]
    for out in (*outs, *outs, outs[0], new, new):
        bench.runner.run_on(feed, stream=stream, out=out)
    launches = bench.launches()
    for out, more in ((outs[0], 1), (new, 2), (outs[1], 2)):
        bench.runner.run_on(feed, stream=stream, out=out)
        assert bench.launches() == launches + more
    bench.close()


def test_calls_that_did_not_come_back_are_forgotten(monkeypatch):
    """Addresses that come and go must not be kept for ever."""
    monkeypatch.setattr(trt_lanes, "_MOST_SEEN", 3)
    bench = Bench()
    stream, feed = Stream.create(bench.cuda), bench.on_device(images(1))
    outs = [DeviceArray.empty((1, 3), "float32", stream) for _ in range(5)]
    graphs = []
    for number in (0, 1, 2, 3, 0, 2, 1):  # the second 0 finds 1, 2 and 3, the second 2 what is left: 2, 3 and 0
        bench.runner.run_on(feed, stream=stream, out=outs[number])
        graphs.append(bench.graphs())
    assert graphs == [0, 0, 0, 0, 0, 1, 1]
    bench.close()


def test_what_a_failed_call_has_put_into_another_stream_is_waited_for():
    """On the legacy default stream; what comes after it there works in the same memory."""
    bench = Bench()
    feed = bench.on_device(images(4))
    out = DeviceArray.empty((4, 3), "float32", Stream.borrow(bench.cuda, None))
    bench.runner.run_on(feed, out=out)
    out.to_host()
    bench.cuda_stand_in.at(out.pointer, out.nbytes)[1][:] = 0
    bench.cuda_stand_in.failing["cudaStreamSynchronize"] = Error.cudaErrorInvalidValue
    with pytest.raises(DeviceError, match="cudaStreamSynchronize failed"):
        bench.runner.run_on(feed, out=out)
    bench.cuda_stand_in.failing.clear()
    np.testing.assert_array_equal(out.to_host(), expected(images(4)))
    bench.close()


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
