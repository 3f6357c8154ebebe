"""Other libraries' arrays on a GPU, and ours for them, on the stand-in for CUDA; the libraries' side is played."""

import gc
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_stand_in import CudaStandIn

from resnet_deploy import dlpack
from resnet_deploy.cuda.memory import DeviceBuffer, PinnedBuffer, upload
from resnet_deploy.cuda.runtime import Cuda
from resnet_deploy.cuda.streams import Stream
from resnet_deploy.device_arrays import DeviceArray, is_on_device, view_of
from resnet_deploy.errors import FeedError

SEEDS = [None, *range(5)]


@pytest.fixture
def stand_in():
    return CudaStandIn()


@pytest.fixture
def cuda(stand_in):
    return Cuda(0, stand_in)


@pytest.fixture
def stream(cuda):
    return Stream.create(cuda)


class WithInterface:
    """As CuPy, Numba and PyCUDA have it."""

    def __init__(self, pointer, shape=(2, 3), dtype="uint8", **more):
        self.__cuda_array_interface__ = {
            "data": (pointer, False),
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "version": 3,
            **more,
        }


class WithDlpack:
    """As PyTorch has it: orders its own stream before the reader's, and counts how often it is asked and let go."""

    def __init__(self, cuda, pointer, shape=(2, 3), dtype="uint8", *, device=(2, 0), stream=None):
        self.cuda, self.pointer, self.shape, self.dtype, self.device = cuda, pointer, shape, dtype, device
        self.stream, self.asked, self.alive = stream, [], 0

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None):
        self.asked.append(stream)
        if self.stream is not None:
            Stream.borrow(self.cuda, stream).wait_for(self.stream)
        return dlpack.give(self.pointer, self.shape, self.dtype, self.device, Kept(self))


class Kept:
    def __init__(self, source):
        self.source = source
        source.alive += 1

    def __del__(self):
        self.source.alive -= 1


class OldInterface(WithDlpack):
    """As PyTorch has it in full: the interface of version 2 says nothing of streams."""

    @property
    def __cuda_array_interface__(self):
        return {"data": (self.pointer, False), "shape": self.shape, "typestr": "|u1", "version": 2}


def filled(cuda, stream, values):
    """Device memory that holds ``values`` as soon as ``stream`` is done; keep both buffers."""
    pinned, device = PinnedBuffer(cuda, values.nbytes), DeviceBuffer(cuda, values.nbytes)
    pinned.view(values.shape, values.dtype.name)[...] = values
    upload(cuda, device.pointer, pinned.pointer, values.nbytes, stream)
    return device, pinned


VALUES = np.arange(6, dtype=np.uint8).reshape(2, 3)


# --- in


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["interface", "dlpack", "both"])
def test_an_array_is_read_where_it_is_and_when_it_is_ready(kind, seed):
    stand_in = CudaStandIn(seed=seed)
    cuda = Cuda(0, stand_in)
    producer, consumer = Stream.create(cuda), Stream.create(cuda)
    device, _pinned = filled(cuda, producer, VALUES)
    array = {
        "interface": lambda: WithInterface(device.pointer, stream=producer.handle),
        "dlpack": lambda: WithDlpack(cuda, device.pointer, stream=producer),
        "both": lambda: OldInterface(cuda, device.pointer, stream=producer),
    }[kind]()
    view = view_of(array, consumer)
    assert (view.pointer, view.shape, view.dtype) == (device.pointer, (2, 3), "uint8")
    assert view.stream is consumer
    np.testing.assert_array_equal(view.to_host(), VALUES)
    if kind != "interface":
        assert array.asked == [consumer.handle]


def test_without_the_stream_the_data_would_be_wrong(cuda):
    """The twin: an interface that says None promises that there is nothing to wait for."""
    producer, consumer = Stream.create(cuda), Stream.create(cuda)
    device, _pinned = filled(cuda, producer, VALUES)
    view = view_of(WithInterface(device.pointer, stream=None), consumer)
    assert (view.to_host() != VALUES).any()


def test_one_stream_need_not_wait_for_itself(stand_in, cuda, stream):
    buffer = DeviceBuffer(cuda, 6)
    view_of(WithInterface(buffer.pointer, stream=stream.handle), stream)
    default = Stream.borrow(cuda, None)
    view_of(WithInterface(buffer.pointer, stream=1), default)  # two names of one stream
    assert "cudaStreamWaitEvent" not in stand_in.names()


def test_the_default_stream_has_a_name_of_its_own_in_dlpack(cuda):
    array = WithDlpack(cuda, DeviceBuffer(cuda, 6).pointer)
    view_of(array, Stream.borrow(cuda, None))
    assert array.asked == [1]


def test_the_owner_lives_as_long_as_the_view(cuda, stream):
    buffer = DeviceBuffer(cuda, 6)
    array = WithDlpack(cuda, buffer.pointer)
    view = view_of(array, stream)
    gc.collect()
    assert array.alive == 1
    del view
    gc.collect()
    assert array.alive == 0
    other = WithInterface(buffer.pointer)
    assert view_of(other, stream).owner is other


def test_a_raw_pointer_is_wrapped(cuda, stream):
    device, _pinned = filled(cuda, stream, VALUES)
    array = DeviceArray(cuda, device.pointer, (2, 3), "uint8", stream=stream, owner=device)
    assert view_of(array, stream) is array
    assert len(array) == 2
    assert array.nbytes == 6
    np.testing.assert_array_equal(array.to_host(), VALUES)


@pytest.mark.parametrize("seed", SEEDS)
def test_our_own_array_is_ordered_too(seed):
    cuda = Cuda(0, CudaStandIn(seed=seed))
    producer, consumer = Stream.create(cuda), Stream.create(cuda)
    device, _pinned = filled(cuda, producer, VALUES)
    array = DeviceArray(cuda, device.pointer, (2, 3), "uint8", stream=producer, owner=device)
    view = view_of(array, consumer)
    host = DeviceArray(cuda, view.pointer, (2, 3), "uint8", stream=consumer).to_host()
    np.testing.assert_array_equal(host, VALUES)


@pytest.mark.parametrize("strides", [None, (3, 1)])
def test_c_order_is_taken(cuda, stream, strides):
    assert view_of(WithInterface(DeviceBuffer(cuda, 6).pointer, strides=strides), stream).shape == (2, 3)


def test_strides_of_a_single_element_mean_nothing(cuda, stream):
    pointer = DeviceBuffer(cuda, 6).pointer
    assert view_of(WithInterface(pointer, shape=(1, 6), strides=(77, 1)), stream).shape == (1, 6)


@pytest.mark.parametrize("strides", [(1, 2), (6, 1), (3, 2), (-3, 1), (0, 1)])
def test_another_order_is_named(cuda, stream, strides):
    array = WithInterface(DeviceBuffer(cuda, 16).pointer, strides=strides)
    with pytest.raises(FeedError, match="not contiguous: its strides are") as caught:
        view_of(array, stream)
    assert "contiguous()" in caught.value.hint


def test_another_device_is_named_before_its_producer_is_asked(cuda, stream):
    array = WithDlpack(cuda, 4096, device=(2, 3))
    with pytest.raises(FeedError, match="the array is in CUDA device 3, the engine on CUDA device 0"):
        view_of(array, stream)
    assert array.asked == []


def test_another_device_is_found_by_its_pointer():
    stand_in = CudaStandIn(devices=2)
    here, there = Cuda(0, stand_in), Cuda(1, stand_in)
    buffer = DeviceBuffer(there, 6)
    pointer = buffer.pointer
    with pytest.raises(FeedError, match="CUDA device 1"):
        view_of(WithInterface(pointer), Stream.create(here))
    assert view_of(WithInterface(pointer), Stream.create(there)).pointer == pointer
    pinned = PinnedBuffer(here, 6)
    with pytest.raises(FeedError, match="the host's memory"):
        view_of(WithInterface(pinned.pointer), Stream.create(here))


def test_an_array_of_nothing_has_no_address_and_no_order():
    """As PyTorch and CuPy write one; where there are several devices too, it is on none."""
    stand_in = CudaStandIn(devices=2)
    stream = Stream.borrow(Cuda(0, stand_in), None)
    for pointer in (0, None):
        interface = {"data": (pointer, False), "shape": (0, 3), "strides": (1, 1), "typestr": "<f4", "version": 3}
        view = view_of(SimpleNamespace(__cuda_array_interface__=interface), stream)
        assert (view.pointer, view.shape, view.nbytes) == (0, (0, 3), 0)
    assert "cudaPointerGetAttributes" not in stand_in.names()


def test_foreign_byte_order_is_not_taken_for_our_own(cuda, stream):
    interface = {"data": (0x70_0000, False), "shape": (2,), "typestr": ">f4", "version": 3}
    view = view_of(SimpleNamespace(__cuda_array_interface__=interface), stream)
    assert view.dtype == ">f4"


@pytest.mark.parametrize("error", [BufferError, RuntimeError, ValueError])
def test_what_cannot_say_where_it_is_is_not_on_a_device(error):
    class Elsewhere:
        def __dlpack_device__(self):
            raise error

    assert not is_on_device(Elsewhere())


def test_a_mask_is_refused(cuda, stream):
    with pytest.raises(FeedError, match="has a mask"):
        view_of(WithInterface(DeviceBuffer(cuda, 6).pointer, mask=object()), stream)


def test_arrays_of_the_host_are_not_taken(cuda, stream):
    torch = pytest.importorskip("torch")
    for array in (VALUES, torch.zeros(2, 3), [1, 2], None):
        assert not is_on_device(array)
        with pytest.raises(FeedError, match="is not in the memory of a GPU"):
            view_of(array, stream)


class Unwilling:
    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, *, stream):
        raise BufferError("Can't export tensors that require gradient, use tensor.detach()\nand more")


class UnwillingInterface:
    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad.")


@pytest.mark.parametrize("array", [Unwilling(), UnwillingInterface()])
def test_what_a_library_does_not_share_is_said(stream, array):
    with pytest.raises(FeedError, match="the array's library does not share it: Can't") as caught:
        view_of(array, stream)
    assert "\n" not in caught.value.message
    assert "detach" in caught.value.hint


@pytest.mark.parametrize("seed", SEEDS)
def test_our_own_memory_waits_for_those_who_use_it_elsewhere(seed):
    stand_in = CudaStandIn(seed=seed)
    cuda = Cuda(0, stand_in)
    producer, consumer = Stream.create(cuda), Stream.create(cuda)
    array = DeviceArray.empty((2, 3), "uint8", producer)
    copy = PinnedBuffer(cuda, 6)
    pointer = view_of(array, consumer).pointer
    cuda.call("cudaMemcpyAsync", copy.pointer, pointer, 6, stand_in.cudaMemcpyKind(2), consumer.native)
    del array
    producer.synchronize()
    assert "ordered" not in stand_in.left()
    consumer.synchronize()
    assert stand_in.misuses == []


# --- out


def test_the_array_interface(cuda, stream):
    array = DeviceArray.empty((2, 3), "float32", stream)
    assert array.__cuda_array_interface__ == {
        "data": (array.pointer, False),
        "shape": (2, 3),
        "strides": None,
        "typestr": "<f4",
        "stream": stream.handle,
        "version": 3,
    }
    assert is_on_device(array)
    ready = DeviceArray(cuda, array.pointer, (2, 3), "float32")
    assert ready.__cuda_array_interface__["stream"] is None
    default = DeviceArray(cuda, array.pointer, (2, 3), "float32", stream=Stream.borrow(cuda, None))
    assert default.__cuda_array_interface__["stream"] == 1  # 0 is forbidden there


def test_dlpack_comes_back_the_same(cuda, stream):
    array = DeviceArray.empty((2, 3), "float32", stream)
    taken = dlpack.describe(array.__dlpack__(stream=stream.handle))
    assert (taken.pointer, taken.shape, taken.dtype) == (array.pointer, (2, 3), "float32")
    assert taken.device == array.__dlpack_device__() == (2, 0)
    assert taken.strides == (3, 1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("reader", ["another", "default"])
def test_a_reader_waits_for_the_contents_and_the_memory_for_the_reader(seed, reader):
    stand_in = CudaStandIn(seed=seed)
    cuda = Cuda(0, stand_in)
    stream = Stream.create(cuda)
    theirs = Stream.create(cuda) if reader == "another" else Stream.borrow(cuda, None)
    array = DeviceArray.empty((2, 3), "uint8", stream)
    pinned = PinnedBuffer(cuda, 6)
    pinned.view((2, 3), "uint8")[...] = VALUES
    upload(cuda, array.pointer, pinned.pointer, 6, stream)
    taken = dlpack.describe(array.__dlpack__(stream=theirs.handle or 1))
    copy = PinnedBuffer(cuda, 6)
    cuda.call("cudaMemcpyAsync", copy.pointer, taken.pointer, 6, stand_in.cudaMemcpyKind(2), theirs.native)
    del array, taken
    gc.collect()  # let go of while the copy waits
    stream.synchronize()
    assert "ordered" not in stand_in.left()
    theirs.synchronize()
    np.testing.assert_array_equal(copy.view((2, 3), "uint8"), VALUES)
    assert stand_in.misuses == []


def test_a_reader_that_sees_to_the_order_itself_is_left_to(stand_in, stream):
    array = DeviceArray.empty((2, 3), "uint8", stream)
    array.__dlpack__(stream=-1)
    array.__dlpack__(stream=stream.handle)
    assert "cudaStreamWaitEvent" not in stand_in.names()


@pytest.mark.parametrize("wish", [{"stream": 0}, {"copy": True}, {"dl_device": (1, 0)}])
def test_wishes_that_are_not_granted(stream, wish):
    array = DeviceArray.empty((2, 3), "uint8", stream)
    with pytest.raises(BufferError):
        array.__dlpack__(**wish)
    assert array.__dlpack__(stream=1, max_version=(1, 0), dl_device=(2, 0), copy=False) is not None


def test_read_only_memory_stays_so(cuda, stream):
    pointer = DeviceBuffer(cuda, 6).pointer
    view = view_of(WithInterface(pointer, data=(pointer, True)), stream)
    assert view.__cuda_array_interface__["data"] == (pointer, True)
    with pytest.raises(BufferError, match="read-only"):
        view.__dlpack__()
