"""INT8 in the graph of each target: where Q/DQ stands, and what it costs."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
from int8_subjects import (
    FLOOR_DB,
    SEVEN_BITS,
    UINT8,
    Graph,
    Subject,
    blocks,
    convolution_names,
    floor_db,
    lower,
    make,
    with_scale,
)

from resnet_deploy.onnx_files import bytes_from_onnx
from resnet_deploy.ort_session import import_onnxruntime
from resnet_deploy.precision import lower_to_float16
from resnet_deploy.quantize.qdq import FORMS, insert_qdq


@pytest.fixture(autouse=True, scope="module")
def two_threads():
    torch.set_num_threads(2)


@pytest.fixture(scope="module", params=["resnet18", "resnet50"])
def subject(request, resnet18) -> Subject:
    return resnet18 if request.param == "resnet18" else make(request.param, UINT8)


# --- where Q/DQ stands


@pytest.mark.parametrize("target", FORMS)
def test_every_form_is_valid_onnx_and_keeps_the_contract(subject, target):
    data = subject.lowered[target]
    onnx.checker.check_model(data, full_check=True)
    before, after = onnx.load_from_string(subject.data), onnx.load_from_string(data)
    assert (list(after.graph.input), list(after.graph.output)) == (list(before.graph.input), list(before.graph.output))
    assert list(after.metadata_props) == list(before.metadata_props)
    assert {opset.domain: opset.version for opset in after.opset_import}[""] <= 21
    assert {node.op_type for node in after.graph.node} - {node.op_type for node in before.graph.node} == {
        "QuantizeLinear",
        "DequantizeLinear",
    }
    graph = Graph(data)
    assert not graph.is_dequantized("logits")
    assert not {"logits", "logits.half"} & graph.quantized_activations()


def test_tensorrt_form_has_each_shortcut_and_no_other_operand_quantized(subject):
    graph = Graph(subject.lowered["tensorrt"])
    found = []
    for add in graph.all("Add"):
        (quantized,) = [name for name in add.input if graph.is_dequantized(name)]
        (plain,) = [name for name in add.input if name != quantized]
        assert graph.makers[plain].op_type == "Conv"
        found.append((add.name.removesuffix(".add"), plain, graph.origin(quantized)))
    assert found == blocks(subject.architecture)
    assert len(found) == {"resnet18": 8, "resnet50": 16}[subject.architecture]
    assert subject.reports["tensorrt"].shortcuts == tuple(f"{name}.add" for name, _, _ in found)


def test_tensorrt_form_quantizes_what_convolutions_and_shortcuts_read_and_nothing_else(subject):
    float_graph, graph = Graph(subject.data), Graph(subject.lowered["tensorrt"])
    read = {node.input[0] for node in float_graph.all("Conv")}
    shortcuts = {shortcut for _, _, shortcut in blocks(subject.architecture)}
    assert graph.quantized_activations() == read | shortcuts
    assert not graph.quantized_activations() & {last for _, last, _ in blocks(subject.architecture)}
    assert set(subject.reports["tensorrt"].activations) == read | shortcuts
    assert all(graph.is_dequantized(node.input[0]) for node in graph.all("Conv"))
    (classifier,) = graph.all("Gemm")
    assert not any(graph.is_dequantized(name) for name in classifier.input)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_symmetric_forms_have_int8_activations_zero_points_of_zero_and_half_scales(subject, target):
    graph = Graph(subject.lowered[target])
    nodes = graph.all("QuantizeLinear", "DequantizeLinear")
    assert len(nodes) > 2 * len(convolution_names(subject.architecture))
    for node in nodes:
        scale, zero_point = graph.constants[node.input[1]], graph.constants[node.input[2]]
        assert (scale.dtype, zero_point.dtype) == (np.float16, np.int8)
        assert not zero_point.any()
        assert (scale >= np.finfo(np.float16).smallest_normal).all()
    assert all(graph.constants[node.input[1]].ndim == 0 for node in graph.all("QuantizeLinear"))
    biases = [graph.constants[node.input[2]] for node in graph.all("Conv")]
    assert {bias.dtype for bias in biases} == {np.dtype(np.float16)}


@dataclass(frozen=True)
class WeightForm:
    target: str
    channels: bool  # one scale each
    layers: tuple[str, ...]


@pytest.mark.parametrize(
    "case",
    [
        WeightForm("onnxruntime", True, ("Conv", "Gemm")),
        WeightForm("tensorrt", True, ("Conv",)),
        WeightForm("tensorrt-rtx", False, ("Conv",)),
    ],
    ids=lambda case: case.target,
)
def test_weights_are_stored_as_integers(subject, case):
    graph, originals = Graph(subject.lowered[case.target]), Graph(subject.data).constants
    layers = graph.all(*case.layers)
    for layer in layers:
        integers, scales, zero_points, axis = graph.stored(layer.input[1])
        weights = originals[f"{layer.name}.weight"]
        assert (integers.dtype, integers.shape) == (np.int8, weights.shape)
        assert np.abs(integers.astype(int)).max() == 127
        assert scales.shape == zero_points.shape == ((len(weights),) if case.channels else ())
        assert axis == (0 if case.channels else 1)
        steps = np.asarray(scales, np.float64).reshape(-1, *[1] * (weights.ndim - 1))
        assert (np.abs(integers * steps - weights) <= 0.51 * steps).all(), layer.name
    report = subject.reports[case.target]
    assert report.quantized == tuple(layer.name for layer in layers)
    assert len(layers) == len(convolution_names(subject.architecture)) + ("Gemm" in case.layers)
    assert list(report.left_in_float) == ([] if "Gemm" in case.layers else ["fc"])


def test_rtx_form_leaves_sums_alone(subject):
    float_graph, graph = Graph(subject.data), Graph(subject.lowered["tensorrt-rtx"])
    operands = [name for add in graph.all("Add") for name in add.input]
    assert len(operands) == 2 * len(blocks(subject.architecture))
    assert not any(graph.is_dequantized(name) for name in operands)
    assert graph.quantized_activations() == {node.input[0] for node in float_graph.all("Conv")}
    assert subject.reports["tensorrt-rtx"].shortcuts == ()


def test_onnxruntime_form_quantizes_every_tensor_that_exists_after_fusion(subject):
    float_graph, graph = Graph(subject.data), Graph(subject.lowered["onnxruntime"])
    before_relu = {node.input[0] for node in float_graph.all("Relu")}
    made = {
        node.output[0] for node in float_graph.all("Conv", "Relu", "Add", "MaxPool", "GlobalAveragePool", "Flatten")
    }
    assert graph.quantized_activations() == made - before_relu | {"images.normalized"}
    assert all(graph.is_dequantized(name) for add in graph.all("Add") for name in add.input)
    assert {graph.constants[node.input[2]].dtype for node in graph.all("QuantizeLinear")} == {np.dtype(np.uint8)}
    assert {graph.constants[node.input[1]].dtype for node in graph.all("QuantizeLinear")} == {np.dtype(np.float32)}
    for picked, from_ in (("maxpool", "conv1.relu"), ("flatten", "avgpool")):  # on the same grid, so they commute
        for part in ("scale", "zero_point"):
            assert graph.constants[f"{picked}.{part}"] == graph.constants[f"{from_}.{part}"]
    for name in made - before_relu:
        if name.endswith("relu"):
            assert graph.constants[f"{name}.zero_point"] == 0


def test_onnxruntime_form_has_biases_on_the_accumulators_grid(subject):
    graph, originals = Graph(subject.lowered["onnxruntime"]), Graph(subject.data).constants
    for layer in graph.all("Conv", "Gemm"):
        input_scale = graph.constants[graph.makers[layer.input[0]].input[1]]
        weight_scales = graph.stored(layer.input[1])[1]
        integers, scales, zero_points, axis = graph.stored(layer.input[2])
        assert (integers.dtype, zero_points.dtype, axis) == (np.int32, np.int32, 0)
        assert not zero_points.any()
        assert np.array_equal(scales, (weight_scales.astype(np.float64) * input_scale).astype(np.float32))
        bias = originals[f"{layer.name}.bias"]
        assert (np.abs(integers * scales.astype(np.float64) - bias) <= 0.51 * scales).all(), layer.name


def test_seven_bits_stay_within_63(resnet18):
    graph = Graph(lower(resnet18.model, resnet18.calibration, SEVEN_BITS)[0])
    limits = [np.abs(graph.stored(layer.input[1])[0].astype(int)).max() for layer in graph.all("Conv", "Gemm")]
    assert set(limits) == {63}


def test_scales_are_the_calibrations(resnet18):
    graph = Graph(resnet18.lowered["tensorrt"])
    for name in resnet18.reports["tensorrt"].activations:
        chosen = resnet18.calibration.range_of("conv1.relu" if name == "maxpool" else name)
        assert graph.constants[f"{name}.scale"] == np.float16(chosen.magnitude / 127), name


@pytest.mark.parametrize("target", FORMS)
def test_lowering_leaves_its_input_alone_and_repeats(resnet18, target):
    before = resnet18.calibration.to_json()
    quantized, _ = insert_qdq(resnet18.model, resnet18.calibration, FORMS[target])
    kept = bytes_from_onnx(quantized)
    lower_to_float16(quantized)
    assert bytes_from_onnx(quantized) == kept
    assert bytes_from_onnx(resnet18.model) == resnet18.data
    assert resnet18.calibration.to_json() == before
    assert lower(resnet18.model, resnet18.calibration, FORMS[target])[0] == resnet18.lowered[target]


# --- layers that are kept in floating point


def test_what_an_integer_layer_reads_is_quantized_for_all_that_read_it(resnet18):
    """Written twice, as integers and in floating point, it would cost more than the layer kept apart saves."""
    kept, downsample = "layer2.0.conv1", "layer2.0.downsample.0"
    model, report = insert_qdq(resnet18.model, resnet18.calibration, FORMS["onnxruntime"], [kept])
    graph = Graph(bytes_from_onnx(model))
    layers = {node.name: node for node in graph.all("Conv")}
    for name in (kept, downsample):
        assert graph.origin(layers[name].input[0]) == "layer1.1.relu"
        assert graph.is_dequantized(layers[name].input[0])
    assert [graph.is_dequantized(name) for name in layers[kept].input[1:]] == [False, False]
    assert [graph.is_dequantized(name) for name in layers[downsample].input[1:]] == [True, True]
    assert graph.quantized_activations() == Graph(resnet18.lowered["onnxruntime"]).quantized_activations()
    assert set(report.left_in_float) == {kept}
    # With all of its readers in floating point it is not quantized at all.
    apart, _ = insert_qdq(resnet18.model, resnet18.calibration, FORMS["onnxruntime"], [kept, downsample])
    assert "layer1.1.relu" not in Graph(bytes_from_onnx(apart)).quantized_activations()


def test_the_shortcut_of_a_sum_that_is_kept_is_not_quantized(resnet18):
    kept = "layer1.0.add"
    model, report = insert_qdq(resnet18.model, resnet18.calibration, FORMS["tensorrt"], [kept])
    graph = Graph(bytes_from_onnx(model))
    quantized = {add.name: [graph.is_dequantized(name) for name in add.input] for add in graph.all("Add")}
    assert quantized.pop(kept) == [False, False]
    assert len(quantized) == 7
    assert all(sum(operands) == 1 for operands in quantized.values())
    assert set(report.shortcuts) == set(quantized)


# --- ONNX Runtime fuses its form completely


def test_onnxruntime_runs_everything_on_integers(subject, tmp_path):
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(subject.lowered["onnxruntime"], options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    assert kinds["QLinearConv"] == len(convolution_names(subject.architecture))
    assert kinds["QLinearAdd"] == len(blocks(subject.architecture))
    assert (kinds["QLinearGlobalAveragePool"], kinds["QGemm"]) == (1, 1)
    assert kinds["MaxPool"] + kinds["NhwcMaxPool"] == 1
    # One quantization at the door; the logits leave the classifier in FP32.
    assert (kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (1, 0)
    assert not {"Conv", "FusedConv", "Relu", "Add", "Gemm", "MatMul", "GlobalAveragePool"} & kinds.keys()


# --- what it costs


@pytest.mark.parametrize("target", FORMS)
def test_logits_of_every_form_as_written(subject, target):
    assert floor_db(target) < subject.sqnr_db(subject.lowered[target]) < 40  # above: nothing was quantized


@pytest.mark.parametrize("target", FORMS)
@pytest.mark.parametrize("tensor", ["images.normalized", "maxpool", "layer3.0.conv1.relu", "layer4.0.conv1.weight"])
def test_a_scale_too_small_shows(subject, target, tensor):
    assert subject.sqnr_db(with_scale(subject.lowered[target], tensor, 1 / 8)) < FLOOR_DB - 1


@pytest.mark.parametrize("shortcut", ["layer1.0.relu", "layer1.1.relu"])
def test_a_shortcut_on_too_coarse_a_grid_shows(subject, shortcut):
    assert subject.sqnr_db(with_scale(subject.lowered["tensorrt"], shortcut, 8)) < FLOOR_DB - 1


def test_the_fused_session_of_the_onnxruntime_form(subject):
    data, _ = lower(subject.model, subject.calibration, SEVEN_BITS)
    written, fused = subject.sqnr_db(data), subject.sqnr_db(data, as_written=False)
    assert fused > FLOOR_DB  # the missing bit costs 3 dB: measured 21 and 20
    assert abs(fused - written) < 2  # other roundings, not other grids
    assert subject.sqnr_db(with_scale(data, "layer1.0.relu", 1 / 8), as_written=False) < FLOOR_DB - 6
