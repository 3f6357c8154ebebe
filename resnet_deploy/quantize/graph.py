"""Reading an exported ResNet: which tensors are activations worth observing, and what each of them is for."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import onnx_ir as ir

from resnet_deploy.errors import ModelError
from resnet_deploy.specs import INPUT_NAME

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAKES_ACTIVATIONS: Final = ("Conv", "Relu", "Add", "MaxPool", "GlobalAveragePool", "Flatten")


@dataclass(frozen=True)
class ResidualAdd:
    """One shortcut connection: which operand of the Add comes past the block's convolutions."""

    node: ir.Node
    shortcut_index: int


def weighted_nodes(graph: ir.Graph) -> list[ir.Node]:
    """List the convolutions and the classifier, in order of execution."""
    return [node for node in graph if node.op_type in ("Conv", "Gemm")]


def residual_adds(graph: ir.Graph) -> list[ResidualAdd]:
    """List the shortcut connections, in order of execution."""
    return [ResidualAdd(node, _shortcut_index(node)) for node in graph if node.op_type == "Add"]


def activations(graph: ir.Graph) -> list[ir.Value]:
    """List the tensors that some target quantizes: those that exist in memory once ReLUs are fused.

    These are the normalised input, every convolution's output (after its ReLU where one follows), every shortcut sum
    after its ReLU, and what pooling makes of them. Logits are never quantized.

    Raises:
        ModelError: If there is no convolution.
    """
    if not any(node.op_type == "Conv" for node in graph):
        raise ModelError("the model has no convolutions to quantize", hint="give a model that `export` wrote")
    tensors = []
    for node in graph:
        output = node.outputs[0]
        if node.op_type in _MAKES_ACTIVATIONS and not _feeds_relu(output):
            tensors.append(output)
        if node.op_type == "Conv" and node.inputs[0] is not None and is_network_input(node.inputs[0]):
            tensors.insert(0, node.inputs[0])
    return [tensor for tensor in tensors if not tensor.is_graph_output()]


def grid_source(tensor: ir.Value) -> ir.Value:
    """Find the tensor whose range ``tensor`` takes.

    A maximum or a reshape only picks among its input's values: on the input's own grid it commutes with quantization.
    """
    producer = tensor.producer()
    if producer is not None and producer.op_type in ("MaxPool", "Flatten"):
        assert producer.inputs[0] is not None
        return grid_source(producer.inputs[0])
    return tensor


def observed_names(graph: ir.Graph) -> list[str]:
    """List the tensors whose ranges some target needs, in order of execution, each once."""
    return list(dict.fromkeys(tensor_name(grid_source(tensor)) for tensor in activations(graph)))


def tensor_name(value: ir.Value | None) -> str:
    """Name of a value that must exist and have one."""
    assert value is not None
    assert value.name is not None
    return value.name


def constant(value: ir.Value | None) -> "NDArray[Any]":
    """Content of a value that must be a constant."""
    assert value is not None
    assert value.const_value is not None
    array: NDArray[Any] = value.const_value.numpy()
    return array


def add_constant(graph: ir.Graph, name: str, array: "NDArray[Any]") -> ir.Value:
    """Give ``graph`` a constant."""
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def with_outputs(model: ir.Model, names: Collection[str]) -> ir.Model:
    """Copy ``model`` with the named tensors as its outputs, in order of execution."""
    tapped = model.clone()
    outputs = [value for value in all_tensors(tapped.graph) if value.name in names]
    tapped.graph.outputs.clear()
    tapped.graph.outputs.extend(outputs)
    return tapped


def all_tensors(graph: ir.Graph) -> list[ir.Value]:
    """List what is computed, in order of execution, after the inputs: with normalised images these are activations."""
    return [*graph.inputs, *(output for node in graph for output in node.outputs)]


def is_network_input(value: ir.Value) -> bool:
    """Whether only the normalisation lies between the network's input and ``value``."""
    producer = value.producer()
    if producer is None:
        return value.name == INPUT_NAME
    return producer.op_type in ("Cast", "Transpose", "Sub", "Mul")


def _feeds_relu(value: ir.Value) -> bool:
    consumers = value.consumers()
    return len(consumers) == 1 and consumers[0].op_type == "Relu"


def _shortcut_index(node: ir.Node) -> int:
    """Find the operand of ``node`` that is the shortcut.

    It is the identity, which no convolution made; or the downsampling convolution, whose input feeds the block's first
    convolution too.
    """
    for index, value in enumerate(node.inputs):
        assert value is not None
        producer = value.producer()
        if producer is None or producer.op_type != "Conv":
            return index
        source = producer.inputs[0]
        if source is not None and len(source.consumers()) > 1:
            return index
    raise ModelError(
        f"{node.name} adds two tensors of which neither is a shortcut", hint="give a model that `export` wrote"
    )
