"""PyCUDA's side is played by a few lines that follow its source; with PyCUDA itself, see tests/gpu."""

import contextlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_stand_in import CudaStandIn

from resnet_deploy.cuda.runtime import Cuda
from resnet_deploy.cuda.streams import Stream
from resnet_deploy.device_arrays import DeviceArray
from resnet_deploy.errors import BackendError, FeedError
from resnet_deploy.integrations import pycuda


class PointerHolderBase:
    def __int__(self):
        return self.get_pointer()


class GPUArray:
    def __init__(self, shape, dtype, gpudata):
        self.shape, self.dtype, self.gpudata = shape, np.dtype(dtype), gpudata


@pytest.fixture
def library(monkeypatch):
    """PyCUDA, and the current context: 7 is the primary one."""
    contexts = SimpleNamespace(stack=[7], log=[])
    context = SimpleNamespace(push=lambda: contexts.log.append("push"))
    driver = SimpleNamespace(
        PointerHolderBase=PointerHolderBase,
        init=lambda: contexts.log.append("init"),
        Device=lambda number: SimpleNamespace(retain_primary_context=lambda: context),
        Context=SimpleNamespace(pop=lambda: contexts.log.append("pop")),
    )
    bindings = SimpleNamespace(
        cuCtxGetCurrent=lambda: (0, contexts.stack[-1]),
        cuDevicePrimaryCtxRetain=lambda device: (contexts.log.append("retain"), 7),
        cuDevicePrimaryCtxRelease=lambda device: contexts.log.append("release"),
    )
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setitem(sys.modules, "pycuda.gpuarray", SimpleNamespace(GPUArray=GPUArray))
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", bindings)
    return contexts


def logits():
    return DeviceArray.empty((2, 3), "float32", Stream.create(Cuda(0, CudaStandIn())))


def test_fresh_logits_become_a_gpuarray_that_keeps_them(library):
    answer = logits()
    calls = []

    def engine(images, **more):
        calls.append((images, more))
        return answer

    found = pycuda.run(engine, "images", "stream")
    assert calls == [("images", {"stream": "stream", "out": None})]
    assert (found.shape, found.dtype, int(found.gpudata)) == ((2, 3), np.float32, answer.pointer)
    assert found.gpudata.array is answer
    assert library.log == ["retain", "release"]


def test_logits_in_the_caller_s_memory_are_that(library):
    out = object()
    assert pycuda.run(lambda images, **_: logits(), "images", out=out) is out


@pytest.mark.parametrize("current", [8, None])
def test_another_context_is_named(library, current):
    library.stack.append(current)
    with pytest.raises(FeedError, match="not the device's primary one") as caught:
        pycuda.run(lambda *_, **__: pytest.fail("called"), "images")
    assert "primary_context()" in caught.value.hint


def test_the_primary_context_is_pushed_and_popped(library):
    with contextlib.suppress(KeyError), pycuda.primary_context():
        assert library.log == ["init", "push"]
        raise KeyError
    assert library.log == ["init", "push", "pop"]


def test_without_pycuda_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(BackendError, match=r"pycuda.driver cannot be imported") as caught:
        pycuda.to_gpuarray(logits())
    assert "resnet-deploy[gpu,pycuda]" in caught.value.hint
