"""Streams, events, memory and graphs on the stand-in for CUDA, and that the stand-in catches what is wrong."""

import contextlib
import gc
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_machine import MisuseError
from cuda_stand_in import CudaStandIn, Error

from resnet_deploy.cuda.graphs import capture
from resnet_deploy.cuda.memory import DeviceBuffer, PinnedBuffer, StreamBuffer, download, upload
from resnet_deploy.cuda.runtime import Cuda
from resnet_deploy.cuda.streams import Event, Stream
from resnet_deploy.errors import DeviceError, FeedError

SEEDS = [None, *range(5)]


@pytest.fixture
def stand_in():
    return CudaStandIn()


@pytest.fixture
def cuda(stand_in):
    return Cuda(0, stand_in)


# --- errors


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (Error.cudaErrorMemoryAllocation, "free GPU memory"),
        (Error.cudaErrorIllegalAddress, "restart it"),
        (Error.cudaErrorNoDevice, "resnet-deploy doctor"),
        (Error.cudaErrorInvalidValue, ""),
    ],
)
def test_a_status_becomes_an_error_that_names_the_call(stand_in, cuda, error, hint):
    stand_in.failing["cudaMalloc"] = error
    with pytest.raises(DeviceError) as caught:
        DeviceBuffer(cuda, 16)
    assert caught.value.message == f"cudaMalloc failed: {error.name}, what {int(error)} means"
    assert hint in caught.value.hint
    assert bool(hint) == bool(caught.value.hint)
    assert caught.value.exit_code == 1
    assert stand_in.names()[-1] == "cudaGetLastError"
    assert stand_in.left() == []


def test_the_real_bindings_are_understood():
    bindings = pytest.importorskip("cuda.bindings.runtime")
    if bindings.cudaGetDeviceCount()[0] == bindings.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU, and so no error to look at")
    with pytest.raises(DeviceError, match=r"cudaGetDeviceCount failed: cudaError\w+, .+") as caught:
        Cuda()
    assert "resnet-deploy doctor" in caught.value.hint


def test_the_real_bindings_have_every_name_of_the_stand_in():
    bindings = pytest.importorskip("cuda.bindings.runtime")
    names = [name for name in vars(CudaStandIn) if name.startswith("cuda")]
    assert len(names) > 30
    assert [name for name in names if not hasattr(bindings, name)] == []


def test_a_status_that_the_runtime_has_no_name_for(stand_in, cuda):
    stand_in.failing["cudaMalloc"] = 12345
    stand_in.cudaGetErrorName = stand_in.cudaGetErrorString = lambda _: (0, None)
    with pytest.raises(DeviceError, match=r"^cudaMalloc failed: status 12345, $"):
        DeviceBuffer(cuda, 16)


@pytest.mark.parametrize("status", [214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719])
def test_statuses_after_which_nothing_works_any_more(stand_in, cuda, status):
    stand_in.failing["cudaMalloc"] = status
    stand_in.cudaGetErrorName = stand_in.cudaGetErrorString = lambda _: (0, b"lost")
    with pytest.raises(DeviceError) as caught:
        DeviceBuffer(cuda, 16)
    assert "restart it" in caught.value.hint


@pytest.mark.parametrize(("kind", "device"), [(1, -1), (2, 0), (3, 0)])
def test_managed_memory_is_the_device_s(stand_in, cuda, kind, device):
    stand_in.cudaPointerGetAttributes = lambda _: (0, SimpleNamespace(type=kind, device=0))
    assert cuda.device_of(0x70_0000) == device


def test_a_device_that_is_not_there():
    with pytest.raises(DeviceError, match="no CUDA device 2 of 2"):
        Cuda(2, CudaStandIn(devices=2))


def test_the_device_of_the_thread_is_given_back():
    stand_in = CudaStandIn(devices=2)
    cuda = Cuda(1, stand_in)
    assert not cuda.is_current()
    with contextlib.suppress(KeyError), cuda.current():
        assert cuda.is_current()
        raise KeyError
    assert stand_in.device() == 0
    assert stand_in.names().count("cudaSetDevice") == 2
    stand_in.cudaSetDevice(2)
    with cuda.current():
        assert stand_in.device() == 1
    assert stand_in.device() == 2


@pytest.mark.parametrize("index", range(5))
def test_everything_is_made_on_its_own_device(index):
    """And the thread has its own again."""
    stand_in = CudaStandIn(devices=2)
    stand_in.home = 1
    cuda, devices = Cuda(1, stand_in), []
    names = ["cudaStreamCreateWithFlags", "cudaEventCreateWithFlags", "cudaMalloc", "cudaHostAlloc", "cudaMallocAsync"]
    for name in names:
        stand_in.failing[name] = lambda *_, name=name: devices.append((name, stand_in.device()))
    make_all(cuda)
    assert (names[index], 1) in devices
    assert (names[index], 0) not in devices
    assert stand_in.device() == 0


# --- ownership


def make_all(cuda):
    stream = Stream.create(cuda)
    return [stream, Event(cuda), DeviceBuffer(cuda, 8), PinnedBuffer(cuda, 8), StreamBuffer(stream, 8)]


def test_everything_is_given_back_once_by_close(stand_in, cuda):
    made = make_all(cuda)
    assert stand_in.left() == ["device", "event", "ordered", "pinned", "stream"]
    for one in reversed(made):
        one.close()
        one.close()
    assert stand_in.left() == []


def test_what_is_left_open_is_given_back_when_collected(stand_in, cuda):
    made = make_all(cuda)
    assert len(stand_in.left()) == 5
    del made
    gc.collect()
    for stream in list(stand_in.streams):
        stand_in.drain(stream)
    assert stand_in.left() == []


def test_a_with_block_closes(stand_in, cuda):
    with DeviceBuffer(cuda, 8) as buffer:
        assert not buffer.closed
    assert buffer.closed
    assert stand_in.left() == []


@pytest.mark.parametrize("collected", [False, True])
def test_a_release_that_fails_is_a_warning(stand_in, cuda, collected):
    buffers = [DeviceBuffer(cuda, 8)]
    stand_in.failing["cudaFree"] = Error.cudaErrorIllegalAddress
    release = buffers.clear if collected else buffers[0].close
    with pytest.warns(ResourceWarning, match="not released: cudaFree failed: cudaErrorIllegalAddress"):
        release()
    assert stand_in.names().count("cudaFree") == 1


def test_a_release_while_the_process_ends_is_not_worth_a_word(stand_in, cuda, recwarn):
    buffer = DeviceBuffer(cuda, 8)
    stand_in.failing["cudaFree"] = Error.cudaErrorCudartUnloading
    buffer.close()
    assert not recwarn.list


def test_borrowed_streams_are_left_alone(stand_in, cuda):
    handle = stand_in.cudaStreamCreateWithFlags(1)[1]
    Stream.borrow(cuda, int(handle)).close()
    assert "cudaStreamDestroy" not in stand_in.names()


# --- other libraries' streams


class WithProtocol:
    def __cuda_stream__(self):
        return (0, 0x40)


@pytest.mark.parametrize(
    ("stream", "handle"),
    [
        (None, 0),
        (0, 0),
        (0x40, 0x40),
        (SimpleNamespace(cuda_stream=0x40, device_index=0), 0x40),  # torch
        (SimpleNamespace(ptr=0x40), 0x40),  # CuPy
        (SimpleNamespace(handle=0x40), 0x40),  # PyCUDA
        (WithProtocol(), 0x40),
        (SimpleNamespace(__cuda_stream__=(0, 0x40)), 0x40),
    ],
)
def test_streams_of_other_libraries(cuda, stream, handle):
    borrowed = Stream.borrow(cuda, stream)
    assert borrowed.handle == handle
    assert int(borrowed.native) == handle
    assert Stream.borrow(cuda, borrowed) is borrowed
    assert borrowed.__cuda_stream__() == (0, handle)
    if stream is not None and not isinstance(stream, int):
        assert borrowed.owner is stream


def test_default_streams_are_never_captured_and_always_there(stand_in, cuda):
    for handle in (0, 1, 2):
        assert not Stream.borrow(cuda, handle).is_capturing
    assert "cudaStreamIsCapturing" not in stand_in.names()
    assert [Stream.borrow(cuda, handle).lasts for handle in (0, 1, 2, 0x40)] == [True, True, False, False]
    assert Stream.create(cuda).lasts


@pytest.mark.parametrize("stream", ["0", object(), -1, 1.5])
def test_what_is_no_stream(cuda, stream):
    with pytest.raises(FeedError, match="is no CUDA stream") as caught:
        Stream.borrow(cuda, stream)
    assert caught.value.hint


def test_a_stream_of_another_device(cuda):
    with pytest.raises(FeedError, match="the stream is on CUDA device 1, the engine on 0"):
        Stream.borrow(cuda, SimpleNamespace(cuda_stream=0x40, device_index=1))


# --- order and data


@pytest.mark.parametrize("seed", SEEDS)
def test_data_goes_round(seed):
    stand_in = CudaStandIn(seed=seed)
    cuda = Cuda(0, stand_in)
    copies, other = Stream.create(cuda), Stream.create(cuda)
    pinned, back = PinnedBuffer(cuda, 32), PinnedBuffer(cuda, 32)
    device = DeviceBuffer(cuda, 32)
    pinned.view((8,), "float32")[:] = np.arange(8)
    arrived = Event(cuda)
    upload(cuda, device.pointer, pinned.pointer, 32, copies)
    arrived.record(copies)
    other.wait(arrived)
    download(cuda, back.pointer, device.pointer, 32, other)
    other.synchronize()
    np.testing.assert_array_equal(back.view((8,), "float32"), np.arange(8))


def test_without_the_event_the_data_would_be_wrong():
    """The stand-in's own twin: work that does not wait is overtaken."""
    cuda = Cuda(0, CudaStandIn())
    copies, other = Stream.create(cuda), Stream.create(cuda)
    pinned, back, device = PinnedBuffer(cuda, 4), PinnedBuffer(cuda, 4), DeviceBuffer(cuda, 4)
    pinned.view((4,), "uint8")[:] = 7
    upload(cuda, device.pointer, pinned.pointer, 4, copies)
    download(cuda, back.pointer, device.pointer, 4, other)
    other.synchronize()
    assert back.view((4,), "uint8").tolist() != [7] * 4


def test_time_between_events(cuda):
    stream, start, end = Stream.create(cuda), Event(cuda, timing=True), Event(cuda, timing=True)
    start.record(stream)
    end.record(stream)
    with pytest.raises(DeviceError, match="cudaErrorNotReady"):
        end.seconds_since(start)
    end.synchronize()
    assert end.seconds_since(start) == pytest.approx(1.5e-3)


def test_marks_that_tell_no_time_are_made_without(stand_in, cuda):
    """They are cheaper, and CUDA refuses to compare them."""
    stream = Stream.create(cuda)
    plain, timing = Event(cuda), Event(cuda, timing=True)
    assert [stand_in.flags[int(one.native)] for one in (plain, timing)] == [stand_in.cudaEventDisableTiming, 0]
    for one in (plain, timing):
        one.record(stream)
    stream.synchronize()
    for start, end in ((plain, timing), (timing, plain)):
        with pytest.raises(DeviceError, match="cudaErrorInvalidResourceHandle"):
            end.seconds_since(start)
    other = Stream.create(cuda)
    stand_in.calls.clear()
    other.wait_for(stream)
    assert stand_in.calls[0] == ("cudaEventCreateWithFlags", stand_in.cudaEventDisableTiming)


def test_own_streams_and_the_default_one_do_not_wait_for_each_other(stand_in, cuda):
    assert stand_in.flags[Stream.create(cuda).handle] == stand_in.cudaStreamNonBlocking


@pytest.mark.parametrize("seed", SEEDS)
def test_memory_freed_in_order_waits_for_its_readers(seed):
    stand_in = CudaStandIn(seed=seed)
    cuda = Cuda(0, stand_in)
    stream, reader = Stream.create(cuda), Stream.create(cuda)
    buffer, back = StreamBuffer(stream, 4), PinnedBuffer(cuda, 4)
    reader.wait_for(stream)
    download(cuda, back.pointer, buffer.pointer, 4, reader)
    buffer.used_on(reader)
    buffer.close()
    stream.synchronize()  # the memory is gone now; the reader must have been first
    reader.synchronize()
    assert stand_in.misuses == []


# --- graphs


def test_a_graph_does_again_what_was_captured(stand_in, cuda):
    side, stream = Stream.create(cuda), Stream.create(cuda)
    source, target, back = PinnedBuffer(cuda, 4), DeviceBuffer(cuda, 4), PinnedBuffer(cuda, 4)
    with capture(cuda, side, lambda: upload(cuda, target.pointer, source.pointer, 4, side)) as graph:
        for value in (3, 9):
            source.view((4,), "uint8")[:] = value
            graph.launch(stream)
            download(cuda, back.pointer, target.pointer, 4, stream)
            stream.synchronize()
            assert back.view((4,), "uint8").tolist() == [value] * 4
    assert "template" not in stand_in.left()
    assert "graph" not in stand_in.left()


def test_what_cannot_be_captured_leaves_the_stream_as_it_was(stand_in, cuda):
    side = Stream.create(cuda)
    with pytest.raises(DeviceError, match="cudaErrorStreamCaptureUnsupported"):
        capture(cuda, side, lambda: DeviceBuffer(cuda, 4))
    side.synchronize()
    assert stand_in.left() == ["stream"]
    with capture(cuda, side, lambda: None):
        pass


def test_what_was_captured_before_an_interrupt_is_given_back(stand_in, cuda):
    side = Stream.create(cuda)

    def enqueue():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(cuda, side, enqueue)
    side.synchronize()  # it is not captured any more
    assert stand_in.left() == ["stream"]


def test_garbage_is_not_collected_in_the_midst_of_a_capture(stand_in, cuda):
    side = Stream.create(cuda)

    def enqueue():
        for _ in range(100):  # device memory in cycles, and containers enough to set the collector off
            cycle = []
            cycle.append(cycle)
        assert not gc.isenabled()

    cycle = [DeviceBuffer(cuda, 4)]
    cycle.append(cycle)
    del cycle
    threshold = gc.get_threshold()
    gc.set_threshold(10)
    try:
        with capture(cuda, side, enqueue):
            pass
    finally:
        gc.set_threshold(*threshold)
    assert gc.isenabled()
    gc.collect()
    assert stand_in.left() == ["stream"]


def test_another_thread_may_allocate_during_a_capture(stand_in, cuda):
    side = Stream.create(cuda)

    def enqueue():
        other = threading.Thread(target=lambda: DeviceBuffer(cuda, 4).close())
        other.start()
        other.join()

    stand_in.lock = threading.RLock()
    with capture(cuda, side, enqueue):
        assert "cudaMalloc" in stand_in.names()


# --- the stand-in catches what is wrong


def test_stand_in_catches_a_double_free(stand_in, cuda):
    pointer = cuda.call("cudaMalloc", 8)
    cuda.call("cudaFree", pointer)
    with pytest.raises(MisuseError, match="freed twice"):
        cuda.call("cudaFree", pointer)


def test_stand_in_catches_a_double_free_in_order(stand_in, cuda):
    pointer = cuda.call("cudaMallocAsync", 8, 0)
    cuda.call("cudaFreeAsync", pointer, 0)
    with pytest.raises(MisuseError, match="cannot be freed"):
        cuda.call("cudaFreeAsync", pointer, 0)


def test_stand_in_catches_use_after_free(cuda):
    stream, buffer, pinned = Stream.create(cuda), DeviceBuffer(cuda, 8), PinnedBuffer(cuda, 8)
    buffer.close()
    with pytest.raises(MisuseError, match="was freed"):
        upload(cuda, buffer.pointer, pinned.pointer, 8, stream)


def test_stand_in_catches_a_copy_beyond_the_end(cuda):
    stream, buffer, pinned = Stream.create(cuda), DeviceBuffer(cuda, 8), PinnedBuffer(cuda, 16)
    with pytest.raises(MisuseError, match="beyond the end"):
        upload(cuda, buffer.pointer, pinned.pointer, 16, stream)


def test_stand_in_catches_a_copy_of_the_wrong_kind(cuda):
    stream, buffer, pinned = Stream.create(cuda), DeviceBuffer(cuda, 8), PinnedBuffer(cuda, 8)
    with pytest.raises(MisuseError, match="copy of kind 2"):
        download(cuda, buffer.pointer, pinned.pointer, 8, stream)


def test_stand_in_catches_a_destroyed_stream(cuda):
    stream = Stream.create(cuda)
    stream.close()
    with pytest.raises(MisuseError, match="does not exist"):
        stream.synchronize()
