"""What ONNX Runtime raises where memory is short is a MemoryError, which the command line explains."""

import pytest

from resnet_deploy.errors import BuildError
from resnet_deploy.ort_session import translate_refusals


class RuntimeFaultError(Exception):
    """A stand-in for the library's own, which is known by its module."""

    __module__ = "onnxruntime.capi.onnxruntime_pybind11_state"


@pytest.mark.parametrize(
    ("text", "kind"),
    [  # the first as ONNX Runtime 1.32 gave it where the address space was limited
        ("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc", MemoryError),
        ("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bfc_arena: Failed to allocate memory for 9 bytes", MemoryError),
        ("[ONNXRuntimeError] : 10 : INVALID_GRAPH : This is an invalid model", BuildError),
    ],
)
def test_memory_is_told_from_the_model(text, kind):
    with pytest.raises(kind, match=r"\[ONNXRuntimeError\]"), translate_refusals():
        raise RuntimeFaultError(text)
