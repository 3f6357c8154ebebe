"""The device's clock and TensorRT's profiler, on stand-ins: what is asked when; no hardware is proved by it."""

import gc

import numpy as np
import pytest
from cuda_stand_in import Error
from trt_bench import SEEDS, Bench, images
from trt_stand_in import expected

from resnet_deploy.batching import run_once
from resnet_deploy.bench.calls import Feeds, call_for
from resnet_deploy.bench.layer_times import layer_times
from resnet_deploy.bench.records import LayerTime, Way
from resnet_deploy.errors import DeviceError, FeedError
from resnet_deploy.protocols import ProfilesLayers, TimesSteps
from resnet_deploy.runners import has_graphs


@pytest.fixture(params=[False, True], ids=["trt", "rtx"])
def rtx(request):
    return request.param


@pytest.mark.parametrize("seed", SEEDS)
def test_a_timed_call_answers_as_any_other(rtx, seed):
    bench = Bench(rtx=rtx, seed=seed)
    for number in range(6):  # with and without graphs, in both slots
        feed = images(3, number)
        steps = bench.runner.time_steps(feed)
        assert min(steps) > 0
        np.testing.assert_array_equal(bench.runner.fetch(), expected(feed))
        np.testing.assert_array_equal(run_once(bench.runner, images(2, number)), expected(images(2, number)))
    bench.close()
    assert bench.cuda_stand_in.left() == []


def test_each_step_alone_lies_between_its_events():
    bench = Bench()
    for _ in range(4):
        bench.runner.time_steps(images(2))  # graphs are captured
    stand_in = bench.cuda_stand_in
    del stand_in.calls[:]
    bench.runner.time_steps(images(2))
    work = ("cudaEventRecord", "cudaMemcpyAsync", "cudaGraphLaunch", "cudaEventElapsedTime", "cudaStreamSynchronize")
    asked = [one for one in stand_in.calls if one[0] in work]
    elapsed = [one[1:] for one in asked if one[0] == "cudaEventElapsedTime"]
    assert len(elapsed) == 3
    position = {int(one[1]): index for index, one in enumerate(asked) if one[0] == "cudaEventRecord"}
    between = [
        [one[0] for one in asked[position[int(start)] + 1 : position[int(end)]] if one[0] != "cudaEventRecord"]
        for start, end in elapsed
    ]
    assert between == [["cudaMemcpyAsync"], ["cudaGraphLaunch"], ["cudaMemcpyAsync"]]
    kinds = [int(one[4]) for one in asked if one[0] == "cudaMemcpyAsync"]
    assert kinds == [1, 2]  # to the device, then back
    # Start and end of a step are marks in one stream, and nobody waits before all of it is put there.
    streams = {int(one[1]): int(one[2]) for one in asked if one[0] == "cudaEventRecord"}
    assert all(streams[int(start)] == streams[int(end)] for start, end in elapsed)
    assert [one[0] for one in asked].index("cudaStreamSynchronize") > max(position.values())
    bench.close()


def test_scopes_of_the_device_are_its_events(rtx):
    bench = Bench(rtx=rtx)
    assert isinstance(bench.runner, TimesSteps)
    for scope in ("h2d", "device", "d2h"):
        assert call_for(bench.runner, Way(2, scope), Feeds(images(2)))() == pytest.approx(1.5e-3)  # what it always says
    bench.close()


def test_a_batch_that_does_not_fit_is_refused():
    bench = Bench()
    with pytest.raises(FeedError):
        bench.runner.time_steps(images(9))
    with pytest.raises(FeedError):
        bench.runner.profile_layers(images(9), 1)
    bench.close()


def test_graphs_are_what_runs_and_not_what_was_asked_for(rtx):
    assert has_graphs("tensorrt")
    assert not has_graphs("onnxruntime")
    without = Bench(rtx=rtx, graphs=False)
    run_once(without.runner, images(2))
    assert without.runner.graphs is False
    granted = Bench(rtx=rtx)
    for _ in range(4):
        run_once(granted.runner, images(2))
    assert granted.runner.graphs is True
    for bench in (without, granted):
        bench.close()


def test_a_refused_capture_is_no_graph():
    bench = Bench()
    bench.trt.not_capturable = True
    for _ in range(4):
        run_once(bench.runner, images(2))
    assert bench.runner.graphs is False
    bench.close()


# --- layers


@pytest.mark.parametrize("seed", SEEDS)
def test_layers_are_what_the_profiler_reports(rtx, seed):
    bench = Bench(rtx=rtx, seed=seed)
    assert isinstance(bench.runner, ProfilesLayers)
    for _ in range(4):
        run_once(bench.runner, images(2))  # graphs are about, and not in the way
    times = layer_times(bench.runner, images(2), 2)
    assert times.profiler == "TensorRT"
    assert [one.name for one in times.layers] == ["sum", "product"]
    assert [one.seconds for one in times.layers] == pytest.approx([2e-3, 0.5e-3])  # means, not sums
    feed = images(2, 7)
    np.testing.assert_array_equal(run_once(bench.runner, feed), expected(feed))
    bench.close()
    gc.collect()
    assert bench.cuda_stand_in.left() == []


def test_memory_of_the_profile_is_given_back_when_tensorrt_fails():
    bench = Bench()
    run_once(bench.runner, images(2))
    before = bench.cuda_stand_in.left()
    run_once(bench.runner, images(2))  # the second slot
    held = bench.cuda_stand_in.left()
    assert len(held) > len(before)
    bench.trt.fails = True
    with pytest.raises(DeviceError, match="enqueue failed"):
        bench.runner.profile_layers(images(2), 1)
    assert bench.cuda_stand_in.left() == held
    bench.trt.fails = False
    bench.close()


def test_a_first_call_is_made_before_layers_are_timed():
    bench = Bench()
    run_once(bench.runner, images(2))
    bench.trt.enqueued.clear()
    assert sum(layer.seconds for layer in bench.runner.profile_layers(images(2), 3)) == pytest.approx(2.5e-3)
    assert len(bench.trt.enqueued) == 4
    bench.close()


def test_what_a_failed_profile_has_begun_is_waited_for():
    bench = Bench()
    run_once(bench.runner, images(2))
    refused = iter([Error.cudaErrorInvalidValue])
    bench.cuda_stand_in.failing["cudaStreamSynchronize"] = lambda _: next(refused, None)
    bench.cuda_stand_in.calls.clear()
    with pytest.raises(DeviceError, match="cudaStreamSynchronize failed"):
        bench.runner.profile_layers(images(2), 1)
    names = bench.cuda_stand_in.names()
    assert names[: names.index("cudaFree")].count("cudaStreamSynchronize") == 2
    bench.close()


def test_layers_have_a_profiler_or_none():
    class Plain:
        pass

    assert layer_times(Plain(), images(1), 1) is None
    assert LayerTime(name="", kind="", seconds=0.0) != LayerTime(name="", kind="", seconds=1.0)
