"""What builders say without a library: who builds what, and what a machine must have to run it."""

import pytest
from cuda_stand_in import CudaStandIn
from trt_stand_in import TrtStandIn

from resnet_deploy.backends import BACKENDS
from resnet_deploy.builders import find_builder, trt
from resnet_deploy.bundle import Requirements
from resnet_deploy.driver import Gpu, GpuProbe
from resnet_deploy.errors import BackendError
from resnet_deploy.specs import BuildSpec
from resnet_deploy.trt_options import TrtOptions


@pytest.mark.parametrize("name", ["null", "torch"])
def test_a_backend_that_builds_nothing_names_those_that_do(name):
    with pytest.raises(BackendError, match=f"does not build engines for {name}") as caught:
        find_builder(name)
    named = caught.value.hint.removeprefix("choose --backend ").split(" or ")
    assert named == [one.name for one in BACKENDS if one.builder]
    assert {"openvino", "onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-rtx", "tensorrt"} <= set(named)


@pytest.mark.parametrize(
    ("options", "requires"),
    [
        ({}, {"compute_capabilities": ("8.9",)}),
        ({"hardware_compatibility": "same-cc"}, {"compute_capabilities": ("8.9",)}),
        ({"hardware_compatibility": "ampere+"}, {"least_compute_capability": "8.0"}),
        ({"version_compatible": True}, {"compute_capabilities": ("8.9",), "later_versions": True}),
    ],
)
def test_an_engine_of_tensorrt_requires_what_it_was_built_for(monkeypatch, options, requires):
    monkeypatch.setattr(trt.driver, "probe_gpu", lambda: GpuProbe((Gpu("NVIDIA L4", "8.9", 2**30),), "13.0"))
    spec = BuildSpec(backend="tensorrt", precision="fp16", trt=TrtOptions(**options))
    found = trt._requirements(TrtStandIn(CudaStandIn()).api(), spec)
    assert found == Requirements(library="tensorrt", version="1.0", **requires)


def test_the_line_that_says_what_is_wrong_is_picked():
    assert trt._reason("Invalid Node - conv1\n\nno kernel for it\nno GPU") == "no kernel for it"
    assert trt._reason("Invalid Node - conv1") == trt._reason("") == "it gave no reason"
