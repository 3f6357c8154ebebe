"""BF16: which tensors become it, what it costs, and that the simulation is what BF16 kernels compute."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from int8_subjects import UINT8, int8_ranges, logits, tiny
from onnx import TensorProto

from resnet_deploy import simulation
from resnet_deploy.errors import ModelError
from resnet_deploy.onnx_files import bytes_from_onnx, onnx_from_bytes, read_card
from resnet_deploy.ort_session import open_session
from resnet_deploy.parity import first_divergence
from resnet_deploy.pipeline import golden
from resnet_deploy.precision import lower_to_bfloat16, lower_to_float16
from resnet_deploy.quantize.divergence import compare_steps
from resnet_deploy.quantize.graph import all_tensors, with_outputs
from resnet_deploy.simulation import BFLOAT16_NOTE, simulated, widen_bfloat16
from resnet_deploy.specs import BuildSpec, CalibrationSpec

# BF16 keeps 8 bits, some 48 dB of each value. Each of 20 layers rounds its result once more; where none of that
# averages out, it adds up to 13 dB, and random blocks amplify what differs. Measured 34.8, and FP16, which keeps 18 dB
# more of each value, leaves 57.
FLOOR_DB = 32


def rounded(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


@pytest.fixture(scope="module")
def lowered(resnet18) -> bytes:
    return bytes_from_onnx(lower_to_bfloat16(resnet18.model)[0])


def change(model: ir.Model, name: str, values) -> ir.Model:
    """A copy of the FP32 model whose first constants of ``name`` are ``values``."""
    copy = model.clone()
    constant = copy.graph.initializers[name]
    array = constant.const_value.numpy().copy()
    array.flat[: np.size(values)] = values
    constant.const_value = ir.tensor(array, name=name)
    return copy


# --- the graph


def test_everything_between_input_and_logits_is_bfloat16(resnet18, lowered):
    onnx.checker.check_model(lowered, full_check=True)
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(lowered), strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.output]}
    body = [node for node in graph.node if node.op_type in ("Conv", "Relu", "Add", "MaxPool", "Flatten", "Gemm")]
    assert len(body) > 40
    assert {types[node.output[0]] for node in body} == {TensorProto.BFLOAT16}
    for name in ("images.cast", "images.transposed", "images.centred", "images.normalized", "logits"):
        assert types[name] == TensorProto.FLOAT, name
    before = onnx.load_from_string(resnet18.data).graph
    assert (list(graph.input), list(graph.output)) == (list(before.input), list(before.output))
    new = [node.op_type for node in graph.node if node.name not in {one.name for one in before.node}]
    assert new == ["Cast", "Cast"]
    assert read_card(onnx_from_bytes(lowered, name="l"), name="l").preprocess == UINT8


def test_its_opset_is_the_first_whose_convolutions_may_be_bfloat16(lowered):
    proto = onnx.load_from_string(lowered)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 22)]
    proto.opset_import[0].version = 21
    with pytest.raises(Exception, match="bfloat16"):
        onnx.checker.check_model(proto.SerializeToString(), full_check=True)


def test_constants_are_rounded_but_for_the_normalisation(resnet18, lowered):
    constants = {tensor.name: tensor for tensor in onnx.load_from_string(lowered).graph.initializer}
    kept = {name for name, tensor in constants.items() if tensor.data_type != TensorProto.BFLOAT16}
    assert kept == {"mean", "reciprocal_std"}
    found = onnx_from_bytes(lowered, name="l").graph.initializers
    for name in constants.keys() - kept:
        original = resnet18.model.graph.initializers[name].const_value.numpy()
        assert np.array_equal(found[name].const_value.numpy().astype(np.float32), rounded(original)), name
    assert lower_to_bfloat16(resnet18.model)[1].tensors == len(constants) - 2
    assert len(lowered) == pytest.approx(len(resnet18.data) / 2, rel=0.01)


def test_the_original_is_left_as_it_was_and_lowering_repeats(resnet18, lowered):
    again, _ = lower_to_bfloat16(resnet18.model)
    assert bytes_from_onnx(resnet18.model) == resnet18.data
    assert bytes_from_onnx(again) == lowered


# --- weights that do not fit


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3.4e38, "layer2.0.conv1.weight has a value of 3.4e\\+38, beyond BF16's 3.38953e\\+38"),
        (np.inf, "layer2.0.conv1.weight has a value of inf"),
        (np.nan, "layer2.0.conv1.weight has a value that is not a number"),
    ],
)
def test_weights_beyond_bfloat16_are_refused(resnet18, value, message):
    with pytest.raises(ModelError, match=message) as caught:
        lower_to_bfloat16(change(resnet18.model, "layer2.0.conv1.weight", value))
    assert caught.value.hint


def test_what_is_beyond_half_precision_fits(resnet18):
    model = change(resnet18.model, "layer2.0.conv1.weight", 1e6)
    with pytest.raises(ModelError, match="beyond FP16's 65504"):
        lower_to_float16(model)
    lowered, report = lower_to_bfloat16(model)
    assert lowered.graph.initializers["layer2.0.conv1.weight"].const_value.numpy().flat[0] == 999424  # 8 bits of it
    assert not report.flushed


def test_weights_that_vanish_are_counted(resnet18):
    tiny_values = [2.0**-135, -(2.0**-140), 2.0**-133, 1e-30, 0.0]  # the third is BF16's smallest
    _, report = lower_to_bfloat16(change(resnet18.model, "layer1.0.conv1.weight", tiny_values))
    assert report.flushed == {"layer1.0.conv1.weight": 2}


# --- the simulation


def test_onnxruntime_cannot_run_the_graph_itself(resnet18, lowered):
    """Why there is a simulation; where this fails, it may go."""
    with pytest.raises(Exception, match="ONNX Runtime refuses the model"):
        open_session(lowered).run(None, {"images": resnet18.images})


def test_every_tensor_of_the_simulation_is_a_bfloat16(resnet18):
    lowered, _ = lower_to_bfloat16(resnet18.model)
    names = [str(value.name) for value in all_tensors(lowered.graph) if value.dtype == ir.DataType.BFLOAT16]
    assert len(names) > 40
    found = dict(run(widen_bfloat16(with_outputs(lowered, names)), resnet18.images))
    assert found.keys() == set(names)
    for name, array in found.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, rounded(array)), name
    exact = dict(run(with_outputs(resnet18.model, names), resnet18.images))
    assert len(exact) > 40
    assert not any(np.array_equal(array, rounded(array)) for array in exact.values())  # the twin: FP32 is not


def run(model: ir.Model, images: np.ndarray) -> list[tuple[str, np.ndarray]]:
    session = open_session(bytes_from_onnx(model), as_written=True)
    names = [output.name for output in session.get_outputs()]
    return list(zip(names, session.run(names, {"images": images}), strict=True))


def test_the_simulation_is_bfloat16_arithmetic_with_sums_in_fp32():
    """On a network whose products and sums FP32 holds exactly, so that nothing but BF16 rounds."""
    model, _, images = tiny(int8_ranges)
    data, notes = simulated(bytes_from_onnx(lower_to_bfloat16(model)[0]), name="tiny")
    assert notes == (BFLOAT16_NOTE,)
    weights = {name: rounded(value.const_value.numpy()) for name, value in model.graph.initializers.items()}

    def by_hand(after_conv) -> np.ndarray:
        first = after_conv(convolve(rounded(images), weights["conv1.weight"], weights["conv1.bias"]))
        return after_conv(convolve(np.maximum(first, 0), weights["conv2.weight"], weights["conv2.bias"]))

    found = logits(data, images)
    assert np.array_equal(found, by_hand(rounded))
    assert not np.array_equal(found, by_hand(lambda array: array))  # the twin: constants alone rounded


def convolve(images: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    side = weights.shape[-1]
    padded = np.pad(images.astype(np.float64), [(0, 0), (0, 0), (side // 2,) * 2, (side // 2,) * 2])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(2, 3))
    exact = np.einsum("nchwij,ocij->nohw", windows, weights.astype(np.float64)) + bias.reshape(-1, 1, 1)
    return exact.astype(np.float32)


def test_a_tensor_of_unknown_type_is_refused_and_not_left_unrounded(resnet18):
    lowered, _ = lower_to_bfloat16(resnet18.model)
    next(node for node in lowered.graph if node.op_type == "Conv").outputs[0].type = None
    with pytest.raises(ModelError, match="the type of conv1 is not known"):
        widen_bfloat16(lowered)


def test_graphs_without_bfloat16_are_simulated_as_they_are(resnet18, monkeypatch):
    monkeypatch.setattr(simulation, "installed_version", lambda _: "1.30.0")
    for data in (resnet18.data, resnet18.lowered["tensorrt-rtx"]):
        assert simulated(data, name="g") == (data, ())
    assert widen_bfloat16(resnet18.model) is resnet18.model


def test_an_onnxruntime_that_simulates_fp16_badly_is_named(resnet18, monkeypatch):
    monkeypatch.setattr(simulation, "installed_version", lambda _: "1.23.2")
    (note,) = simulated(resnet18.lowered["tensorrt-rtx"], name="g")[1]
    assert note.startswith("simulated by ONNX Runtime 1.23.2")
    for data in (resnet18.data, resnet18.lowered["onnxruntime"]):
        assert simulated(data, name="g")[1] == ()


# --- what it costs


def sqnr_db(resnet18, model: ir.Model) -> float:
    data, _ = simulated(bytes_from_onnx(lower_to_bfloat16(model)[0]), name="m")
    return resnet18.sqnr_db(data)


def test_logits_are_as_good_as_eight_bits(resnet18):
    assert FLOOR_DB < sqnr_db(resnet18, resnet18.model) < 45  # above: it was not BF16


def test_a_forgotten_bias_is_not_good_enough(resnet18):
    bias = resnet18.model.graph.initializers["layer3.0.conv1.bias"].const_value.numpy()
    assert sqnr_db(resnet18, change(resnet18.model, "layer3.0.conv1.bias", np.zeros_like(bias))) < FLOOR_DB - 3


def test_five_bits_of_weights_are_not_good_enough(resnet18):
    """The twin: weights with three bits less than BF16 keeps."""
    model = resnet18.model.clone()
    for name, constant in model.graph.initializers.items():
        if name.endswith(".weight"):
            mantissa, exponent = np.frexp(constant.const_value.numpy())
            coarse = np.ldexp(np.rint(mantissa * 32) / 32, exponent).astype(np.float32)
            constant.const_value = ir.tensor(coarse, name=name)
    assert sqnr_db(resnet18, model) < FLOOR_DB - 3


def test_no_layer_diverges_and_a_damaged_one_is_found(resnet18):
    lowered, _ = lower_to_bfloat16(resnet18.model)
    steps = compare_steps(resnet18.model, lowered, [resnet18.images[:2]])
    assert first_divergence(steps) is None
    assert sum(step.kind == "weights" for step in steps) == 21
    worst = min(step.alone_db for step in steps)
    assert 40 < worst < 50  # 8 bits, some 48 dB; a layer that cancels loses a few more. Measured 45.6
    weights = resnet18.model.graph.initializers["layer2.1.conv1.weight"].const_value.numpy()
    damaged, _ = lower_to_bfloat16(change(resnet18.model, "layer2.1.conv1.weight", -weights.ravel()))
    found = first_divergence(compare_steps(resnet18.model, damaged, [resnet18.images[:2]]))
    assert found is not None
    assert found.layer == "layer2.1.conv1"


# --- what a bundle keeps of it


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_answers_say_how_they_were_simulated(resnet18, lowered, precision):
    card = read_card(resnet18.model, name="m")
    spec = BuildSpec(backend="tensorrt-rtx", precision=precision)
    half = lowered if precision == "bf16" else bytes_from_onnx(lower_to_float16(resnet18.model)[0])
    answers = golden.answer(None, half, spec, card, golden.Samples(None, "synthetic images"))
    assert not answers.by_engine
    assert answers.notes == ((BFLOAT16_NOTE,) if precision == "bf16" else ())
    measured = golden.compare(answers, resnet18.data, "synthetic images")
    assert measured.by == "simulation"
    assert FLOOR_DB < measured.sqnr_db < 45 if precision == "bf16" else measured.sqnr_db > 45


def test_calibration_is_no_part_of_it():
    with pytest.raises(Exception, match="bf16 takes no calibration"):
        BuildSpec(backend="tensorrt-rtx", precision="bf16", calibration=CalibrationSpec())
