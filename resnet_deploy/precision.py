"""FP16 and BF16: the graph itself becomes 16-bit, as strongly typed builders want it.

The input and its normalisation stay in FP32 (0..255 minus a mean that 16 bits would round), and so do the logits on
their way out; everything between is 16-bit, Q/DQ scales included.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import ml_dtypes
import numpy as np
import onnx_ir as ir

from resnet_deploy.errors import ModelError
from resnet_deploy.specs import INPUT_NAME

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NORMALISATION: Final = ("Cast", "Transpose", "Sub", "Mul")
_BFLOAT16_OPSET: Final = 22  # the first whose Conv, MaxPool and GlobalAveragePool may be BF16


@dataclass(frozen=True)
class HalfReport:
    """What lowering did to the constants.

    Attributes:
        tensors: How many became 16-bit.
        flushed: Non-zero values too small for the type that became zero, by tensor; only tensors that have any.
    """

    tensors: int
    flushed: dict[str, int]


@dataclass(frozen=True)
class _Half:
    """A 16-bit floating-point type: its name in messages and in ONNX, and what NumPy knows of it."""

    name: str
    onnx: ir.DataType
    dtype: "np.dtype[np.generic]"
    largest: float


_FLOAT16: Final = _Half("FP16", ir.DataType.FLOAT16, np.dtype(np.float16), float(np.finfo(np.float16).max))
_BFLOAT16: Final = _Half("BF16", ir.DataType.BFLOAT16, np.dtype(ml_dtypes.bfloat16), (2 - 2**-7) * 2.0**127)


def lower_to_float16(model: ir.Model) -> tuple[ir.Model, HalfReport]:
    """Return a copy of ``model`` that computes in FP16 between its normalised input and its logits.

    Raises:
        ModelError: If a weight is too large for FP16, or not a number.
    """
    return _lower(model, _FLOAT16)


def lower_to_bfloat16(model: ir.Model) -> tuple[ir.Model, HalfReport]:
    """Return a copy of ``model`` that computes in BF16 between its normalised input and its logits.

    BF16 has the exponents of FP32, so that all but its very largest numbers fit, and 8 bits of each.

    Raises:
        ModelError: If a weight is too large for BF16, or not a number.
    """
    lowered, report = _lower(model, _BFLOAT16)
    # Nothing else changed between the exporter's opset and this one in the operators that a ResNet is made of.
    lowered.opset_imports[""] = max(lowered.opset_imports[""], _BFLOAT16_OPSET)
    return lowered, report


def _lower(model: ir.Model, half: _Half) -> tuple[ir.Model, HalfReport]:
    lowered = model.clone()
    graph = lowered.graph
    normalisation, body = _split(graph)
    kept = {value.name for node in normalisation for value in node.inputs if value is not None}
    tensors, flushed = 0, {}
    for value in list(graph.initializers.values()):
        if value.dtype == ir.DataType.FLOAT and value.name not in kept:
            lost = _halve(value, half)
            tensors += 1
            if lost:
                flushed[str(value.name)] = lost
    entry = normalisation[-1].outputs[0] if normalisation else graph.inputs[0]
    _cast_after(graph, entry, body, half)
    for node in body:
        for output in node.outputs:
            if output.dtype in (ir.DataType.FLOAT, None):  # nothing but Q/DQ is of another type, and that says so
                output.type = ir.TensorType(half.onnx)  # a new type: a clone shares the old one with the original
    _cast_outputs(graph)
    return lowered, HalfReport(tensors, flushed)


def _split(graph: ir.Graph) -> tuple[list[ir.Node], list[ir.Node]]:
    """Separate the nodes that normalise the input from the network proper."""
    normalisation, reached = [], {INPUT_NAME}
    for node in graph:
        if node.op_type in _NORMALISATION and node.inputs[0] is not None and node.inputs[0].name in reached:
            normalisation.append(node)
            reached.add(str(node.outputs[0].name))
    return normalisation, [node for node in graph if node not in normalisation]


def _halve(value: ir.Value, half: _Half) -> int:
    """Make a constant 16-bit; return how many non-zero values became zero."""
    assert value.const_value is not None
    array = value.const_value.numpy()
    largest = float(np.abs(array).max(initial=0))
    if np.isnan(largest):
        raise ModelError(f"{value.name} has a value that is not a number", hint="check the weights")
    if largest > half.largest:
        raise ModelError(
            f"{value.name} has a value of {largest:.3g}, beyond {half.name}'s {half.largest:.6g}",
            hint="build with --fp32, or rescale the checkpoint",
        )
    rounded: NDArray[np.generic] = array.astype(half.dtype)
    value.const_value = ir.tensor(rounded, name=value.name)
    value.type = ir.TensorType(half.onnx)
    return int(np.count_nonzero(array) - np.count_nonzero(rounded))


def _cast_after(graph: ir.Graph, entry: ir.Value, body: list[ir.Node], half: _Half) -> None:
    """Cast ``entry`` to 16 bits for all of its uses in ``body``."""
    cast = ir.node("Cast", [entry], {"to": half.onnx}, name=f"{entry.name}.half")
    (output,) = cast.outputs
    output.name, output.type, output.shape = cast.name, ir.TensorType(half.onnx), entry.shape
    uses = [(use.node, use.idx) for use in entry.uses() if use.node in body]
    for node, index in uses:
        node.replace_input_with(index, output)
    producer = entry.producer()
    if producer is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(producer, cast)


def _cast_outputs(graph: ir.Graph) -> None:
    """Give the graph FP32 outputs under their old names."""
    for index, output in enumerate(list(graph.outputs)):
        producer, name = output.producer(), output.name
        assert producer is not None
        output.name = f"{name}.half"
        cast = ir.node("Cast", [output], {"to": ir.DataType.FLOAT}, name=f"{name}.float")
        (logits,) = cast.outputs
        logits.name, logits.type, logits.shape = name, ir.TensorType(ir.DataType.FLOAT), output.shape
        graph.insert_after(producer, cast)
        graph.outputs[index] = logits
