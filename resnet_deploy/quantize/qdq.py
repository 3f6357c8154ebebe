"""Writing quantization into the graph as QuantizeLinear / DequantizeLinear pairs, in the form each target runs fastest.

    q = clip(round(x / scale) + zero_point, q_min, q_max)        x' = (q - zero_point) * scale

(ONNX, QuantizeLinear; Jacob et al. 2018, section 2.1; for FP8 see ``float8``.) Weights are stored as integers, or FP8,
behind a DequantizeLinear alone, which halves the file and spares the compiler the rounding. One calibration serves
every form.
"""

import math
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

from resnet_deploy.environment import compute_threads
from resnet_deploy.errors import ModelError
from resnet_deploy.onnx_files import read_card
from resnet_deploy.quantize.calibrate import Calibration
from resnet_deploy.quantize.float8 import FLOAT8, LARGEST, round_to_float8
from resnet_deploy.quantize.graph import (
    activations,
    add_constant,
    constant,
    grid_source,
    observed_names,
    residual_adds,
    tensor_name,
    weighted_nodes,
)
from resnet_deploy.quantize.ranges import Range

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Largest magnitude of an integer bias. Kernels add it to an INT32 sum that may have the same sign and wraps where it
# overflows: the largest sum of a ResNet, of 512 channels under 3x3 weights, is 4608 * 255 * 127 or some 2**27.
_LARGEST_BIAS: Final = 2**30
_PIECE: Final = 1 << 16  # weights that are rounded at once


@dataclass(frozen=True)
class QdqForm:
    """How a target wants its quantization written.

    Attributes:
        activation: ``uint8`` is asymmetric, ``int8`` symmetric with zero point 0, ``float8`` FP8, weights included.
        everywhere: Quantize every activation, so that convolutions, sums and pooling all run on integers and pass
            integers on; otherwise only what convolutions read, and sums stay in floating point.
        shortcut: Quantize the shortcut operand of residual sums where ``everywhere`` does not hold.
        per_channel: One weight scale per output channel, rather than one per tensor.
        weight_bits: 8, or 7 for CPUs whose 16-bit accumulation saturates on products of full-range values.
        scale_dtype: Data type of the scales, which is what DequantizeLinear gives.
        classifier: Quantize the fully connected layer too; its output, the logits, never is.
    """

    activation: Literal["uint8", "int8", "float8"]
    everywhere: bool
    shortcut: bool
    per_channel: bool
    weight_bits: Literal[7, 8] = 8
    scale_dtype: Literal["float32", "float16"] = "float32"
    classifier: bool = False


_TENSORRT: Final = QdqForm("int8", everywhere=False, shortcut=True, per_channel=True, scale_dtype="float16")
_TENSORRT_RTX: Final = QdqForm("int8", everywhere=False, shortcut=False, per_channel=False, scale_dtype="float16")
FORMS: Final[dict[str, QdqForm]] = {
    # U8S8 with all sums and pooling in integers: S8S8 is slower than FP32 on x86, and so is a float sum in between.
    "onnxruntime": QdqForm("uint8", everywhere=True, shortcut=True, per_channel=True, classifier=True),
    # It takes any of these forms, and is as fast with each; of this one, weights have 7 bits where 8 would saturate.
    "openvino": QdqForm("uint8", everywhere=True, shortcut=True, per_channel=True, classifier=True),
    # The documented placement: with the shortcut quantized, convolution, sum, ReLU and quantization become one kernel.
    "tensorrt": _TENSORRT,
    "onnxruntime-tensorrt": _TENSORRT,
    # Per-channel scales make its convolutions write FP32 and fuse nothing; a quantized shortcut costs a kernel each.
    "tensorrt-rtx": _TENSORRT_RTX,
    "onnxruntime-rtx": _TENSORRT_RTX,
}
# FP8, where the INT8 form of the same target has integers, and for the same reasons.
FLOAT8_FORMS: Final[dict[str, QdqForm]] = {
    target: replace(FORMS[target], activation="float8") for target in ("tensorrt", "tensorrt-rtx")
}
# TensorRT has no FP8 kernel for convolutions with more elements; of those with fewer channels NVIDIA's own tool,
# ModelOpt, makes none.
_FLOAT8_ELEMENTS: Final = 32
_FLOAT8_CHANNELS: Final = 16


@dataclass(frozen=True)
class QdqReport:
    """What was done to a graph.

    Attributes:
        quantized: Weighted layers that run on integers, or in FP8, in order.
        left_in_float: Weighted layers that do not, each with the reason.
        activations: Tensors that got a Q/DQ pair.
        shortcuts: Residual sums whose shortcut operand is quantized.
    """

    quantized: tuple[str, ...]
    left_in_float: dict[str, str]
    activations: tuple[str, ...]
    shortcuts: tuple[str, ...]


def insert_qdq(
    model: ir.Model, calibration: Calibration, form: QdqForm, in_float: Collection[str] = ()
) -> tuple[ir.Model, QdqReport]:
    """Return a copy of the FP32 ``model`` with Q/DQ in the given form, and what was done.

    Args:
        model: The graph that was calibrated.
        calibration: Ranges of its activations.
        form: How the target wants it.
        in_float: Names of nodes that are to stay in floating point: layers, residual sums, pooling.

    Raises:
        ModelError: If the calibration is of another model, or a tensor has values that no scale covers.
    """
    _refuse_other_model(model, calibration)
    lowered = model.clone()
    graph = lowered.graph
    writer = _Writer(graph, form)
    integer = [node for node in graph if node.name not in in_float]
    layers = [node for node in weighted_nodes(graph) if node in integer and not _unsuited(node, form)]
    shortcuts = [
        (add.node, add.shortcut_index) for add in residual_adds(graph) if form.shortcut and add.node in integer
    ]
    # Decided for all tensors before the first is rewired, since the decisions read the graph.
    plan = []
    for tensor in activations(graph):
        edges = _edges(tensor, integer) if form.everywhere else _edges_read(tensor, layers, shortcuts)
        if edges:
            plan.append((tensor, calibration.range_of(tensor_name(grid_source(tensor))), edges))
    for tensor, chosen, edges in plan:
        writer.quantize_activation(tensor, chosen, edges)
    writer.quantize_weights(layers)
    ir_passes.RemoveUnusedNodesPass()(lowered)
    done = tuple(str(layer.name) for layer in layers)
    left = {
        str(node.name): _KEPT if node.name in in_float else _unsuited(node, form)
        for node in weighted_nodes(graph)
        if node not in layers
    }
    tensors = tuple(tensor_name(tensor) for tensor, _, _ in plan)
    return lowered, QdqReport(done, left, tensors, tuple(str(node.name) for node, _ in shortcuts))


def _refuse_other_model(model: ir.Model, calibration: Calibration) -> None:
    """Refuse ranges that would fit by tensor name alone: a ResNet-18 has no tensor that a ResNet-34 lacks."""
    one_sided = sorted(set(calibration.tensors).symmetric_difference(observed_names(model.graph)))
    if one_sided:
        reason = f"only one of the two has a tensor {one_sided[0]}"
    elif read_card(model, name="the model").weights_sha256 != calibration.source.weights_sha256:
        reason = "its weights are others"
    else:
        return
    raise ModelError(f"the calibration is of another model: {reason}", hint="calibrate this very model")


_KEPT: Final = "kept there for accuracy"


def _unsuited(layer: ir.Node, form: QdqForm) -> str:
    """Say why a layer has no place in a form; empty if it has one."""
    if layer.op_type != "Conv":
        return "" if form.classifier else "the classifier stays in floating point for this target"
    channels, inputs, *kernel = constant(layer.inputs[1]).shape
    if form.activation != "float8":
        return ""
    if math.prod(kernel) > _FLOAT8_ELEMENTS:
        return f"no FP8 kernel has more than {_FLOAT8_ELEMENTS} elements"
    return f"fewer than {_FLOAT8_CHANNELS} channels" if min(channels, inputs) < _FLOAT8_CHANNELS else ""


def _edges(tensor: ir.Value, integer: list[ir.Node]) -> list[tuple[ir.Node, int]]:
    """Choose the uses of ``tensor`` that are to read its quantized form: all, if one of them runs on integers.

    A tensor that were needed in floating point too would be written twice.
    """
    uses = [(use.node, use.idx) for use in tensor.uses()]
    return uses if any(node in integer for node, _ in uses) else []


def _edges_read(
    tensor: ir.Value, layers: list[ir.Node], shortcuts: list[tuple[ir.Node, int]]
) -> list[tuple[ir.Node, int]]:
    """Choose the uses of ``tensor`` that are to read its quantized form, where sums stay in floating point."""
    uses = [(use.node, use.idx) for use in tensor.uses()]
    return [(node, index) for node, index in uses if (index == 0 and node in layers) or (node, index) in shortcuts]


class _Writer:
    """Adds nodes and initializers to one graph, in one form."""

    def __init__(self, graph: ir.Graph, form: QdqForm) -> None:
        self.graph = graph
        self.form = form
        self.scale_dtype = np.dtype(form.scale_dtype)
        self.scales: dict[str, float] = {}  # by name of the dequantized value

    def quantize_activation(self, tensor: ir.Value, chosen: Range, edges: list[tuple[ir.Node, int]]) -> None:
        """Put one Q/DQ pair behind ``tensor`` and make ``edges`` read it."""
        name = tensor_name(tensor)
        scale, zero_point = activation_grid(chosen, self.form)
        self._refuse_infinite(name, scale, _farthest(chosen, zero_point, self.form))
        scale_value = add_constant(self.graph, f"{name}.scale", np.array(scale, self.scale_dtype))
        zero_value = add_constant(self.graph, f"{name}.zero_point", np.array(zero_point, grid_dtype(self.form)))
        quantize = self._node("QuantizeLinear", f"{name}.quantize", [tensor, scale_value, zero_value], tensor.shape)
        quantized = quantize.outputs[0]
        quantized.type = zero_value.type
        dequantize = self._dequantize(name, quantized, scale_value, zero_value)
        producer = tensor.producer()
        if producer is not None:
            self.graph.insert_after(producer, [quantize, dequantize])
        else:
            self.graph.insert_before(self.graph[0], [quantize, dequantize])
        for node, index in edges:
            node.replace_input_with(index, dequantize.outputs[0])
        self.scales[tensor_name(dequantize.outputs[0])] = scale

    def quantize_weights(self, layers: list[ir.Node]) -> None:
        """Store the layers' weights, and on integer targets their biases, as integers; or the weights as FP8."""
        with ThreadPoolExecutor(compute_threads(), thread_name_prefix="quantize") as pool:
            for layer, constants in zip(layers, pool.map(self._on_grids, layers), strict=True):
                for index, integers, scales in constants:
                    self._replace_constant(layer, index, integers, scales)

    def _on_grids(self, layer: ir.Node) -> "list[tuple[int, NDArray[np.generic], NDArray[np.generic]]]":
        """Return for each input of a layer that is stored anew its number, its values on the grid, and their scales."""
        weights = constant(layer.inputs[1])
        bias_value = layer.inputs[2] if len(layer.inputs) > 2 else None
        input_scale = self.scales.get(tensor_name(layer.inputs[0]))
        scales = weight_scales(weights, self.form)
        if self.form.everywhere and bias_value is not None and input_scale is not None:
            scales = _scales_for_bias(scales, weights, constant(bias_value), input_scale, self.form)
        self._refuse_infinite(tensor_name(layer.inputs[1]), scales, _weight_limit(self.form))
        shape = (-1,) + (1,) * (weights.ndim - 1)
        integers = _on_weight_grid(weights, scales.astype(np.float64).reshape(shape), self.form)
        stored = scales if self.form.per_channel else scales[0]
        found: list[tuple[int, NDArray[np.generic], NDArray[np.generic]]] = [(1, integers, stored)]
        if self.form.everywhere and bias_value is not None and input_scale is not None:
            bias_scales = (scales.astype(np.float64) * input_scale).astype(np.float32)
            bias = np.rint(constant(bias_value) / bias_scales.astype(np.float64))
            found.append((2, np.clip(bias, -_LARGEST_BIAS, _LARGEST_BIAS).astype(np.int32), bias_scales))
        return found

    def _refuse_infinite(self, name: str, scales: "float | NDArray[np.floating]", steps: float) -> None:
        """Refuse values that no scale covers: one that is not a number, or too large for the scale's data type.

        It is the scale's data type that they are dequantized to too, and they are up to ``steps`` times the scale.
        """
        largest = np.asarray(scales, np.float64) * steps
        if not (largest <= np.finfo(self.scale_dtype).max).all():  # not a number is not less
            raise ModelError(
                f"{name} has values that no {self.form.scale_dtype} scale covers",
                hint="check the weights for NaN and for extreme values",
            )

    def _replace_constant(
        self, layer: ir.Node, index: int, integers: "NDArray[np.generic]", scales: "NDArray[np.generic]"
    ) -> None:
        """Feed input ``index`` of ``layer`` from integers behind a DequantizeLinear."""
        name = tensor_name(layer.inputs[index])
        quantized = add_constant(self.graph, f"{name}.quantized", integers)
        scale_value = add_constant(self.graph, f"{name}.scale", np.asarray(scales))
        zero_value = add_constant(self.graph, f"{name}.zero_point", np.zeros(np.shape(scales), integers.dtype))
        dequantize = self._dequantize(name, quantized, scale_value, zero_value, axis=0 if np.ndim(scales) else None)
        self.graph.insert_before(layer, dequantize)
        layer.replace_input_with(index, dequantize.outputs[0])

    def _dequantize(
        self, name: str, quantized: ir.Value, scale: ir.Value, zero_point: ir.Value, axis: int | None = None
    ) -> ir.Node:
        node = self._node("DequantizeLinear", f"{name}.dequantize", [quantized, scale, zero_point], quantized.shape)
        if axis is not None:
            node.attributes["axis"] = ir.AttrInt64("axis", axis)
        node.outputs[0].type = scale.type
        return node

    def _node(self, op_type: str, name: str, inputs: list[ir.Value], shape: ir.Shape | None) -> ir.Node:
        node = ir.node(op_type, inputs, name=name)
        node.outputs[0].name = f"{name}d"  # x.quantize makes x.quantized
        node.outputs[0].shape = shape
        return node


def activation_grid(chosen: Range, form: QdqForm) -> tuple[float, int]:
    """Scale (rounded to the form's data type) and zero point that cover ``chosen``; zero is always exact.

    A tensor of zeros takes the grid of one that reaches 1. Any would do for its values, but biases of what reads it may
    be rounded to multiples of its scale: to keep them it is a common one.
    """
    if chosen.magnitude == 0:
        chosen = Range(0.0, 1.0)
    if form.activation != "uint8":
        limit = 127 if form.activation == "int8" else LARGEST
        return float(_representable(np.array(chosen.magnitude / limit), form)), 0
    scale = float(_representable(np.array((chosen.high - chosen.low) / 255), form))
    return scale, round(-chosen.low / scale)


def _farthest(chosen: Range, zero_point: int, form: QdqForm) -> float:
    """How many scales from zero the grid reaches, on the sides that ``chosen`` has values on."""
    if form.activation == "float8":
        return LARGEST
    limits = np.iinfo(form.activation)
    return max(limits.max - zero_point, zero_point - limits.min if chosen.low < 0 else 0)


def grid_dtype(form: QdqForm) -> "np.dtype[Any]":
    """Data type of a form's quantized activations."""
    return FLOAT8 if form.activation == "float8" else np.dtype(form.activation)


def weight_scales(weights: "NDArray[np.float32]", form: QdqForm) -> "NDArray[np.floating]":
    """Symmetric scales of each output channel, shape (channels,), all equal where the form is per tensor."""
    magnitudes = np.abs(weights.reshape(len(weights), -1)).max(1).astype(np.float64)
    if not form.per_channel:
        magnitudes[:] = magnitudes.max()
    return _representable(magnitudes / _weight_limit(form), form)


def _scales_for_bias(
    scales: "NDArray[np.floating]",
    weights: "NDArray[np.float32]",
    bias: "NDArray[np.float32]",
    input_scale: float,
    form: QdqForm,
) -> "NDArray[np.floating]":
    """Make weight scales fit the bias too: an INT32 on the accumulator's grid, whose step is both scales' product.

    The step must be coarse enough for the integer not to be too large. Where there are no weights, as in a channel that
    was pruned, the bias alone makes the scale, and keeps all its digits.
    """
    is_silent = ~weights.reshape(len(weights), -1).any(1)
    needed = np.abs(bias.astype(np.float64)) / (input_scale * _LARGEST_BIAS)
    fitting = np.maximum(np.where(is_silent, 0, scales.astype(np.float64)), needed)
    if not form.per_channel:
        fitting[:] = fitting.max()
    # Below the normal numbers of single precision, which the step is stored in, it would lose digits.
    least = float(np.finfo(np.float32).smallest_normal) / input_scale
    return _representable(np.where(fitting == 0, 0, np.maximum(fitting, least)), form)


def _representable(scales: "NDArray[np.float64]", form: QdqForm) -> "NDArray[np.floating]":
    """Round to the form's data type, no smaller than its smallest normal number; 1 for an all-zero tensor.

    Rounding before quantizing keeps integers and scales consistent. Below the normal numbers a scale would lose digits;
    beyond the largest number it is infinite.
    """
    dtype = np.dtype(form.scale_dtype)
    with np.errstate(over="ignore"):
        rounded = np.maximum(scales.astype(dtype), np.finfo(dtype).smallest_normal)
    return np.where(scales == 0, dtype.type(1), rounded)


def _on_weight_grid(
    weights: "NDArray[np.float32]", scales: "NDArray[np.float64]", form: QdqForm
) -> "NDArray[np.generic]":
    """Round weights over their scales to the form's grid, a few channels at a time: they stay in a core's cache."""
    rounded = np.empty(weights.shape, FLOAT8 if form.activation == "float8" else np.int8)
    limit = _weight_limit(form)
    step = max(1, _PIECE * len(weights) // weights.size)
    for start in range(0, len(weights), step):
        piece = slice(start, start + step)
        scaled = weights[piece] / scales[piece]
        if form.activation == "float8":
            rounded[piece] = round_to_float8(scaled)
        else:
            np.rint(scaled, out=scaled)
            rounded[piece] = np.clip(scaled, -limit, limit, out=scaled)
    return rounded


def _weight_limit(form: QdqForm) -> float:
    if form.activation == "float8":
        return LARGEST
    return 127 if form.weight_bits == 8 else 63
