"""Networks quantized in every form, and what tests look up in them."""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from resnet_deploy.export import export_onnx
from resnet_deploy.models import DESIGNS, Block, Bottleneck, ResNet, create_model
from resnet_deploy.onnx_files import attach_card, bytes_from_onnx
from resnet_deploy.ort_session import open_session
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.precision import lower_to_float16
from resnet_deploy.quantize.calibrate import Calibration, CalibrationSource, calibration_from, observe
from resnet_deploy.quantize.observers import Histogram
from resnet_deploy.quantize.qdq import FORMS, QdqForm, QdqReport, insert_qdq
from resnet_deploy.specs import CalibrationSpec, ModelCard, Preprocess
from resnet_deploy.verify import compare_logits

UINT8 = Preprocess(image_size=32, resize=32)
FLOAT32 = Preprocess(image_size=32, resize=32, dtype="float32", layout="NCHW")
ORT, TENSORRT, RTX = FORMS["onnxruntime"], FORMS["tensorrt"], FORMS["tensorrt-rtx"]
# Eight bits leave some 40 dB of each tensor; random blocks amplify what differs, and 20 to 53 layers leave 21 to 24 dB
# of a ResNet-18's logits and 19 to 23 of a ResNet-50's, measured over the three forms. A tensor on a grid eight times
# too narrow or, where it is a shortcut, too coarse (below) leaves 14 at most.
FLOOR_DB = 16
# ONNX Runtime before 1.30 leaves less of a form that is FP16 between its integers: 15.4 dB of a ResNet-18, where later
# ones leave 22.9, and 9.6 of a ResNet-50.
FLOOR_OF_OLDER_DB = 8
SEVEN_BITS = replace(ORT, weight_bits=7)  # what any CPU's fused kernels compute without saturating


ONNXRUNTIME = tuple(map(int, onnxruntime.__version__.split(".")[:2]))


def floor_db(target: str) -> float:
    """The least that a form has to leave of the logits, with the ONNX Runtime that is here."""
    return FLOOR_OF_OLDER_DB if ONNXRUNTIME < (1, 30) and target not in ("onnxruntime", "openvino") else FLOOR_DB


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
    """A settled network, exported, some images and its answers; calibrated and quantized when that is asked for.

    Shared by a whole session: tests copy what they change.
    """

    architecture: str
    preprocess: Preprocess
    network: ResNet
    model: ir.Model
    data: bytes
    images: np.ndarray
    expected: np.ndarray

    @cached_property
    def calibration(self) -> Calibration:
        return calibrate(self.model, [synthetic_images(self.preprocess, 16)])

    @cached_property
    def _forms(self) -> dict[str, tuple[bytes, QdqReport]]:
        return {target: lower(self.model, self.calibration, form) for target, form in FORMS.items()}

    @property
    def lowered(self) -> dict[str, bytes]:
        return {target: graph for target, (graph, _) in self._forms.items()}

    @property
    def reports(self) -> dict[str, QdqReport]:
        return {target: report for target, (_, report) in self._forms.items()}

    def sqnr_db(self, data: bytes, *, as_written: bool = True) -> float:
        return compare_logits(self.expected, logits(data, self.images, as_written=as_written)).sqnr_db


@lru_cache(maxsize=2)  # a ResNet-18 for either input; a ResNet-50 in every form is large
def make(architecture: str, preprocess: Preprocess) -> Subject:
    network = settled(create_model(architecture, 10), preprocess)
    card = ModelCard(
        architecture=architecture, num_classes=10, weights="none", weights_sha256="", preprocess=preprocess
    )
    model = export_onnx(network, card)
    data, images = bytes_from_onnx(model), synthetic_images(preprocess, 8, seed=9)
    return Subject(architecture, preprocess, network, model, data, images, logits(data, images))


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


def with_scale(data: bytes, tensor: str, factor: float) -> bytes:
    """The graph with the scale of one tensor multiplied."""
    model = onnx.load_from_string(data)
    (scale,) = [one for one in model.graph.initializer if one.name == f"{tensor}.scale"]
    array = numpy_helper.to_array(scale)
    scale.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), scale.name))
    return model.SerializeToString()


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
