"""What TensorRT-RTX's compiler makes of our graphs, read from its plans: sound forms of Q/DQ, and forms it is bad at.

The plans are real; nothing is run, and no figure here is a time.
"""

from collections.abc import Callable, Collection
from dataclasses import replace

import onnx
import pytest
import torch
from onnx import helper
from synthetic_calibration import calibration_on_noise

try:
    import tensorrt_rtx  # noqa: F401 - to see whether it loads
except (ImportError, OSError) as reason:  # OSError: installed, but its libraries do not load
    pytest.skip(f"TensorRT-RTX cannot be imported: {reason}", allow_module_level=True)

from resnet_deploy import trt_api
from resnet_deploy.builders import find_builder
from resnet_deploy.compiled.layers import CompiledGraph
from resnet_deploy.compiled.lint import Expected, lint
from resnet_deploy.compiled.plan import read_plan
from resnet_deploy.export import export_onnx
from resnet_deploy.models import create_model
from resnet_deploy.onnx_files import bytes_from_onnx
from resnet_deploy.precision import lower_to_float16
from resnet_deploy.protocols import Silent
from resnet_deploy.quantize.qdq import FORMS, QdqForm, insert_qdq
from resnet_deploy.specs import BatchRange, BuildSpec, ModelCard, Precision, Preprocess

BACKEND = "tensorrt-rtx"
OURS = FORMS[BACKEND]
FORMS_OF_INT8 = {
    "int8": OURS,
    "shortcut": replace(OURS, shortcut=True),
    "per channel": replace(OURS, per_channel=True),
    "of tensorrt": FORMS["tensorrt"],
}
CONVOLUTIONS, SUMS, RELUS = 20, 8, 17  # of ResNet-18
IN_FLOAT = frozenset({"conv1", "layer1.1.conv2", "layer3.0.downsample.0", "layer4.1.conv2"})
Read = Callable[[str], CompiledGraph]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Build a ResNet-18 in a precision, or in a form of INT8, and read its plan."""
    torch.set_num_threads(2)
    preprocess = Preprocess(image_size=64, resize=64)
    card = ModelCard(architecture="resnet18", num_classes=10, weights="none", weights_sha256="", preprocess=preprocess)
    network = create_model("resnet18", 10).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias)  # a bias of zero is left out of the engine
    model = export_onnx(network, card)
    calibration = calibration_on_noise(model, preprocess)
    kept: dict[str, CompiledGraph] = {}

    def quantized(form: QdqForm, in_float: Collection[str] = ()) -> bytes:
        return bytes_from_onnx(lower_to_float16(insert_qdq(model, calibration, form, in_float)[0])[0])

    def graph_of(case: str) -> bytes:
        if case == "before relu":
            return with_qdq_before_relus(quantized(OURS))
        if case == "some in float":
            return quantized(OURS, IN_FLOAT)
        if case in FORMS_OF_INT8:
            return quantized(FORMS_OF_INT8[case])
        return bytes_from_onnx(model if case == "fp32" else lower_to_float16(model)[0])

    def build(case: str) -> CompiledGraph:
        if case not in kept:
            spec = BuildSpec(backend=BACKEND, precision="fp16", batch=BatchRange(1, 4, 8))
            folder = tmp_path_factory.mktemp("plan")
            built = find_builder(BACKEND)(graph_of(case), spec, folder, Silent())
            kept[case] = read_plan((folder / built.file).read_bytes())
        return kept[case]

    return build


def with_qdq_before_relus(graph: bytes) -> bytes:
    """Put a Q/DQ pair between each convolution and the ReLU that follows it, with the scale behind that ReLU."""
    model = onnx.load_from_string(graph)
    nodes = {node.output[0]: node for node in model.graph.node}
    scales = {node.input[0]: node.input[1:] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    changed: list[onnx.NodeProto] = []
    for node in model.graph.node:
        written = node.input[0] if node.input else ""
        if node.op_type == "Relu" and node.output[0] in scales and nodes[written].op_type == "Conv":
            parameters = scales[node.output[0]]
            changed.append(helper.make_node("QuantizeLinear", [written, *parameters], [f"{written}.early"]))
            changed.append(helper.make_node("DequantizeLinear", [f"{written}.early", *parameters], [f"{written}.back"]))
            node.input[0] = f"{written}.back"
        changed.append(node)
    assert len(changed) > len(model.graph.node) + 10
    del model.graph.node[:]
    model.graph.node.extend(changed)
    return model.SerializeToString()


def findings(
    read: Read, case: str, precision: Precision = "int8", in_float: frozenset[str] = frozenset()
) -> dict[str, int]:
    found: dict[str, int] = {}
    for finding in lint(read(case), Expected(BACKEND, precision, in_float)):
        found[finding.rule] = found.get(finding.rule, 0) + 1
    return found


# --- sound plans


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("fp16", "float16")])
def test_convolutions_in_floating_point_fuse_all(read, precision, dtype):
    graph = read(precision)
    assert graph.weighted_types() == (
        {f"{dtype} x {dtype} -> {dtype}": CONVOLUTIONS + 1}
        if precision == "fp32"
        else {"float16 x float16 -> float16": CONVOLUTIONS, "float16 x float16 -> float32": 1}
    )
    assert graph.fused_counts() == {"bias": CONVOLUTIONS + 1, "relu": RELUS, "add": SUMS}
    # Normalisation, two poolings, the classifier; and at some batch sizes a change of layout before pooling.
    assert CONVOLUTIONS + 4 <= len(graph.kernels) <= CONVOLUTIONS + 5
    assert graph.targets == trt_api.RTX_DEFAULT_TARGETS
    assert findings(read, precision, precision) == {}


def test_int8_fuses_all_but_quantization(read):
    graph = read("int8")
    assert graph.weighted_types() == {"int8 x int8 -> float16": CONVOLUTIONS, "float16 x float16 -> float32": 1}
    assert graph.fused_counts() == {"bias": CONVOLUTIONS + 1, "relu": RELUS, "add": SUMS}
    assert findings(read, "int8") == {}


def test_layers_left_in_floating_point_are_meant_to_be(read):
    assert findings(read, "some in float", in_float=IN_FLOAT) == {}
    assert findings(read, "some in float") == {"operands": len(IN_FLOAT)}
    assert findings(read, "some in float", in_float=IN_FLOAT - {"conv1"}) == {"operands": 1}


def test_constants_are_the_weights(read):
    parameters = sum(parameter.numel() for parameter in create_model("resnet18", 10).parameters())
    sizes = {case: read(case).constants_bytes for case in ("fp32", "fp16", "int8")}
    assert sizes["fp32"] == pytest.approx(4 * parameters, rel=0.01)
    assert sizes["fp16"] == pytest.approx(2 * parameters, rel=0.01)
    assert sizes["int8"] == pytest.approx(parameters, rel=0.02)


def test_half_the_bytes_are_half_the_traffic(read):
    single, half = (read(case).activation_bytes(8) for case in ("fp32", "fp16"))
    # All but the images, one byte a value, and the logits, four.
    assert single / half == pytest.approx(2, rel=0.05)
    assert read("fp16").activation_bytes(16) == 2 * half


# --- plans that the lint is for


def test_scales_per_channel_cost_every_fusion(read):
    graph = read("of tensorrt")
    assert graph.weighted_types() == {"int8 x int8 -> float32": CONVOLUTIONS, "float16 x float16 -> float32": 1}
    assert graph.fused_counts() == {"bias": 1}
    found = findings(read, "of tensorrt")
    assert (found["results"], found["residual sums"]) == (CONVOLUTIONS, SUMS)
    assert found.keys() == {"results", "residual sums", "pointwise"}
    assert graph.activation_bytes(8) > 1.3 * read("int8").activation_bytes(8)


def test_scales_per_channel_are_to_blame_without_a_quantized_shortcut_too(read):
    found = findings(read, "per channel")
    assert (found["results"], found["residual sums"]) == (CONVOLUTIONS, SUMS)


def test_a_quantized_shortcut_costs_kernels(read):
    assert len(read("shortcut").kernels) > len(read("int8").kernels)
    found = findings(read, "shortcut")
    assert found["Q/DQ"] >= 4
    assert found.keys() <= {"Q/DQ", "pointwise"}


def test_quantization_before_the_relu_is_found(read):
    # The convolution in whose result a block's first ReLU was; that after the stem is quantized behind its pooling.
    assert findings(read, "before relu") == {"pointwise": SUMS}
    assert read("before relu").fused_counts()["relu"] == RELUS - SUMS


def test_another_precision_is_found(read):
    assert findings(read, "fp16", "int8") == {"operands": CONVOLUTIONS}
    assert findings(read, "fp32", "fp16")["operands"] == CONVOLUTIONS + 1
    assert findings(read, "int8", "fp16").keys() == {"operands", "Q/DQ"}
