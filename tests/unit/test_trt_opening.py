"""Bundles of TensorRT itself, opened on the stand-ins: what its plans need that those of TensorRT-RTX do not."""

import dataclasses

import msgspec
import numpy as np
import pytest
from cuda_stand_in import CudaStandIn
from test_trt_loading import GPU, images, make_bundle
from test_trt_refit import GRAPH, Refitting, stripped
from trt_stand_in import expected, plan

from resnet_deploy.cuda.runtime import Cuda
from resnet_deploy.driver import GpuProbe
from resnet_deploy.engine import Engine
from resnet_deploy.errors import BundleError
from resnet_deploy.runners import find_runner, trt
from resnet_deploy.trt_options import TrtOptions


@pytest.fixture
def tensorrt(monkeypatch, tmp_path):
    """A machine with a GPU and TensorRT, both played."""
    stand_in = CudaStandIn()
    tensorrt = Refitting(stand_in)
    asked = []
    monkeypatch.setattr(trt, "probe_gpu", lambda: GpuProbe((GPU,), "13.0"))
    monkeypatch.setattr(trt, "Cuda", lambda: Cuda(0, stand_in))
    monkeypatch.setattr(trt.trt_api, "load", lambda name: asked.append(name) or tensorrt.api())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tensorrt
    assert set(asked) == {"tensorrt"}
    assert stand_in.misuses == []
    assert stand_in.left() == []


def allows_host_code(runner):
    return getattr(runner._engine._runtime, "engine_host_code_allowed", False)


def answers(bundle, runner):
    with Engine(bundle, runner) as engine:
        np.testing.assert_array_equal(engine(images(19)), expected(images(19)))


def test_a_whole_plan_is_loaded_as_it_is(tensorrt, tmp_path):
    bundle = make_bundle(tmp_path, plan(), backend="tensorrt", version="1.0", compute_capabilities=("8.9",))
    runner = find_runner("tensorrt")(bundle, 4)
    assert not allows_host_code(runner)
    assert runner.device == GPU.name
    assert runner.notes == ("CUDA graphs, one for each batch size and pair of buffers",)
    answers(bundle, runner)
    assert tensorrt.done == []
    assert not (tmp_path / "cache").exists()  # of kernels that are compiled where they run, which none is


def without_weights(bundle):
    spec = msgspec.structs.replace(bundle.manifest.spec, trt=TrtOptions(strip_weights=True))
    return dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, spec=spec))


def test_a_stripped_plan_has_its_weights_put_back_in(tensorrt, tmp_path):
    bundle = without_weights(stripped(tmp_path, GRAPH))
    answers(bundle, find_runner("tensorrt")(bundle, 4))
    assert tensorrt.done == ["graph", "engine"]


def test_weights_that_were_altered_are_not(tensorrt, tmp_path):
    with pytest.raises(BundleError, match=r"lowered\.onnx was altered"):
        find_runner("tensorrt")(without_weights(stripped(tmp_path, b"another graph")), 4)
    assert tensorrt.done == []


def test_a_plan_for_later_versions_may_run_its_code(tensorrt, tmp_path):
    bundle = make_bundle(tmp_path, plan(), backend="tensorrt", version="1.0", later_versions=True)
    runner = find_runner("tensorrt")(bundle, 4)
    assert allows_host_code(runner)
    answers(bundle, runner)


def test_graphs_can_be_done_without(tensorrt, tmp_path):
    bundle = make_bundle(tmp_path, plan(), backend="tensorrt")
    runner = find_runner("tensorrt")(bundle, 4, graphs=False)
    assert runner.notes == ("no CUDA graphs, as asked for",)
    answers(bundle, runner)
