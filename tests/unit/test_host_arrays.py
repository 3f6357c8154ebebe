"""Other libraries' arrays in the host's memory, in and out."""

import numpy as np
import pytest
from PIL import Image

from resnet_deploy import host_arrays
from resnet_deploy.errors import FeedError
from resnet_deploy.host_arrays import require_apart, view_of_logits, view_of_out, view_on_host, writable_view

SHAPE = (3, 4)
IS_TOLD_WHAT_IS_WRITABLE = np.lib.NumpyVersion(np.__version__) >= "2.2.5"  # by DLPack


class Interface:
    """An array that has NumPy's array interface and nothing else."""

    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


class Dlpack:
    """An array that has DLPack and nothing else, on a device of some kind."""

    def __init__(self, array, device=(1, 0), error=None):
        self.array, self.device, self.error = array, device, error

    def __dlpack__(self, **options):
        if self.error is not None:
            raise self.error
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


@pytest.mark.parametrize("wrap", [lambda array: array, Interface, Dlpack], ids=["numpy", "interface", "dlpack"])
def test_memory_is_seen_where_it_is(wrap):
    array = np.arange(12, dtype=np.uint8).reshape(SHAPE)
    view = view_on_host(wrap(array))
    assert view.ctypes.data == array.ctypes.data
    assert (view.shape, view.dtype) == (SHAPE, np.uint8)
    assert view.flags.writeable == (wrap is not Dlpack or IS_TOLD_WHAT_IS_WRITABLE)
    array[1, 2] = 99
    assert view[1, 2] == 99


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_memory_of_a_tensor_is_seen_where_it_is(dtype):
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(SHAPE, dtype=getattr(torch, dtype))
    view = view_on_host(tensor)
    assert (view.ctypes.data, view.dtype) == (tensor.data_ptr(), np.dtype(dtype))
    turned = view_on_host(tensor.T)
    assert (turned.ctypes.data, turned.shape) == (tensor.data_ptr(), SHAPE[::-1])
    assert not turned.flags.c_contiguous


@pytest.mark.parametrize("what", [[np.zeros(3)], "path", 3, None, Dlpack(np.zeros(3), device=(2, 0))])
def test_what_is_no_array_on_the_host(what):
    assert view_on_host(what) is None


def test_a_picture_has_the_interface_too():
    """The engine asks for pictures first: these would pass for prepared images."""
    assert view_on_host(Image.new("RGB", (4, 3))).shape == (3, 4, 3)


@pytest.mark.parametrize("kind", [1, 3, 11])
def test_memory_that_is_pinned_is_the_hosts(kind):
    array = np.arange(12, dtype=np.uint8).reshape(SHAPE)
    assert view_on_host(Dlpack(array, device=(kind, 0))).ctypes.data == array.ctypes.data


@pytest.mark.parametrize("error", [BufferError, RuntimeError, TypeError, ValueError])
def test_what_is_not_shared_is_said(error):
    with pytest.raises(FeedError, match="does not share it: because") as caught:
        view_on_host(Dlpack(np.zeros(3), error=error("because\nof much")))
    assert "detach" in caught.value.hint


def test_a_tensor_with_a_gradient_is_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(FeedError, match="does not share it"):
        view_on_host(torch.zeros(3, requires_grad=True))
    with pytest.raises(FeedError, match="does not share it"):
        view_on_host(torch.zeros(3, dtype=torch.bfloat16))
    with pytest.raises(FeedError, match="does not share it"):
        view_on_host(torch.zeros(3, device="meta"))
    with pytest.raises(FeedError, match="does not share it"):
        view_on_host(torch.eye(3).to_sparse())


def test_memory_to_read_is_seen_as_to_be_written():
    array = np.frombuffer(bytes(range(12)), np.uint8).reshape(SHAPE)[1:]
    view = writable_view(array)
    assert view.flags.writeable
    assert (view.ctypes.data, view.shape, view.dtype) == (array.ctypes.data, array.shape, array.dtype)
    assert not array.flags.writeable
    own = np.zeros(3)
    assert writable_view(own) is own


def test_logits_of_any_library():
    torch = pytest.importorskip("torch")
    logits = np.arange(12, dtype=np.float32).reshape(SHAPE)
    for rows in (logits, torch.from_numpy(logits), logits.astype(np.float64), logits[:0]):
        np.testing.assert_array_equal(view_of_logits(rows, 4), np.asarray(rows))


BROKEN = np.zeros(SHAPE, np.float32)
BROKEN[1, 2] = np.nan
NO_LOGITS = {
    "of one image": (np.zeros(4, np.float32), r"float32 \(4,\), expected are floats \(N, 4\)", "logits[None]"),
    "another width": (np.zeros((3, 5), np.float32), r"float32 \(3, 5\)", "submit"),
    "integers": (np.zeros(SHAPE, np.int64), "int64", "submit"),
    "one axis more": (np.zeros((1, *SHAPE), np.float32), r"\(1, 3, 4\)", "submit"),
    "not finite": (BROKEN, "row 1 of the logits is not finite", "verify"),
    "a list": ([[1.0, 2.0, 3.0, 4.0]], "logits are of type builtins.list", "array"),
    "on a device": (Dlpack(np.zeros(SHAPE), device=(2, 0)), "logits are of type", "array in the host's memory"),
}


@pytest.mark.parametrize(("logits", "message", "hint"), NO_LOGITS.values(), ids=NO_LOGITS.keys())
def test_what_are_no_logits(logits, message, hint):
    with pytest.raises(FeedError, match=message) as caught:
        view_of_logits(logits, 4)
    assert hint in caught.value.hint


def test_out_that_fits():
    array = np.empty(SHAPE, np.float32)
    assert view_of_out(array, SHAPE, "float32") is array
    if IS_TOLD_WHAT_IS_WRITABLE:
        assert view_of_out(Dlpack(array), SHAPE, "float32").ctypes.data == array.ctypes.data
    else:
        with pytest.raises(FeedError, match="out is read-only"):
            view_of_out(Dlpack(array), SHAPE, "float32")


class Tensor:
    """Of a library whose DLPack does not tell NumPy that its memory may be written to; NumPy's own protocol may."""

    def __init__(self, array):
        self.array = array

    def __array__(self, *_, **__):
        if isinstance(self.array, Exception):
            raise self.array
        return self.array


OUT = np.empty(SHAPE, np.float32)
SHARED = {
    "read-only": np.broadcast_to(OUT, SHAPE),
    "a copy": OUT.copy(),
    "another shape": OUT[:2],
    "another type": OUT.view(np.int32),
    "other strides": OUT.reshape(-1)[:9].reshape(3, 3),
}


@pytest.fixture
def of_before(monkeypatch):
    """NumPy before 2.2.5: whatever DLPack gives is read-only."""
    view = OUT.view()
    view.flags.writeable = False
    monkeypatch.setattr(host_arrays, "_TOLD_BY_DLPACK", False)
    monkeypatch.setattr(host_arrays, "view_on_host", lambda _: view)


@pytest.mark.usefixtures("of_before")
def test_numpys_own_protocol_says_that_out_may_be_written_to():
    assert view_of_out(Tensor(OUT), SHAPE, "float32") is OUT


@pytest.mark.usefixtures("of_before")
@pytest.mark.parametrize(
    "shared", [*SHARED.values(), TypeError("no"), RuntimeError("no")], ids=[*SHARED, "TypeError", "RuntimeError"]
)
def test_or_it_does_not(shared):
    with pytest.raises(FeedError, match="out is read-only"):
        view_of_out(Tensor(shared), SHAPE, "float32")


def test_it_is_not_asked_where_dlpack_tells(monkeypatch):
    view = OUT.view()
    view.flags.writeable = False
    monkeypatch.setattr(host_arrays, "_TOLD_BY_DLPACK", True)
    monkeypatch.setattr(host_arrays, "view_on_host", lambda _: view)
    with pytest.raises(FeedError, match="out is read-only"):
        view_of_out(Tensor(OUT), SHAPE, "float32")


def read_only():
    array = np.empty(SHAPE, np.float32)
    array.flags.writeable = False
    return array


MISFITS = {
    "a list": ([], "out is builtins.list, the images are in the host's memory"),
    "on a device": (Dlpack(np.empty(SHAPE, np.float32), device=(2, 0)), "the images are in the host's memory"),
    "another type": (np.empty(SHAPE), r"out is float64 \(3, 4\), the logits are float32 \(3, 4\)"),
    "foreign bytes": (np.empty(SHAPE, np.dtype("f4").newbyteorder()), "the logits are float32"),
    "another shape": (np.empty((4, 3), np.float32), r"out is float32 \(4, 3\)"),
    "one axis more": (np.empty((1, *SHAPE), np.float32), r"out is float32 \(1, 3, 4\)"),
    "read-only": (read_only(), "out is read-only"),
    "turned": (np.empty((4, 3), np.float32).T, "out is not contiguous"),
    "with gaps": (np.empty((6, 4), np.float32)[::2], "out is not contiguous"),
    "not aligned": (np.empty(49, np.uint8)[1:].view(np.float32).reshape(SHAPE), "out is not aligned to 4 bytes"),
}


@pytest.mark.parametrize(("out", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_out_that_does_not_fit(out, message):
    with pytest.raises(FeedError, match=message) as caught:
        view_of_out(out, SHAPE, "float32")
    assert caught.value.hint


def test_out_in_the_memory_of_the_images():
    memory = np.zeros(100, np.uint8)
    out = memory[:48].view(np.float32)
    require_apart(out, memory[48:])
    with pytest.raises(FeedError, match="out overlaps with the images"):
        require_apart(out, memory[47:])
