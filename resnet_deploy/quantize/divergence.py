"""Where a lowered graph departs from the FP32 graph it was made from, step by step.

A step is one node of the FP32 graph, or one activation's way onto its integer grid. Each is measured twice. *Alone*:
the FP32 node is given the very inputs that the lowered node had, so that what differs is this step's doing and nothing
that came before. *So far*: against the FP32 graph run from the image on, which is what has piled up.

What a step's number format accounts for is computed from the FP32 numbers: rounding the layer's weights to the grid
it has (``outliers.weight_sqnr_db``); rounding an activation to the levels of 8 bits over the values it takes, a noise
of step**2 / 12 each (Widrow and Kollar, "Quantization Noise", 2008); the digits of FP32, FP16, BF16 and FP8.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from resnet_deploy.batching import one_by_one
from resnet_deploy.errors import ModelError
from resnet_deploy.onnx_files import split_weights
from resnet_deploy.ort_session import open_session, translate_refusals
from resnet_deploy.parity import Step
from resnet_deploy.quantize.float8 import EXPECTED_DB, FLOAT8, UNCLIPPED, float8_sqnr_db
from resnet_deploy.quantize.graph import all_tensors, constant, tensor_name, with_outputs
from resnet_deploy.quantize.layers import used_bits
from resnet_deploy.quantize.outliers import weight_sqnr_db
from resnet_deploy.simulation import widen_bfloat16
from resnet_deploy.specs import INPUT_NAME
from resnet_deploy.verify import sqnr_db

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resnet_deploy.protocols import Array

_FLOAT_DB: Final = {ir.DataType.BFLOAT16: 48.0, ir.DataType.FLOAT16: 66.0, ir.DataType.FLOAT: 110.0}
_INTERVALS: Final = 255  # between the levels of 8 bits


def compare_steps(
    reference: ir.Model, lowered: ir.Model, images: "Iterable[Array]", *, corrected: ir.Model | None = None
) -> tuple[Step, ...]:
    """Run both graphs over contract tensors, one image at a time, and measure every step in order of execution.

    Args:
        reference: The FP32 graph that was lowered; names of nodes and tensors are what aligns the two.
        lowered: What became of it. All models are left as they were.
        images: Batches of any size, each (N, *preprocess.shape); at least one image in all.
        corrected: ``reference`` with the biases that were lowered, where they were corrected first. A layer alone is
            held against these: they answer for the errors of others too, and would pass for its own.

    Raises:
        ModelError: If the lowered graph lacks a node of the reference.
        BuildError: If ONNX Runtime refuses one of the graphs.
    """
    pairs = _pairs(reference.graph, lowered.graph)
    fed = {name for pair in pairs for name in pair.inputs.values()}
    run_reference = _Tapped(with_outputs(reference, {pair.reference for pair in pairs}))
    compared = {name for pair in pairs for name in (pair.result, pair.source)}
    run_lowered = _Tapped(widen_bfloat16(with_outputs(lowered, fed | compared)))
    run_alone = _Tapped(_one_step_each(corrected or reference, pairs))
    for image in one_by_one(images):
        whole, found = run_reference({INPUT_NAME: image}), run_lowered({INPUT_NAME: image})
        alone = run_alone({_fed(name): _as_fed(found[name]) for name in fed})
        for pair in pairs:
            expected = found[pair.source] if pair.source else alone[pair.reference]
            pair.add(whole[pair.reference], expected, found[pair.result])
    return tuple(pair.measured() for pair in pairs)


@dataclass
class _Pair:
    """A step and where to find its tensors, and the sums that its figures come from.

    Attributes:
        reference: The FP32 graph's tensor.
        result: The lowered graph's tensor in its place.
        kind: As in ``Step``.
        format_db: What the format of the weights and of the result accounts for.
        inputs: Tensors of the lowered graph that the FP32 node is to be given, by operand.
        source: The lowered graph's tensor before it goes onto its grid; empty for a node of the FP32 graph.
        symmetric: Whether half of the grid is below zero, whatever the values are.
        even: Whether its steps are equal, as those of integers are and those of FP8 are not.
        ends: Smallest and largest value that the grid does not clip.
    """

    reference: str
    result: str
    kind: str
    format_db: float
    inputs: dict[int, str] = field(default_factory=dict)
    source: str = ""
    symmetric: bool = False
    even: bool = True
    ends: tuple[float, float] = (-math.inf, math.inf)
    whole_power: float = 0.0
    whole_noise: float = 0.0
    power: float = 0.0
    noise: float = 0.0
    low: float = 0.0
    high: float = 0.0
    values: int = 0
    clipped: int = 0

    def add(self, whole: "Array", expected: "Array", result: "Array") -> None:
        """Add one image: the FP32 graph's tensor, FP32 on the same inputs, and what the lowered graph made."""
        got, alone, reference = (array.astype(np.float64) for array in (result, expected, whole))
        with np.errstate(invalid="ignore"):  # infinity minus infinity: not a number, as it should be
            self.whole_noise += float(np.square(got - reference).sum())
            self.noise += float(np.square(got - alone).sum())
        self.whole_power += float(np.square(reference).sum())
        self.power += float(np.square(alone).sum())
        self.low, self.high = min(self.low, float(alone.min())), max(self.high, float(alone.max()))
        self.values += alone.size
        self.clipped += int(np.count_nonzero((alone < self.ends[0]) | (alone > self.ends[1])))

    def measured(self) -> Step:
        """Turn the sums into figures."""
        expected_db = self.format_db
        if self.kind == "grid" and self.even:
            span = 2 * max(-self.low, self.high) if self.symmetric else self.high - self.low
            expected_db = min(expected_db, sqnr_db(self.power, (span / _INTERVALS) ** 2 / 12 * self.values))
        return Step(
            layer=self.reference,
            kind=self.kind,
            alone_db=sqnr_db(self.power, self.noise),
            so_far_db=sqnr_db(self.whole_power, self.whole_noise),
            expected_db=expected_db,
            clipped=self.clipped / self.values,
        )


def _pairs(reference: ir.Graph, lowered: ir.Graph) -> list[_Pair]:
    """Align the two graphs, in order of execution of the lowered one."""
    originals = {node.name: node for node in reference}
    missing = sorted(str(name) for name in originals.keys() - {node.name for node in lowered})
    if missing:
        raise ModelError(f"the lowered graph has no node {missing[0]}", hint="compare it with the very model it is of")
    pairs = []
    for node in lowered:
        if node.name in originals:
            pairs.append(_node_pair(originals[node.name], node))
        elif node.op_type == "QuantizeLinear":
            pairs.append(_grid_pair(node, {tensor_name(value) for value in all_tensors(reference)}))
    return pairs


def _node_pair(original: ir.Node, node: ir.Node) -> _Pair:
    inputs = {
        index: tensor_name(node.inputs[index])
        for index, value in enumerate(original.inputs)
        if value is not None and value.const_value is None
    }
    output = node.outputs[0]
    format_db = _float_db(output)
    is_weighted = original.op_type in ("Conv", "Gemm")
    if is_weighted:
        format_db = min(format_db, _weights_db(original, node))
    kind = "weights" if is_weighted else "arithmetic"
    return _Pair(tensor_name(original.outputs[0]), tensor_name(output), kind, format_db, inputs)


def _grid_pair(quantize: ir.Node, names: set[str]) -> _Pair:
    source = quantize.inputs[0]
    original, producer = source, source.producer() if source is not None else None
    if tensor_name(original) not in names and producer is not None and producer.op_type == "Cast":
        original = producer.inputs[0]
    scale, zero_point = constant(quantize.inputs[1]).astype(np.float64), constant(quantize.inputs[2])
    is_float8, zero = zero_point.dtype == FLOAT8, int(zero_point)
    if is_float8:
        first, last = -UNCLIPPED, UNCLIPPED
    else:
        limits = np.iinfo(zero_point.dtype.name)
        first, last = limits.min - zero - 0.5, limits.max - zero + 0.5
    (dequantize,) = quantize.outputs[0].consumers()
    result = dequantize.outputs[0]
    return _Pair(
        tensor_name(original),
        tensor_name(result),
        "grid",
        EXPECTED_DB if is_float8 else _float_db(result),
        source=tensor_name(source),
        symmetric=zero_point.dtype == np.int8 and zero == 0,
        even=not is_float8,
        ends=(float(first * scale), float(last * scale)),
    )


def _weights_db(original: ir.Node, node: ir.Node) -> float:
    """SQNR that FP32 weights keep on the grid that the lowered node has; infinite where it has none."""
    producer = node.inputs[1].producer() if node.inputs[1] is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        return math.inf
    integers, scales = constant(producer.inputs[0]), constant(producer.inputs[1])
    weights, per_channel = constant(original.inputs[1]), scales.ndim > 0
    if integers.dtype == FLOAT8:
        return float8_sqnr_db(weights, per_channel=per_channel)
    return weight_sqnr_db(weights, bits=used_bits(integers), per_channel=per_channel)


def _float_db(value: ir.Value) -> float:
    return _FLOAT_DB.get(value.dtype or ir.DataType.FLOAT, math.inf)


def _one_step_each(reference: ir.Model, pairs: list[_Pair]) -> ir.Model:
    """Copy ``reference`` with every node reading inputs of the graph, so that none depends on another."""
    cut = with_outputs(reference, {pair.reference for pair in pairs if not pair.source})
    operands = {pair.reference: pair.inputs for pair in pairs if not pair.source}
    inputs: dict[str, ir.Value] = {}
    for node in cut.graph:
        for index, name in operands[tensor_name(node.outputs[0])].items():
            value = node.inputs[index]
            assert value is not None
            fed = inputs.setdefault(name, ir.Value(name=_fed(name), shape=value.shape, type=value.type))
            node.replace_input_with(index, fed)
    cut.graph.inputs.clear()
    cut.graph.inputs.extend(inputs.values())
    return cut


def _fed(name: str) -> str:
    return f"fed.{name}"


def _as_fed(array: "Array") -> "Array":
    """Widen what the lowered graph computes in FP16."""
    return array.astype(np.float32) if array.dtype == np.float16 else array


class _Tapped:
    """Runs a graph as it is written and returns its outputs by name."""

    def __init__(self, model: ir.Model) -> None:
        self._names = [tensor_name(value) for value in model.graph.outputs]
        self._session = open_session(*split_weights(model), as_written=True)

    def __call__(self, feed: "dict[str, Array]") -> "dict[str, Array]":
        with translate_refusals():
            return dict(zip(self._names, self._session.run(self._names, feed), strict=True))
