"""DLPack capsules to and from the real NumPy and PyTorch, in host memory: layout and lifetime are those of a GPU's."""

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest

from resnet_deploy import dlpack
from resnet_deploy.errors import FeedError

CPU = (dlpack.CPU, 0)


class Owner:
    """Keeps an array, and can be watched."""

    def __init__(self, array):
        self.array = array


class Producer:
    """Hands out one capsule."""

    def __init__(self, capsule):
        self.capsule = capsule

    def __dlpack__(self, **_):
        return self.capsule

    def __dlpack_device__(self):
        return CPU


def give(array):
    """Put a host array into a capsule; also return a watch on its owner."""
    owner = Owner(array)
    capsule = dlpack.give(array.ctypes.data, array.shape, array.dtype.name, CPU, owner)
    return capsule, weakref.ref(owner)


def numpy_takes(capsule):
    return np.from_dlpack(Producer(capsule))


def torch_takes(capsule):
    return pytest.importorskip("torch").from_dlpack(Producer(capsule))


CONSUMERS = pytest.mark.parametrize("take", [numpy_takes, torch_takes], ids=["numpy", "torch"])


@CONSUMERS
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (1,), (5, 1)])
def test_others_take_what_is_given(take, dtype, shape):
    array = (np.arange(np.prod(shape)) % 100).reshape(shape).astype(dtype)
    capsule, _ = give(array)
    taken = take(capsule)
    assert str(taken.dtype).removeprefix("torch.") == dtype
    assert tuple(taken.shape) == shape
    np.testing.assert_array_equal(np.asarray(taken), array)
    address = taken.data_ptr() if hasattr(taken, "data_ptr") else taken.ctypes.data
    assert address == array.ctypes.data


@CONSUMERS
def test_the_memory_lives_until_the_last_reader_is_done_and_no_longer(take):
    capsule, owner = give(np.arange(6, dtype=np.float32))
    taken = take(capsule)
    del capsule
    gc.collect()
    assert owner() is not None
    part = taken[2:]
    del taken
    gc.collect()
    assert float(part[0]) == 2
    assert owner() is not None
    del part
    gc.collect()
    assert owner() is None


def test_a_capsule_that_nobody_takes_lets_go():
    capsule, owner = give(np.zeros(3, np.uint8))
    assert owner() is not None
    del capsule
    gc.collect()
    assert owner() is None


def test_our_own_capsule_is_read_and_deleted_once():
    array = np.arange(12, dtype=np.int16).reshape(3, 4)
    capsule, owner = give(array)
    found = dlpack.describe(capsule)
    assert (found.pointer, found.shape, found.strides) == (array.ctypes.data, (3, 4), (4, 1))
    assert (found.dtype, found.device) == ("int16", CPU)
    del capsule
    gc.collect()
    assert owner() is not None
    del found
    gc.collect()
    assert owner() is None


def test_a_capsule_that_was_taken_is_refused():
    capsule, _ = give(np.zeros(3, np.uint8))
    kept = np.from_dlpack(Producer(capsule))
    with pytest.raises(FeedError, match="no DLPack capsule that can still be taken"):
        dlpack.describe(capsule)
    del kept


@pytest.mark.parametrize("thing", [None, 3, "dltensor", object()])
def test_what_is_no_capsule(thing):
    with pytest.raises(FeedError, match="no DLPack capsule"):
        dlpack.describe(thing)


def test_numpy_gives():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    view = array[1:, ::2]
    before = sys.getrefcount(view)
    taken = dlpack.describe(view.__dlpack__())
    assert (taken.pointer, taken.shape, taken.strides) == (view.ctypes.data, view.shape, (6, 2))
    assert sys.getrefcount(view) > before
    del taken
    gc.collect()
    assert sys.getrefcount(view) == before


def test_torch_gives():
    torch = pytest.importorskip("torch")
    tensor = torch.arange(24, dtype=torch.uint8).reshape(4, 6).t()
    taken = dlpack.describe(tensor.__dlpack__())
    assert (taken.pointer, taken.shape, taken.strides) == (tensor.data_ptr(), (6, 4), (1, 6))
    assert (taken.dtype, taken.device) == ("uint8", CPU)


def test_torch_is_told_that_its_tensor_is_no_longer_needed():
    torch = pytest.importorskip("torch")
    array = np.zeros(1000, np.float32)
    owner = Owner(array)
    watch = weakref.ref(owner)
    capsule = dlpack.give(array.ctypes.data, (1000,), "float32", CPU, owner)
    del owner
    taken = dlpack.describe(torch.from_dlpack(Producer(capsule)).__dlpack__())  # through torch and back
    assert watch() is not None
    del taken
    gc.collect()
    assert watch() is None


@pytest.mark.parametrize("dtype", ["bfloat16", "bool", "complex64"])
def test_elements_without_a_name_are_refused(dtype):
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(3, dtype=getattr(torch, dtype))
    with pytest.raises(FeedError, match="DLPack elements of code"):
        dlpack.describe(tensor.__dlpack__())


AT_EXIT = """
import numpy as np
import torch
from resnet_deploy import dlpack
class Producer:
    def __dlpack__(self, **_):
        return self.capsule
    def __dlpack_device__(self):
        return (1, 0)
array = np.zeros(3, np.float32)
kept = []
for take in (np.from_dlpack, torch.from_dlpack):
    producer = Producer()
    producer.capsule = dlpack.give(array.ctypes.data, (3,), "float32", (1, 0), array)
    kept.append(take(producer))
torch.kept = np.kept = kept  # outlive the module dlpack
kept.append(dlpack.give(array.ctypes.data, (3,), "float32", (1, 0), array))
kept.append(dlpack.describe(torch.zeros(3).__dlpack__()))
"""


def test_the_end_of_the_process_is_survived():
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
