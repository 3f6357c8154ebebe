"""What builders say without a library: who builds what."""

import pytest

from resnet_deploy.backends import BACKENDS
from resnet_deploy.builders import find_builder
from resnet_deploy.errors import BackendError


@pytest.mark.parametrize("name", ["null", "torch"])
def test_a_backend_that_builds_nothing_names_those_that_do(name):
    with pytest.raises(BackendError, match=f"does not build engines for {name}") as caught:
        find_builder(name)
    named = caught.value.hint.removeprefix("choose --backend ").split(" or ")
    assert named == [one.name for one in BACKENDS if one.builder]
    assert {"openvino", "onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-rtx", "tensorrt"} <= set(named)
