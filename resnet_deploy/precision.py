"""FP16: the graph itself becomes half precision, as strongly typed builders want it.

The input and its normalisation stay in FP32 (0..255 minus a mean that half precision would round), and so do the logits
on their way out; everything between is FP16, Q/DQ scales included.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from resnet_deploy.errors import ModelError
from resnet_deploy.specs import INPUT_NAME

_LARGEST: Final = float(np.finfo(np.float16).max)
_HALF: Final = ir.TensorType(ir.DataType.FLOAT16)
_NORMALISATION: Final = ("Cast", "Transpose", "Sub", "Mul")


@dataclass(frozen=True)
class Float16Report:
    """What lowering did to the constants.

    Attributes:
        tensors: How many became FP16.
        flushed: Non-zero values too small for FP16 that became zero, by tensor; only tensors that have any.
    """

    tensors: int
    flushed: dict[str, int]


def lower_to_float16(model: ir.Model) -> tuple[ir.Model, Float16Report]:
    """Return a copy of ``model`` that computes in FP16 between its normalised input and its logits.

    Raises:
        ModelError: If a weight is too large for FP16, or not a number.
    """
    lowered = model.clone()
    graph = lowered.graph
    normalisation, body = _split(graph)
    kept = {value.name for node in normalisation for value in node.inputs if value is not None}
    tensors, flushed = 0, {}
    for value in list(graph.initializers.values()):
        if value.dtype == ir.DataType.FLOAT and value.name not in kept:
            lost = _halve(value)
            tensors += 1
            if lost:
                flushed[str(value.name)] = lost
    entry = normalisation[-1].outputs[0] if normalisation else graph.inputs[0]
    _cast_after(graph, entry, body)
    for node in body:
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.type = _HALF  # a new type: a clone shares the old one with the original
    _cast_outputs(graph)
    return lowered, Float16Report(tensors, flushed)


def _split(graph: ir.Graph) -> tuple[list[ir.Node], list[ir.Node]]:
    """Separate the nodes that normalise the input from the network proper."""
    normalisation, reached = [], {INPUT_NAME}
    for node in graph:
        if node.op_type in _NORMALISATION and node.inputs[0] is not None and node.inputs[0].name in reached:
            normalisation.append(node)
            reached.add(str(node.outputs[0].name))
    return normalisation, [node for node in graph if node not in normalisation]


def _halve(value: ir.Value) -> int:
    """Make a constant FP16; return how many non-zero values became zero."""
    assert value.const_value is not None
    array = value.const_value.numpy()
    largest = float(np.abs(array).max(initial=0))
    if np.isnan(largest):
        raise ModelError(f"{value.name} has a value that is not a number", hint="check the weights")
    if largest > _LARGEST:
        raise ModelError(
            f"{value.name} has a value of {largest:.3g}, beyond FP16's {_LARGEST:.0f}",
            hint="build with --fp32, or rescale the checkpoint",
        )
    half = array.astype(np.float16)
    value.const_value = ir.tensor(half, name=value.name)
    value.type = _HALF
    return int(np.count_nonzero(array) - np.count_nonzero(half))


def _cast_after(graph: ir.Graph, entry: ir.Value, body: list[ir.Node]) -> None:
    """Cast ``entry`` to FP16 for all of its uses in ``body``."""
    cast = ir.node("Cast", [entry], {"to": ir.DataType.FLOAT16}, name=f"{entry.name}.half")
    (output,) = cast.outputs
    output.name, output.type, output.shape = cast.name, _HALF, entry.shape
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
