"""The TensorRT runner on stand-ins for CUDA and TensorRT: order, ownership and data; no hardware is proved by it."""

import itertools

import numpy as np
import pytest
from cuda_stand_in import CudaStandIn, Error
from trt_bench import CARD, FLAVOURS, SEEDS, Bench, images
from trt_stand_in import Severity, TrtStandIn, expected, plan

from resnet_deploy.batching import infer, run_once
from resnet_deploy.cuda.memory import DeviceBuffer
from resnet_deploy.cuda.runtime import Cuda
from resnet_deploy.cuda.streams import Stream
from resnet_deploy.errors import BundleError, DeviceError, FeedError
from resnet_deploy.runners.trt import TrtRunner
from resnet_deploy.runners.trt_engine import TrtEngine
from resnet_deploy.specs import BatchRange

# --- from the host


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("graphs", [True, False])
@FLAVOURS
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
    with pytest.raises(BundleError, match=r"spec.batch is 1:2:8, and no profile of the plan holds 1$"):
        Bench(data=plan(profiles=((2, 4, 8),)))


# --- failures


@FLAVOURS
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


@pytest.mark.parametrize("tensor", ["images", "logits"])
def test_what_an_interrupt_left_half_set_is_set_again(tensor, monkeypatch):
    """Set in TensorRT and not yet known here: the call before, asked for again, must not work in the other's memory."""
    bench = Bench(graphs=False)
    (array, out), (other, other_out) = (
        (bench.on_device(images(2, seed)), bench.on_device(np.zeros((2, 3), np.float32))) for seed in (1, 2)
    )
    bench.runner.run_on(array, out=out)
    (context,) = bench.trt.engines[0].contexts
    set_address = context.set_tensor_address

    def interrupted(name, address):
        set_address(name, address)
        if name == tensor:
            raise KeyboardInterrupt
        return True

    monkeypatch.setattr(context, "set_tensor_address", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.runner.run_on(other, out=other_out)
    monkeypatch.setattr(context, "set_tensor_address", set_address)
    bench.runner.run_on(array, out=out)
    np.testing.assert_array_equal(out.to_host(), expected(images(2, 1)))
    assert not other_out.to_host().any()
    assert context.addresses == {"images": array.pointer, "logits": out.pointer}
    bench.close()


def test_a_profile_that_an_interrupt_left_half_set_is_set_again(monkeypatch):
    bench = Bench(graphs=False, data=plan(profiles=((1, 1, 2), (3, 4, 8))))
    run_once(bench.runner, images(2))
    (context,) = bench.trt.engines[0].contexts
    set_profile = context.set_optimization_profile_async

    def interrupted(*arguments):
        set_profile(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(context, "set_optimization_profile_async", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_once(bench.runner, images(3))
    monkeypatch.setattr(context, "set_optimization_profile_async", set_profile)
    np.testing.assert_array_equal(run_once(bench.runner, images(2, 5)), expected(images(2, 5)))
    bench.close()


def test_the_first_line_of_the_last_error_is_told():
    bench = Bench()
    assert bench.engine.error("a call").message == "tensorrt: a call failed: it gave no reason"
    for number in range(200):  # of a process that runs for months, only so many are kept
        bench.engine._logger.log(Severity.ERROR, f"error {number}\nand what follows from it")
    assert bench.engine.error("a call").message == "tensorrt: a call failed: error 199"
    assert len(bench.engine._logger.lines) == 100
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


def test_a_closed_runner_holds_no_batch():
    bench = Bench()
    run_once(bench.runner, images(2))
    bench.close()
    bench.close()
    with pytest.raises(FeedError, match="nothing to run"):
        bench.runner.enqueue()
    with pytest.raises(FeedError, match="nothing to fetch"):
        bench.runner.fetch()
    assert bench.cuda_stand_in.left() == []


def test_a_runner_whose_context_is_lost_is_closed_all_the_same():
    bench = Bench()
    run_once(bench.runner, images(2))
    bench.cuda_stand_in.failing["cudaEventSynchronize"] = Error.cudaErrorIllegalAddress
    bench.close()
    assert bench.cuda_stand_in.left() == []


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
