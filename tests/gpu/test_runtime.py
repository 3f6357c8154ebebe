"""The runtime on a real GPU: that CUDA and TensorRT are as the stand-ins in tests/unit play them."""

import gc
import threading
import warnings

import numpy as np
import pytest

from resnet_deploy.batching import infer, run_once
from resnet_deploy.bundle import open_bundle
from resnet_deploy.cuda.graphs import capture
from resnet_deploy.cuda.memory import DeviceBuffer, PinnedBuffer, StreamBuffer, download, upload
from resnet_deploy.cuda.runtime import Cuda
from resnet_deploy.cuda.streams import Event, Stream
from resnet_deploy.device_arrays import DeviceArray, view_of
from resnet_deploy.errors import DeviceError, FeedError
from resnet_deploy.runners.trt import TrtRunner

# Of the largest logit. FP16 leaves 0.0007 of this network on ONNX Runtime, and kernels for another batch size add up in
# another order; the logits of another image are 0.095 away and more, as the twin below sees to.
FP16_TOLERANCE = 2.0**-7


def close_to(actual, wanted):
    return np.abs(actual - wanted).max() <= FP16_TOLERANCE * np.abs(wanted).max()


# --- CUDA itself


@pytest.fixture
def cuda(deployment):
    return Cuda()


def test_data_goes_round(cuda):
    stream = Stream.create(cuda)
    there, back, device = PinnedBuffer(cuda, 4096), PinnedBuffer(cuda, 4096), DeviceBuffer(cuda, 4096)
    there.view((1024,), "float32")[:] = np.arange(1024)
    back.view((1024,), "float32")[:] = 0
    upload(cuda, device.pointer, there.pointer, 4096, stream)
    download(cuda, back.pointer, device.pointer, 4096, stream)
    stream.synchronize()
    np.testing.assert_array_equal(back.view((1024,), "float32"), np.arange(1024))
    assert device.pointer % 256 == 0
    assert cuda.device_of(device.pointer) == 0
    assert cuda.device_of(there.pointer) == -1


def test_a_graph_does_again_what_was_captured(cuda):
    stream, side = Stream.create(cuda), Stream.create(cuda)
    there, back, device = PinnedBuffer(cuda, 4), PinnedBuffer(cuda, 4), DeviceBuffer(cuda, 4)

    def round_trip():
        upload(cuda, device.pointer, there.pointer, 4, side)
        download(cuda, back.pointer, device.pointer, 4, side)

    with capture(cuda, side, round_trip) as graph:
        for value in (3, 250):
            there.view((4,), "uint8")[:] = value
            graph.launch(stream)
            stream.synchronize()
            assert back.view((4,), "uint8").tolist() == [value] * 4


def test_what_cannot_be_captured_leaves_the_stream_usable(cuda):
    side = Stream.create(cuda)
    with pytest.raises(DeviceError, match="cudaErrorStreamCapture"):
        capture(cuda, side, side.synchronize)
    side.synchronize()


def test_events_take_time(cuda):
    stream, start, end = Stream.create(cuda), Event(cuda, timing=True), Event(cuda, timing=True)
    start.record(stream)
    StreamBuffer(stream, 1 << 20).close()
    end.record(stream)
    end.synchronize()
    assert 0 <= end.seconds_since(start) < 1


def test_too_much_memory_is_an_error_and_no_crash(cuda):
    with pytest.raises(DeviceError, match="cudaMalloc failed: cudaErrorMemoryAllocation") as caught:
        DeviceBuffer(cuda, 1 << 50)
    assert "--batch" in caught.value.hint
    DeviceBuffer(cuda, 256).close()


# --- answers


def test_the_engine_gives_its_golden_answers(deployment, engine):
    with np.load(open_bundle(deployment.bundle).golden_path) as golden:
        inputs, outputs = golden["images"], golden["logits"]
    assert close_to(engine(inputs), outputs)
    assert not close_to(engine(255 - inputs), outputs)
    assert not close_to(engine(np.roll(inputs, 1, axis=0)), outputs)


@pytest.mark.parametrize("count", [1, 3, 16, 41])
def test_batches_give_what_single_images_give(deployment, engine, count):
    images = deployment.images[np.arange(count) % 16]
    single = np.concatenate([engine(images[index : index + 1]) for index in range(count)])
    assert close_to(engine(images), single)


def reopened(deployment, **options):
    """A runner of the bundle with other options than by default."""
    from resnet_deploy import trt_api
    from resnet_deploy.runners.trt_engine import ContextOptions, TrtEngine

    bundle = open_bundle(deployment.bundle)
    manifest = bundle.manifest
    api = trt_api.load(manifest.spec.backend)
    trt_engine = TrtEngine(api, bundle.engine_path.read_bytes(), Cuda(), ContextOptions(**options))
    return TrtRunner(trt_engine, manifest.card, manifest.spec.batch)


def test_graphs_change_nothing(deployment):
    with_graphs, without = reopened(deployment), reopened(deployment, graphs=False)
    try:
        for size in (1, 4, 16, 4, 1):
            feed = np.ascontiguousarray(deployment.images[:size])
            wanted = run_once(without, feed)
            for _ in range(6):  # the first few capture, the rest launch
                assert close_to(run_once(with_graphs, feed), wanted)
        assert "no CUDA graphs" not in with_graphs.notes[0], with_graphs.notes
        assert without.notes[0] == "no CUDA graphs, as asked for"
    finally:
        with_graphs.close()
        without.close()


def test_loading_ahead_changes_nothing(deployment):
    runner = reopened(deployment)
    try:
        images = deployment.images[np.arange(200) % 16]
        wanted = np.concatenate([run_once(runner, np.ascontiguousarray(images[i : i + 16])) for i in range(0, 200, 16)])
        assert close_to(infer(runner, images), wanted)
    finally:
        runner.close()


# --- zero copy with PyTorch


def test_tensors_go_in_and_out_without_a_copy(deployment, engine, torch_cuda):
    torch = torch_cuda
    images = torch.from_numpy(deployment.images).cuda()
    out = torch.empty(16, 10, device="cuda")
    logits = engine(images, stream=torch.cuda.current_stream(), out=out)
    assert logits.pointer == out.data_ptr()
    back = torch.from_dlpack(logits)
    assert back.data_ptr() == out.data_ptr()
    assert close_to(out.cpu().numpy(), engine(deployment.images))
    view = view_of(images, Stream.borrow(logits.cuda, torch.cuda.current_stream()))
    assert view.pointer == images.data_ptr()


@pytest.mark.parametrize("side", [False, True])
def test_streams_are_honoured_both_ways(deployment, engine, torch_cuda, side):
    torch = torch_cuda
    stream = torch.cuda.Stream() if side else torch.cuda.default_stream()
    host = torch.from_numpy(deployment.images).pin_memory()
    wanted = engine(deployment.images)
    busy = torch.empty(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    for _ in range(20):
        with torch.cuda.stream(stream):
            for _ in range(3):
                busy = busy @ busy  # what comes next has to wait
            images = torch.zeros(deployment.images.shape, dtype=torch.uint8, device="cuda")
            images.copy_(host, non_blocking=True)
            logits = engine(images, stream=stream)
        reader = torch.cuda.Stream()
        with torch.cuda.stream(reader):  # DLPack lets it wait for ours
            tensor = torch.from_dlpack(logits).clone()
        reader.synchronize()
        assert close_to(tensor.cpu().numpy(), wanted)


def test_fresh_results_outlive_what_made_them(deployment, engine, torch_cuda):
    torch = torch_cuda
    images = torch.from_numpy(deployment.images[:4]).cuda()
    kept = [torch.from_dlpack(engine(images)) for _ in range(50)]
    gc.collect()
    assert len({tensor.data_ptr() for tensor in kept}) == 50
    wanted = engine(deployment.images[:4])
    assert all(close_to(tensor.cpu().numpy(), wanted) for tensor in kept)


def test_tensors_that_do_not_fit_are_refused(deployment, engine, torch_cuda):
    torch = torch_cuda
    images = torch.from_numpy(deployment.images).cuda()
    with pytest.raises(FeedError, match="not contiguous"):
        engine(images.transpose(1, 2))
    with pytest.raises(FeedError, match="dtype float32"):
        engine(images.float())
    with pytest.raises(FeedError, match="batch of 32, the engine takes 1 to 16"):
        engine(torch.cat([images, images]))
    with pytest.raises(FeedError, match="does not share it"):
        engine(torch.zeros(1, 64, 64, 3, device="cuda", requires_grad=True))


def test_pytorch_s_own_graphs_may_be_captured_meanwhile(deployment, engine, torch_cuda):
    torch = torch_cuda
    images = torch.from_numpy(deployment.images[:2]).cuda()
    wanted = engine(deployment.images[:2])
    tensor, graph = torch.ones(1000, device="cuda"), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    answers = []
    thread = threading.Thread(
        target=lambda: answers.extend(engine(images, stream=torch.cuda.Stream()) for _ in range(5))
    )
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        thread.start()
        result = tensor * 2
        thread.join()
    graph.replay()
    torch.cuda.synchronize()
    assert float(result.sum()) == 2000
    assert all(close_to(answer.to_host(), wanted) for answer in answers)
    assert len(answers) == 5


# --- threads, leaks


def test_threads_get_their_own_answers(deployment, engine):
    wanted = [engine(deployment.images[index : index + 1]) for index in range(16)]
    cuda = Cuda()
    failures, checked = [], []

    def work(number):
        try:
            stream = Stream.create(cuda)
            pinned = PinnedBuffer(cuda, deployment.images[0].nbytes)
            array = DeviceArray.empty((1, *deployment.images.shape[1:]), "uint8", stream)
            for turn in range(200):
                index = (number + turn) % 16
                pinned.view(array.shape, "uint8")[0] = deployment.images[index]
                upload(cuda, array.pointer, pinned.pointer, array.nbytes, stream)
                assert close_to(engine(array, stream=stream).to_host(), wanted[index]), (number, turn)
                checked.append(index)
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(checked) == 1600


def free_bytes(cuda):
    cuda.call("cudaDeviceSynchronize")
    _, free, _ = cuda.bindings.cudaMemGetInfo()
    return free


def test_ten_thousand_calls_leave_nothing_behind(deployment, engine):
    cuda = Cuda()
    stream = Stream.create(cuda)
    array = DeviceArray.empty((1, *deployment.images.shape[1:]), "uint8", stream)
    feed = np.ascontiguousarray(deployment.images[:1])

    def calls(count):
        for _ in range(count):
            engine(array, stream=stream)
        for _ in range(count // 10):
            engine(feed)
        stream.synchronize()
        gc.collect()

    calls(200)
    before = free_bytes(cuda)
    calls(10_000)
    assert before - free_bytes(cuda) < 8 << 20  # CUDA's pools grow in steps of 2 MiB


def test_opening_again_and_again_leaves_nothing_behind(deployment):
    cuda = Cuda()
    feed = np.ascontiguousarray(deployment.images)

    def open_and_close():
        runner = reopened(deployment)
        for _ in range(6):
            run_once(runner, feed)
        runner.close()
        gc.collect()

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for _ in range(3):
            open_and_close()
        before = free_bytes(cuda)
        for _ in range(10):
            open_and_close()
    assert before - free_bytes(cuda) < 16 << 20


def test_a_closed_engine_says_so(deployment):
    runner = reopened(deployment)
    array = DeviceArray.empty((1, *deployment.images.shape[1:]), "uint8", Stream.create(runner.cuda))
    runner.run_on(array)
    runner.close()
    with pytest.raises(DeviceError, match="the engine is closed"):
        runner.run_on(array)


# --- PyCUDA


def test_gpuarrays_go_in_and_out(deployment):
    pytest.importorskip("pycuda.driver", reason="PyCUDA is not installed")
    import pycuda.driver
    from pycuda import gpuarray

    import resnet_deploy
    from resnet_deploy.integrations import pycuda as integration

    with integration.primary_context(), resnet_deploy.load(deployment.bundle) as engine:
        wanted = engine(deployment.images)
        stream = pycuda.driver.Stream()
        images = gpuarray.to_gpu_async(deployment.images, stream=stream)
        out = gpuarray.empty((16, 10), np.float32)
        assert integration.run(engine, images, stream, out) is out
        fresh = integration.run(engine, images, stream)
        stream.synchronize()
        assert close_to(out.get(), wanted)
        assert close_to(fresh.get(), wanted)
        assert close_to((fresh * 2).get(), 2 * wanted)
        del images, out, fresh, stream
        gc.collect()


def test_a_context_of_pycuda_s_own_is_refused(deployment):
    driver = pytest.importorskip("pycuda.driver", reason="PyCUDA is not installed")
    from resnet_deploy.integrations import pycuda as integration

    driver.init()
    context = driver.Device(0).make_context()
    try:
        with pytest.raises(FeedError, match="not the device's primary one"):
            integration.require_primary_context()
    finally:
        context.pop()
        context.detach()
