"""What the lint finds in engines whose faults are known; descriptions are made by hand, no compiler wrote them."""

import copy
import json
from dataclasses import replace

import pytest
from compiled_factory import (
    FLOAT,
    HALF,
    INT8,
    PROGRAM,
    inspected_conv,
    inspected_engine,
    inspected_layer,
    int8_layers,
    plan_bytes,
)

from resnet_deploy.compiled.inspector import read_inspector
from resnet_deploy.compiled.layers import CompiledGraph
from resnet_deploy.compiled.lint import Expected, layer_name, lint
from resnet_deploy.compiled.plan import read_plan

INT8_TENSORRT = Expected("tensorrt", "int8")
VERSIONS = pytest.mark.parametrize("version", [10, 11])


def read(layers, version):
    return read_inspector(json.dumps(inspected_engine(version, layers)).encode())


def rules(graph, expected):
    return [(finding.rule, finding.layer.partition(" + ")[0]) for finding in lint(graph, expected)]


# --- TensorRT, both generations of its inspector


@VERSIONS
def test_the_documented_fusions_are_clean(version):
    graph = read(int8_layers(version), version)
    assert lint(graph, INT8_TENSORRT) == ()
    assert len(graph.weighted_types()) == 3  # the last convolution writes FP16, and so does the classifier


@VERSIONS
def test_a_quantization_by_itself_is_found(version):
    layers = int8_layers(version)
    layers[2] = inspected_conv(version, "layer1.conv1", [("q1", INT8)], ("x2", HALF))
    layers.insert(3, inspected_layer(version, "apart", "Reformat", [("x2", HALF)], ("q2", INT8), Origin="QDQ"))
    (finding,) = lint(read(layers, version), INT8_TENSORRT)
    assert (finding.rule, finding.layer) == ("Q/DQ", "apart")
    assert finding.problem == "it quantizes, by itself, 0.00614 MB of memory traffic"  # 2048 halves and 2048 bytes


@VERSIONS
def test_a_dequantization_by_itself_is_found(version):
    layers = int8_layers(version)
    layers[3] = inspected_conv(version, "layer1.conv2", [("q2", INT8), ("x1", HALF)], ("x3", HALF))
    layers.insert(2, inspected_layer(version, "apart", "Reformat", [("q1", INT8)], ("x1", HALF), Origin="QDQ"))
    assert rules(read(layers, version), INT8_TENSORRT) == [("Q/DQ", "apart")]


@VERSIONS
def test_a_conversion_between_integer_layers_is_found(version):
    layers = int8_layers(version)
    layers[2] = inspected_conv(version, "layer1.conv1", [("q1", INT8)], ("x2", HALF))
    layers.insert(3, inspected_layer(version, "copy2", "Reformat", [("x2", HALF)], ("q2", INT8), Origin="REFORMAT"))
    assert rules(read(layers, version), INT8_TENSORRT) == [("reformat", "copy2")]


@VERSIONS
def test_a_change_of_layout_alone_is_no_conversion(version):
    layers = int8_layers(version)
    layers[2] = inspected_conv(version, "layer1.conv1", [("q1", INT8)], ("p2", INT8))
    layers.insert(3, inspected_layer(version, "copy2", "Reformat", [("p2", INT8)], ("q2", INT8), Origin="REFORMAT"))
    assert rules(read(layers, version), INT8_TENSORRT) == []


@VERSIONS
def test_a_sum_by_itself_is_found(version):
    layers = int8_layers(version)
    layers[3:4] = [
        inspected_conv(version, "layer1.conv2", [("q2", INT8)], ("x2", HALF), relu=False),
        inspected_layer(version, "layer1.add", "ElementWise", [("x2", HALF), ("q1", INT8)], ("x3", HALF)),
    ]
    assert rules(read(layers, version), INT8_TENSORRT) == [("residual sums", "layer1.add")]


@VERSIONS
def test_a_stem_in_floating_point_is_found_unless_it_is_meant(version):
    layers = int8_layers(version)
    layers[0] = inspected_layer(version, "cast", "Reformat", [("images", FLOAT)], ("x0", HALF), Origin="CAST")
    layers[1] = inspected_conv(version, "conv1", [("x0", HALF)], ("q1", INT8), weights="Half")
    graph = read(layers, version)
    assert rules(graph, INT8_TENSORRT) == [("operands", "conv1")]
    assert rules(graph, replace(INT8_TENSORRT, in_float=frozenset({"conv1"}))) == []
    assert rules(graph, replace(INT8_TENSORRT, in_float=frozenset({"layer1.conv1"})))  # another


@VERSIONS
def test_a_classifier_on_integers_is_found(version):
    layers = int8_layers(version)
    layers[6] = inspected_conv(version, "fc", [("x5", INT8)], ("x6", HALF), relu=False)
    assert rules(read(layers, version), INT8_TENSORRT) == [("operands", "fc")]


@VERSIONS
def test_a_result_in_fp32_is_found(version):
    layers = int8_layers(version)
    layers[3] = inspected_conv(version, "layer1.conv2", [("q2", INT8), ("q1", INT8)], ("x3", FLOAT))
    layers[4] = inspected_layer(version, "avgpool", "CaskPooling", [("x3", FLOAT)], ("x4", HALF))
    assert rules(read(layers, version), INT8_TENSORRT) == [("results", "layer1.conv2")]


@VERSIONS
def test_pooling_in_fp32_is_found(version):
    layers = int8_layers(version)
    layers[4] = inspected_layer(version, "avgpool", "CaskPooling", [("x3", HALF)], ("x4", FLOAT))
    layers[5] = inspected_layer(version, "copy", "Reformat", [("x4", FLOAT)], ("x5", HALF))
    assert rules(read(layers, version), INT8_TENSORRT) == [("FP32", "avgpool")]


@VERSIONS
def test_arithmetic_by_itself_is_found(version):
    layers = int8_layers(version)
    layers[3] = inspected_conv(version, "layer1.conv2", [("q2", INT8), ("q1", INT8)], ("x2", HALF), relu=False)
    layers.insert(4, inspected_layer(version, "layer1.relu", "PointWiseV2", [("x2", HALF)], ("x3", HALF)))
    assert rules(read(layers, version), INT8_TENSORRT) == [("pointwise", "layer1.relu")]


def fp16(layers):
    """The same network without quantization."""
    text = json.dumps(layers[1:]).replace(INT8, HALF).replace('"Int8"', '"Half"').replace('"q0"', '"images"')
    return json.loads(text)


def test_an_fp16_engine_is_clean_and_no_other_precision():
    graph = read(fp16(int8_layers(10)), 10)
    assert lint(graph, Expected("tensorrt", "fp16")) == ()
    assert {rule for rule, _ in rules(graph, INT8_TENSORRT)} == {"operands"}
    assert {rule for rule, _ in rules(graph, Expected("tensorrt", "fp32"))} == {"operands", "results"}


def test_fp32_where_fp16_was_asked_for_is_found():
    layers = json.loads(json.dumps(fp16(int8_layers(10))).replace(HALF, FLOAT).replace('"Half"', '"Float"'))
    graph = read(layers, 10)
    assert lint(graph, Expected("tensorrt", "fp32")) == ()
    assert {rule for rule, _ in rules(graph, Expected("tensorrt", "fp16"))} == {"operands", "results", "FP32"}


def test_the_cost_of_a_batch_of_any_size_is_that_of_an_image():
    layers = json.loads(json.dumps(fp16(int8_layers(10))).replace("[8, 16", "[-1, 16"))
    layers.insert(3, inspected_layer(10, "relu", "PointWise", [("x3", HALF, (-1, 256))], ("y3", HALF, (-1, 256))))
    layers[4] = inspected_layer(10, "avgpool", "CaskPooling", [("y3", HALF)], ("x4", HALF))
    (finding,) = lint(read(layers, 10), Expected("tensorrt", "fp16"))
    assert finding.problem == "a kernel of its own for arithmetic, 0.00102 MB of memory traffic per image"


def test_quantization_in_an_fp16_engine_is_found():
    layers = fp16(int8_layers(10))
    layers.insert(3, inspected_layer(10, "odd", "Reformat", [("x3", HALF)], ("q9", INT8), Origin="QDQ"))
    layers.insert(4, inspected_layer(10, "back", "Reformat", [("q9", INT8)], ("y3", HALF), Origin="QDQ"))
    layers[5] = inspected_layer(10, "avgpool", "CaskPooling", [("y3", HALF)], ("x4", HALF))
    assert rules(read(layers, 10), Expected("tensorrt", "fp16")) == [("Q/DQ", "odd"), ("Q/DQ", "back")]


def test_an_engine_without_a_convolution_is_a_finding():
    assert [finding.rule for finding in lint(CompiledGraph("nothing", ()), INT8_TENSORRT)] == ["weighted layers"]


# --- TensorRT-RTX


def test_a_plan_in_fp16_is_clean():
    graph = read_plan(plan_bytes(PROGRAM))
    assert lint(graph, Expected("tensorrt-rtx", "fp16")) == ()
    assert {rule for rule, _ in rules(graph, Expected("tensorrt-rtx", "fp32"))} == {"operands", "results"}


RTX = Expected("tensorrt-rtx", "int8")


def rtx_layers():
    """The same network as TensorRT-RTX compiles it: each quantization a kernel. Described as an inspector would."""
    layers = int8_layers(10)
    layers[1:4] = [
        inspected_conv(10, "conv1", [("q0", INT8)], ("x1", HALF)),
        quantize("x1", "q1"),
        inspected_conv(10, "layer1.conv1", [("q1", INT8)], ("x2", HALF)),
        quantize("x2", "q2"),
        inspected_conv(10, "layer1.conv2", [("q2", INT8), ("x1", HALF)], ("x3", HALF)),
    ]
    return layers


def quantize(reads, writes, *more):
    layer = inspected_layer(10, "__myl_MulMinMaxRounCast_0x1", "kgen", [(reads, HALF)], (writes, INT8))
    layer["Outputs"] += copy.deepcopy(list(more))
    return layer | {"Metadata": f"[ONNX Layer: {reads}.quantize]"}


def test_quantization_apart_is_expected_of_one_flavour_alone():
    graph = read(rtx_layers(), 10)
    assert lint(graph, RTX) == ()
    assert rules(graph, INT8_TENSORRT) == [("Q/DQ", "x1.quantize"), ("Q/DQ", "x2.quantize")]


def test_rounding_and_back_is_found():
    layers = rtx_layers()
    layers[2] = quantize("x1", "q1", inspected_layer(10, "", "", [], ("y1", HALF))["Outputs"][0])
    layers[5] = inspected_conv(10, "layer1.conv2", [("q2", INT8), ("y1", HALF)], ("x3", HALF))
    assert rules(read(layers, 10), RTX) == [("Q/DQ", "x1.quantize")]


def test_quantization_before_the_relu_is_found():
    layers = rtx_layers()
    layers[1] = inspected_conv(10, "conv1", [("q0", INT8)], ("x1", HALF), relu=False)
    (finding,) = lint(read(layers, 10), RTX)
    assert (finding.rule, finding.layer) == ("Q/DQ", "x1.quantize")
    assert "what conv1 + conv1.relu gives before its ReLU" in finding.problem


def test_quantization_before_the_relu_is_found_through_a_change_of_layout():
    layers = rtx_layers()
    layers[1] = inspected_conv(10, "conv1", [("q0", INT8)], ("p1", HALF), relu=False)
    layers.insert(2, inspected_layer(10, "copy1", "Reformat", [("p1", HALF)], ("x1", HALF), Origin="REFORMAT"))
    assert rules(read(layers, 10), RTX) == [("Q/DQ", "x1.quantize")]


def test_one_name_for_several_tensors_in_turn():
    """Both convolutions write what is called x1; each quantization reads the one before it."""
    layers = json.loads(json.dumps(rtx_layers()).replace('"x2"', '"x1"'))
    assert rules(read(layers, 10), RTX) == []
    layers[1] = inspected_conv(10, "conv1", [("q0", INT8)], ("x1", HALF), relu=False)
    (finding,) = lint(read(layers, 10), RTX)
    assert "what conv1 + conv1.relu gives before its ReLU" in finding.problem


def test_changes_of_layout_of_a_tensor_into_itself_end():
    layers = rtx_layers()
    layers.insert(2, inspected_layer(10, "copy1", "Reformat", [("x1", HALF)], ("x1", HALF), Origin="REFORMAT"))
    assert rules(read(layers, 10), RTX) == []


def test_what_a_kernel_is_called():
    graph = read(int8_layers(10), 10)
    layer = graph.kernels[1]
    assert layer_name(layer) == "conv1 + conv1.relu"
    assert layer_name(replace(layer, nodes=("a", "x.dequantize", "b", "c", "d", "e"))) == "a + b + c and 2 more"
    assert layer_name(replace(layer, nodes=())) == "conv1"
