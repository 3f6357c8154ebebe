"""INT8, from observed activations to the graph of each target: what is calibrated, where Q/DQ stands, what it costs."""

from collections import Counter
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from resnet_deploy.errors import DataError, ModelError
from resnet_deploy.export import export_onnx
from resnet_deploy.models import DESIGNS, Block, Bottleneck, ResNet, create_model
from resnet_deploy.onnx_files import attach_card, bytes_from_onnx
from resnet_deploy.ort_session import import_onnxruntime, open_session
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.precision import lower_to_float16
from resnet_deploy.quantize.calibrate import Calibration, CalibrationSource, calibration_from, observe
from resnet_deploy.quantize.observers import Histogram
from resnet_deploy.quantize.qdq import FORMS, QdqForm, QdqReport, insert_qdq
from resnet_deploy.quantize.ranges import choose_range
from resnet_deploy.specs import CALIBRATION_METHODS, CalibrationSpec, ModelCard, Preprocess
from resnet_deploy.verify import compare_logits

UINT8 = Preprocess(image_size=32, resize=32)
FLOAT32 = Preprocess(image_size=32, resize=32, dtype="float32", layout="NCHW")
ORT, TENSORRT, RTX = FORMS["onnxruntime"], FORMS["tensorrt"], FORMS["tensorrt-rtx"]
# Eight bits leave some 40 dB of each tensor; random blocks amplify what differs, and 20 to 53 layers leave 21 to 24 dB
# of a ResNet-18's logits and 19 to 23 of a ResNet-50's, measured over the three forms. A tensor on a grid eight times
# too narrow or, where it is a shortcut, too coarse (below) leaves 14 at most.
FLOOR_DB = 16
SEVEN_BITS = replace(ORT, weight_bits=7)  # what any CPU's fused kernels compute without saturating


@pytest.fixture(autouse=True, scope="module")
def two_threads():
    torch.set_num_threads(2)


# --- the networks


def settled(network: ResNet, preprocess: Preprocess) -> ResNet:
    """Bring BatchNorms to where training leaves them: statistics of real activations, and modest branches.

    A freshly made network answers nearly the same to every image, which any quantization would get right.
    """
    generator = torch.Generator().manual_seed(1)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
            nn.init.uniform_(part.weight, 0.5, 1.0, generator=generator)
            nn.init.uniform_(part.bias, 0.0, 0.2, generator=generator)
    for block in network.modules():
        if isinstance(block, Block):
            last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            nn.init.uniform_(last.weight, 0.125, 0.25, generator=generator)
    images = torch.from_numpy(synthetic_images(preprocess, 64, seed=5))
    if preprocess.dtype == "uint8":
        images = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(preprocess.mean).view(3, 1, 1)) / torch.tensor(
            preprocess.std
        ).view(3, 1, 1)
    with torch.no_grad():
        network.train()(images)
    return network.eval()


def logits(data: bytes, images: np.ndarray, *, as_written: bool = True) -> np.ndarray:
    (found,) = open_session(data, as_written=as_written).run(["logits"], {"images": images})
    return found


def source(images: int, weights_sha256: str) -> CalibrationSource:
    return CalibrationSource(
        dataset="generated",
        dataset_sha256="",
        images=images,
        preprocess_sha256="",
        weights_sha256=weights_sha256,
        onnx_sha256="",
    )


def calibrate(model: ir.Model, batches: list[np.ndarray], weights_sha256: str = "") -> Calibration:
    histograms, count = observe(model, batches)
    return calibration_from(histograms, CalibrationSpec(), source(count, weights_sha256))


def lower(model: ir.Model, calibration: Calibration, form: QdqForm) -> tuple[bytes, QdqReport]:
    quantized, report = insert_qdq(model, calibration, form)
    if form.scale_dtype == "float16":
        quantized, _ = lower_to_float16(quantized)
    return bytes_from_onnx(quantized), report


@dataclass(frozen=True)
class Subject:
    architecture: str
    network: ResNet
    model: ir.Model
    data: bytes
    calibration: Calibration
    images: np.ndarray
    expected: np.ndarray
    lowered: dict[str, bytes]
    reports: dict[str, QdqReport]

    def sqnr_db(self, data: bytes, *, as_written: bool = True) -> float:
        return compare_logits(self.expected, logits(data, self.images, as_written=as_written)).sqnr_db


def make(architecture: str, preprocess: Preprocess = UINT8) -> Subject:
    network = settled(create_model(architecture, 10), preprocess)
    card = ModelCard(
        architecture=architecture, num_classes=10, weights="none", weights_sha256="", preprocess=preprocess
    )
    model = export_onnx(network, card)
    data, images = bytes_from_onnx(model), synthetic_images(preprocess, 8, seed=9)
    calibration = calibrate(model, [synthetic_images(preprocess, 16)])
    lowered = {target: lower(model, calibration, form) for target, form in FORMS.items()}
    return Subject(
        architecture,
        network,
        model,
        data,
        calibration,
        images,
        logits(data, images),
        {target: graph for target, (graph, _) in lowered.items()},
        {target: report for target, (_, report) in lowered.items()},
    )


@pytest.fixture(scope="module")
def resnet18() -> Subject:
    return make("resnet18")


@pytest.fixture(scope="module", params=["resnet18", "resnet50"])
def subject(request, resnet18) -> Subject:
    return resnet18 if request.param == "resnet18" else make(request.param)


class Graph:
    """A serialized graph, for looking things up."""

    def __init__(self, data: bytes) -> None:
        self.proto = onnx.load_from_string(data).graph
        self.makers = {output: node for node in self.proto.node for output in node.output}
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.proto.initializer}

    def all(self, *kinds: str) -> list[onnx.NodeProto]:
        return [node for node in self.proto.node if node.op_type in kinds]

    def is_dequantized(self, tensor: str) -> bool:
        return tensor in self.makers and self.makers[tensor].op_type == "DequantizeLinear"

    def origin(self, tensor: str) -> str:
        """The tensor behind a Q/DQ pair, or the tensor itself."""
        if not self.is_dequantized(tensor):
            return tensor
        return self.makers[self.makers[tensor].input[0]].input[0].removesuffix(".half")

    def quantized_activations(self) -> set[str]:
        return {node.input[0].removesuffix(".half") for node in self.all("QuantizeLinear")}

    def stored(self, tensor: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Integers, scales, zero points and axis (1 where the node has none) of dequantized constants."""
        node = self.makers[tensor]
        axes = [attribute.i for attribute in node.attribute if attribute.name == "axis"]
        return (*(self.constants[name] for name in node.input), *(axes or [1]))


def blocks(architecture: str) -> list[tuple[str, str, str]]:
    """Name, last convolution and shortcut operand of every block, spelt out from the architecture."""
    design = DESIGNS[architecture]
    last, before = ("conv3" if design.block is Bottleneck else "conv2"), "maxpool"
    found = []
    for stage, depth in enumerate(design.depths, start=1):
        for index in range(depth):
            name = f"layer{stage}.{index}"
            projected = index == 0 and (stage > 1 or design.block is Bottleneck)
            found.append((name, f"{name}.{last}", f"{name}.downsample.0" if projected else before))
            before = f"{name}.relu"
    return found


def convolution_names(architecture: str) -> list[str]:
    return [name for name, module in create_model(architecture).named_modules() if isinstance(module, nn.Conv2d)]


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


def with_scale(data: bytes, tensor: str, factor: float) -> bytes:
    """The graph with the scale of one tensor multiplied."""
    model = onnx.load_from_string(data)
    (scale,) = [one for one in model.graph.initializer if one.name == f"{tensor}.scale"]
    array = numpy_helper.to_array(scale)
    scale.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), scale.name))
    return model.SerializeToString()


@pytest.mark.parametrize("target", FORMS)
def test_logits_of_every_form_as_written(subject, target):
    assert FLOOR_DB < subject.sqnr_db(subject.lowered[target]) < 40  # above: nothing was quantized


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


# --- one small network, in numpy

int8_ranges = {"images": (-127 / 64, 127 / 64), "conv1.relu": (0.0, 127 / 8)}
uint8_ranges = {"images": (-2.0, 127 / 64), "conv1.relu": (0.0, 255 / 16)}


def tiny(ranges: dict[str, tuple[float, float]], *, bits: int = 8) -> tuple[ir.Model, Calibration, np.ndarray]:
    """Two convolutions and a ReLU whose scales are powers of two: all arithmetic is exact, and halves do occur.

    Weights are multiples of half their scale; the largest of each channel makes the scale. Every second output channel
    is twice as large. Returns the model, its calibration and two images.
    """
    generator = np.random.default_rng(0)
    limit = 127 if bits == 8 else 63

    def weights(*shape: int) -> np.ndarray:
        halves = generator.integers(-2 * limit, 2 * limit + 1, shape)
        halves.reshape(len(halves), -1)[:, 0] = 2 * limit
        return (halves / 256 * np.array([1, 2] * (shape[0] // 2)).reshape(-1, 1, 1, 1)).astype(np.float32)

    constants = {
        "conv1.weight": weights(4, 3, 3, 3),
        "conv1.bias": (generator.integers(-30_000, 30_000, 4) / 2**14).astype(np.float32),
        "conv2.weight": weights(2, 4, 1, 1),
        "conv2.bias": (generator.integers(-30_000, 30_000, 2) / 2**12).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["images", "conv1.weight", "conv1.bias"], ["conv1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv1"], ["conv1.relu"], "conv1.relu"),
        helper.make_node("Conv", ["conv1.relu", "conv2.weight", "conv2.bias"], ["logits"], "conv2"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 6, 6])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2, 6, 6])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    attach_card(
        model,
        ModelCard(architecture="tiny", num_classes=2, weights="none", weights_sha256="tiny", preprocess=FLOAT32),
    )
    histograms = {name: Histogram() for name in ranges}
    for name, (low, high) in ranges.items():
        histograms[name].update(np.array([low, high], np.float32))
    calibration = calibration_from(histograms, CalibrationSpec(method="max"), source(1, "tiny"))
    images = (generator.integers(-320, 320, (2, 3, 6, 6)) / 128).astype(np.float32)  # some beyond the range
    return model, calibration, images


def tiny_logits(model: ir.Model, images: np.ndarray) -> np.ndarray:
    return logits(bytes_from_onnx(model), images)


def convolve(images: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Stride 1, zero-padded to the same size, in double precision."""
    side = weights.shape[2]
    padded = np.pad(images, [(0, 0), (0, 0), (side // 2,) * 2, (side // 2,) * 2])
    windows = sliding_window_view(padded, (side, side), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weights) + bias.reshape(-1, 1, 1)


def on_grid(values: np.ndarray, scale: np.ndarray | float, low: int, high: int, zero_point: int = 0) -> np.ndarray:
    return (np.clip(np.rint(values / scale) + zero_point, low, high) - zero_point) * scale


def by_hand(model: ir.Model, images: np.ndarray, form: QdqForm) -> np.ndarray:
    """The quantized network from its definition; the scales are spelt out, not computed."""
    unsigned = form.activation == "uint8"
    constants = {name: value.const_value.numpy().astype(np.float64) for name, value in model.graph.initializers.items()}
    limit = 127 if form.weight_bits == 8 else 63
    grids = {"conv1": (1 / 64, 128 if unsigned else 0), "conv2": (1 / 16 if unsigned else 1 / 8, 0)}
    x = images.astype(np.float64)
    for layer, (scale, zero_point) in grids.items():
        x = on_grid(x, scale, *((0, 255) if unsigned else (-128, 127)), zero_point)
        weights, bias = constants[f"{layer}.weight"], constants[f"{layer}.bias"]
        channels = np.resize([1 / 128, 2 / 128] if form.per_channel else 2 / 128, len(weights)).reshape(-1, 1, 1, 1)
        if form.everywhere:
            bias = on_grid(bias, scale * channels.ravel(), -(2**31), 2**31 - 1)
        x = convolve(x, on_grid(weights, channels, -limit, limit), bias)
        x = np.maximum(x, 0) if layer == "conv1" else x
    return x


@dataclass(frozen=True)
class Tiny:
    form: QdqForm
    ranges: dict[str, tuple[float, float]]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Tiny(ORT, uint8_ranges), id="uint8, per channel, INT32 bias"),
        pytest.param(Tiny(SEVEN_BITS, uint8_ranges), id="uint8, 7-bit weights"),
        pytest.param(Tiny(replace(TENSORRT, scale_dtype="float32"), int8_ranges), id="int8, per channel"),
        pytest.param(Tiny(replace(RTX, scale_dtype="float32"), int8_ranges), id="int8, per tensor"),
    ],
)
def test_the_simulation_is_the_arithmetic_of_the_definition(case):
    model, calibration, images = tiny(case.ranges, bits=case.form.weight_bits)
    data, _ = lower(model, calibration, case.form)
    found = logits(data, images)
    assert np.array_equal(found, by_hand(model, images, case.form))  # bit for bit: every number is exact
    # The twins: the next weight grid, unquantized weights, and images rounded down.
    other = replace(case.form, per_channel=not case.form.per_channel)
    assert not np.array_equal(found, by_hand(model, images, other))
    assert not np.array_equal(found, tiny_logits(model, images))
    assert not np.array_equal(found, by_hand(model, images - 1 / 128, case.form))


@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
def test_a_bias_beyond_the_accumulator_makes_the_scale_coarser(per_channel):
    """A channel whose weights all but vanished, as folding a dying BatchNorm leaves it, keeps its bias."""
    model, calibration, _ = tiny(uint8_ranges)
    constant = model.graph.initializers["conv1.weight"]
    weights = constant.const_value.numpy() * np.float32([1e-12, 1, 1, 1]).reshape(-1, 1, 1, 1)
    if not per_channel:
        weights *= np.float32(1e-12)
    constant.const_value = ir.tensor(weights, name="conv1.weight")
    graph = Graph(lower(model, calibration, replace(ORT, per_channel=per_channel))[0])
    layer = next(node for node in graph.all("Conv") if node.name == "conv1")
    integers, scales, _, _ = graph.stored(layer.input[1])
    steps = np.asarray(scales, np.float64).reshape(-1, 1, 1, 1)
    assert (np.abs(integers * steps - weights) <= 0.51 * steps).all()
    bias_integers, bias_scales, _, _ = graph.stored(layer.input[2])
    bias = Graph(bytes_from_onnx(model)).constants["conv1.bias"]
    assert np.allclose(bias_integers * bias_scales.astype(np.float64), bias, rtol=1e-6, atol=1e-12 + bias_scales.max())
    assert abs(int(bias_integers[0])) > 2**30 or not per_channel  # it was the bias that made the scale


# --- calibration


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return synthetic_images(UINT8, 12, seed=3)


def test_neither_batches_nor_order_change_a_calibration(resnet18, pictures):
    whole = calibrate(resnet18.model, [pictures]).to_json()
    split = [[pictures[:5], pictures[5:]], [pictures[i : i + 1] for i in range(12)], [pictures[::-1]]]
    assert [calibrate(resnet18.model, batches).to_json() == whole for batches in split] == [True] * 3
    assert calibrate(resnet18.model, [pictures[:11]]).to_json() != whole
    brighter = np.append(pictures[:11], np.maximum(pictures[11:], 1), axis=0)
    assert calibrate(resnet18.model, [brighter]).to_json() != whole


def test_two_halves_merge_into_the_whole(resnet18, pictures):
    left, first = observe(resnet18.model, [pictures[:4]])
    right, second = observe(resnet18.model, [pictures[4:]])
    for name, histogram in left.items():
        histogram.merge(right[name])
    merged = calibration_from(left, CalibrationSpec(), source(first + second, ""))
    assert merged.to_json() == calibrate(resnet18.model, [pictures]).to_json()


def test_what_is_observed_is_what_pytorch_computes(resnet18, pictures):
    calibration = calibrate(resnet18.model, [pictures])
    normalised = (pictures / 255 - np.array(UINT8.mean)) / np.array(UINT8.std)
    seen = {}
    with torch.no_grad():
        x = torch.from_numpy(normalised).float().permute(0, 3, 1, 2)
        seen["images.normalized"] = x
        x = seen["conv1.relu"] = resnet18.network.relu(resnet18.network.bn1(resnet18.network.conv1(x)))
        block = resnet18.network.layer1[0]
        x = resnet18.network.maxpool(x)
        seen["layer1.0.conv2"] = block.branch(x)
        seen["layer1.0.relu"] = block(x)
    for name, values in seen.items():
        found = calibration.tensors[name]
        assert found.observed == pytest.approx((float(values.min()), float(values.max())), rel=1e-4, abs=1e-6), name
        assert found.values == values.numel()
        assert found.ranges["max"] == (min(0, found.observed[0]), max(0, found.observed[1]))
    assert calibration.source.images == 12
    assert set(calibration.tensors) == Graph(resnet18.lowered["onnxruntime"]).quantized_activations() - {
        "maxpool",  # these two take the range of what they pick from
        "flatten",
    }


def test_a_calibration_is_json_with_every_method(resnet18):
    text = resnet18.calibration.to_json()
    assert msgspec.json.decode(text, type=Calibration) == resnet18.calibration
    assert text.count(b"\n") > len(resnet18.calibration.tensors)  # for people, and for diffs
    for tensor in resnet18.calibration.tensors.values():
        assert set(tensor.ranges) == set(CALIBRATION_METHODS)
        assert len(tensor.histogram_sha256) == 64


@pytest.mark.parametrize("method", CALIBRATION_METHODS)
def test_the_method_asked_for_is_the_range_used(method):
    histogram = Histogram()
    histogram.update(np.append(np.random.default_rng(0).standard_normal(20_000), 1000).astype(np.float32))
    spec = CalibrationSpec(method=method, percentile=99.0)
    calibration = calibration_from({"x": histogram}, spec, source(1, ""))
    assert calibration.range_of("x") == choose_range(histogram, method, 99.0)
    assert len({calibration.tensors["x"].ranges[other] for other in CALIBRATION_METHODS}) == 3


def renamed(calibration: Calibration, old: str, new: str) -> Calibration:
    tensors = {new if name == old else name: tensor for name, tensor in calibration.tensors.items()}
    return msgspec.structs.replace(calibration, tensors=tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda c: renamed(c, "layer4.1.relu", "layer4.2.relu"), "layer4.1.relu", id="another depth"),
        pytest.param(
            lambda c: msgspec.structs.replace(c, tensors=c.tensors | {"layer5.0.relu": c.tensors["conv1.relu"]}),
            "layer5.0.relu",
            id="a tensor more",
        ),
        pytest.param(
            lambda c: msgspec.structs.replace(
                c, tensors={name: tensor for name, tensor in c.tensors.items() if name != "avgpool"}
            ),
            "avgpool",
            id="a tensor less",
        ),
        pytest.param(
            lambda c: msgspec.structs.replace(c, source=source(16, "0" * 64)), "weights are others", id="other weights"
        ),
    ],
)
@pytest.mark.parametrize("target", FORMS)
def test_the_calibration_of_another_model_is_refused(resnet18, change, message, target):
    with pytest.raises(ModelError, match=f"calibration is of another model.*{message}"):
        insert_qdq(resnet18.model, change(resnet18.calibration), FORMS[target])


def test_an_unknown_tensor_has_no_range(resnet18):
    with pytest.raises(ModelError, match="no tensor 'layer9'"):
        resnet18.calibration.range_of("layer9")


@pytest.mark.parametrize("batches", [[], [synthetic_images(UINT8, 1)[:0]]], ids=["no batch", "an empty batch"])
def test_no_image_is_a_data_error(resnet18, batches):
    with pytest.raises(DataError, match="no calibration images"):
        observe(resnet18.model, batches)


def test_a_model_without_convolutions_is_refused():
    node = helper.make_node("Relu", ["images"], ["logits"], "relu")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("images", "logits")]
    model = ir.from_proto(helper.make_model(helper.make_graph([node], "none", values[:1], values[1:])))
    with pytest.raises(ModelError, match="no convolutions"):
        observe(model, [np.zeros((1, 3), np.float32)])


# --- numbers that are none


def with_constant(subject: Subject, name: str, value: float) -> ir.Model:
    model = subject.model.clone()
    array = model.graph.initializers[name].const_value.numpy().copy()
    array.flat[0] = value
    model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return model


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite_are_refused(resnet18, value):
    model = with_constant(resnet18, "layer2.0.conv1.bias", value)
    with pytest.raises(ModelError, match=r"calibration image 1: tensor layer2\.0\.conv1\.relu has a value that is not"):
        observe(model, [resnet18.images])


def test_the_image_that_made_them_is_named():
    model, _, images = tiny(int8_ranges)
    images[1, 0, 0, 0] = np.nan
    with pytest.raises(ModelError, match="calibration image 2: tensor images"):
        observe(model, [images])


@pytest.mark.parametrize("target", FORMS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer2.0.conv1.weight", np.nan),
        ("layer2.0.conv1.weight", np.inf),
        ("layer2.0.conv1.bias", np.nan),
        ("fc.weight", np.nan),
        ("fc.bias", np.nan),
    ],
)
def test_weights_that_are_not_finite_are_refused(resnet18, target, value, name):
    with pytest.raises(ModelError, match=name.rpartition(".")[0]):
        lower(with_constant(resnet18, name, value), resnet18.calibration, FORMS[target])


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_values_beyond_any_half_scale_are_refused(resnet18, target):
    with pytest.raises(ModelError, match=r"layer2\.0\.conv1\.weight has values that no float16 scale covers"):
        lower(with_constant(resnet18, "layer2.0.conv1.weight", 1e7), resnet18.calibration, FORMS[target])
    tensors = resnet18.calibration.tensors
    huge = msgspec.structs.replace(
        tensors["layer1.0.relu"], ranges=dict.fromkeys(CALIBRATION_METHODS, (0.0, 65504.0 * 128))
    )
    calibration = msgspec.structs.replace(resnet18.calibration, tensors=tensors | {"layer1.0.relu": huge})
    with pytest.raises(ModelError, match=r"layer1\.0\.relu has values that no float16 scale covers"):
        lower(resnet18.model, calibration, FORMS[target])


# --- normalised tensors as the input


def test_every_form_of_a_network_with_normalised_input():
    subject = make("resnet18", FLOAT32)
    assert subject.calibration.tensors["images"].observed == (
        float(synthetic_images(FLOAT32, 16).min()),
        float(synthetic_images(FLOAT32, 16).max()),
    )
    for target, data in subject.lowered.items():
        onnx.checker.check_model(data, full_check=True)
        assert "images" in {name.removesuffix(".half") for name in Graph(data).quantized_activations()}, target
        assert FLOOR_DB < subject.sqnr_db(data) < 40, target
        assert subject.sqnr_db(with_scale(data, "images", 1 / 8)) < FLOOR_DB - 1, target
