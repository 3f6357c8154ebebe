"""FP16 lowering: which tensors become half precision, what that costs, and which weights it refuses."""

from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto
from torch import nn

from resnet_deploy.errors import ModelError
from resnet_deploy.export import export_onnx
from resnet_deploy.models import create_model
from resnet_deploy.onnx_files import bytes_from_onnx, onnx_from_bytes, read_card
from resnet_deploy.ort_session import open_session
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.precision import lower_to_float16
from resnet_deploy.specs import ModelCard, Preprocess
from resnet_deploy.verify import compare_logits

UINT8 = Preprocess(image_size=32, resize=32)
FLOAT32 = Preprocess(image_size=32, resize=32, dtype="float32", layout="NCHW")
# FP16 keeps 11 bits, some 66 dB of each value; rounding errors of 20 layers add up in the logits no further, for they
# average out. Measured 66.5 on ONNX Runtime. With 8 bits (bfloat16, below) it is 48.
FLOOR_DB = 60


@pytest.fixture(autouse=True, scope="module")
def two_threads():
    torch.set_num_threads(2)


@dataclass(frozen=True)
class Subject:
    preprocess: Preprocess
    model: ir.Model
    data: bytes
    lowered: bytes
    images: np.ndarray
    expected: np.ndarray


def logits(data: bytes, images: np.ndarray) -> np.ndarray:
    (found,) = open_session(data).run(["logits"], {"images": images})
    return found


@cache  # no test changes what it is given, which is tested too
def export(preprocess: Preprocess) -> Subject:
    network = create_model("resnet18", 10).eval()
    generator = torch.Generator().manual_seed(1)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.bias, -0.2, 0.2, generator=generator)  # or the convolutions would have no bias
    card = ModelCard(architecture="resnet18", num_classes=10, weights="none", weights_sha256="", preprocess=preprocess)
    model = export_onnx(network, card)
    data, images = bytes_from_onnx(model), synthetic_images(preprocess, 8)
    lowered = bytes_from_onnx(lower_to_float16(model)[0])
    return Subject(preprocess, model, data, lowered, images, logits(data, images))


@pytest.fixture(scope="module", params=[UINT8, FLOAT32], ids=["uint8 input", "float32 input"])
def subject(request) -> Subject:
    return export(request.param)


@pytest.fixture(scope="module")
def uint8() -> Subject:
    return export(UINT8)


def with_weights(subject: Subject, name: str, change) -> ir.Model:
    """A copy of the model whose weights ``name`` went through ``change``."""
    model = onnx_from_bytes(subject.data, name="copy")
    constant = model.graph.initializers[name]
    constant.const_value = ir.tensor(change(constant.const_value.numpy().copy()), name=name)
    return model


def replaced(index: int, value: float):
    def change(array: np.ndarray) -> np.ndarray:
        array.flat[index] = value
        return array

    return change


# --- the graph


def test_everything_between_input_and_logits_is_half(subject):
    onnx.checker.check_model(subject.lowered, full_check=True)
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(subject.lowered), strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.output]}
    kept = {"images.cast", "images.transposed", "images.centred", "images.normalized"}
    for node in graph.node:
        if node.op_type in ("Conv", "Relu", "Add", "MaxPool", "GlobalAveragePool", "Flatten", "Gemm"):
            assert types[node.output[0]] == TensorProto.FLOAT16, node.name
        elif node.name in kept:
            assert types[node.output[0]] == TensorProto.FLOAT, node.name
    counts = Counter(types[node.output[0]] for node in graph.node if node.op_type in ("Conv", "Gemm"))
    assert counts == {TensorProto.FLOAT16: 21}
    assert {node.name for node in graph.node} >= kept or subject.preprocess == FLOAT32


def test_two_casts_are_all_that_is_new(subject):
    before, after = (onnx.load_from_string(data).graph for data in (subject.data, subject.lowered))
    new = [node for node in after.node if node.name not in {node.name for node in before.node}]
    assert [(node.op_type, node.attribute[0].i) for node in new] == [
        ("Cast", TensorProto.FLOAT16),
        ("Cast", TensorProto.FLOAT),
    ]
    assert [node.name for node in after.node if node not in new] == [node.name for node in before.node]


def test_inputs_outputs_and_card_are_unchanged(subject):
    before, after = (onnx.load_from_string(data) for data in (subject.data, subject.lowered))
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert read_card(onnx_from_bytes(subject.lowered, name="l"), name="l").preprocess == subject.preprocess


def test_constants_are_half_but_for_the_normalisation(subject):
    constants = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load_from_string(subject.lowered).graph.initializer
    }
    kept = {name for name, array in constants.items() if array.dtype != np.float16}
    assert kept == ({"mean", "reciprocal_std"} if subject.preprocess == UINT8 else set())
    _, report = lower_to_float16(subject.model)
    assert report.tensors == len(constants) - len(kept) == 2 * 21
    originals = subject.model.graph.initializers
    for name in constants.keys() - kept:
        assert np.array_equal(constants[name], originals[name].const_value.numpy().astype(np.float16)), name
    assert len(subject.lowered) == pytest.approx(len(subject.data) / 2, rel=0.01)


def test_the_original_is_left_as_it_was_and_lowering_repeats(subject):
    again, _ = lower_to_float16(subject.model)
    assert bytes_from_onnx(subject.model) == subject.data
    assert bytes_from_onnx(again) == subject.lowered != subject.data


# --- what it costs


def test_logits_are_as_good_as_eleven_bits(subject):
    found = logits(subject.lowered, subject.images)
    assert found.dtype == np.float32
    assert FLOOR_DB < compare_logits(subject.expected, found).sqnr_db < 80  # above: it was not FP16


def test_eight_bits_are_not_good_enough(subject):
    """The twin: bfloat16's mantissa instead of FP16's."""
    model = onnx_from_bytes(subject.data, name="copy")
    for name, constant in model.graph.initializers.items():
        if name.endswith(".weight"):
            rounded = torch.from_numpy(constant.const_value.numpy().copy()).bfloat16().float().numpy()
            constant.const_value = ir.tensor(rounded, name=name)
    found = logits(bytes_from_onnx(lower_to_float16(model)[0]), subject.images)
    assert compare_logits(subject.expected, found).sqnr_db < FLOOR_DB - 5


def test_a_forgotten_bias_is_not_good_enough(subject):
    model = with_weights(subject, "layer3.0.conv1.bias", np.zeros_like)
    found = logits(bytes_from_onnx(lower_to_float16(model)[0]), subject.images)
    assert compare_logits(subject.expected, found).sqnr_db < FLOOR_DB - 5


# --- weights that do not fit


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1e6, "layer2.0.conv1.weight has a value of 1e\\+06, beyond FP16's 65504"),
        (-1e6, "layer2.0.conv1.weight has a value of 1e\\+06"),
        (65536, "layer2.0.conv1.weight has a value of 6.55e\\+04"),
        (np.inf, "layer2.0.conv1.weight has a value of inf"),
        (np.nan, "layer2.0.conv1.weight has a value that is not a number"),
    ],
)
def test_weights_beyond_half_precision_are_refused(uint8, value, message):
    with pytest.raises(ModelError, match=message) as caught:
        lower_to_float16(with_weights(uint8, "layer2.0.conv1.weight", replaced(7, value)))
    assert caught.value.hint


def test_the_largest_half_fits(uint8):
    lowered, _ = lower_to_float16(with_weights(uint8, "layer2.0.conv1.weight", replaced(7, -65504)))
    assert lowered.graph.initializers["layer2.0.conv1.weight"].const_value.numpy().flat[7] == -65504


def test_the_normalisation_may_be_beyond_half(uint8):
    lowered, _ = lower_to_float16(with_weights(uint8, "mean", replaced(0, 1e6)))
    assert lowered.graph.initializers["mean"].const_value.numpy().flat[0] == 1e6


def test_weights_that_vanish_are_counted(uint8):
    def tiny(array: np.ndarray) -> np.ndarray:
        array[:] = 0.5
        array.flat[:5] = [1e-9, -1e-9, 2.0**-25, 2.0**-24, 0.0]  # half the smallest FP16 rounds to even: to zero
        return array

    _, report = lower_to_float16(with_weights(uint8, "layer1.0.conv1.weight", tiny))
    assert report.flushed["layer1.0.conv1.weight"] == 3
    _, before = lower_to_float16(uint8.model)
    assert report.flushed == before.flushed | {"layer1.0.conv1.weight": 3}
    assert "layer1.0.conv1.weight" not in before.flushed
