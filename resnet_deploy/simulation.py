"""Running graphs of a type that ONNX Runtime's CPU kernels lack, in FP32 with every number rounded to that type.

ONNX Runtime has FP16 and Q/DQ in INT8 and FP8, and of BF16 little more than the cast. A BF16 kernel multiplies numbers
of 8 bits, adds up in FP32 and rounds what it writes: just what FP32 kernels do on constants and activations of 8 bits
whose results are rounded. What differs is the order of additions, and that an engine may fuse nodes and then rounds
less often.

FP16 between integers it has as well, but before 1.30 less exactly than an engine: docs/compatibility.md has figures.
"""

from typing import Final

import numpy as np
import onnx_ir as ir

from resnet_deploy.environment import installed_version
from resnet_deploy.errors import ModelError
from resnet_deploy.onnx_files import bytes_from_onnx, onnx_from_bytes

BFLOAT16_NOTE: Final = "BF16 is simulated: in FP32, with all constants and the result of every node rounded to BF16"
_EXACT_FP16: Final = (1, 30)  # ONNX Runtime's release
_FLOAT: Final = ir.TensorType(ir.DataType.FLOAT)


def simulated(lowered: bytes, *, name: str) -> tuple[bytes, tuple[str, ...]]:
    """Serialize what ONNX Runtime can run of a lowered graph, and say how that differs; ``name`` is for messages.

    Raises:
        ModelError: If ``lowered`` is damaged, or does not say what type a tensor has.
    """
    model = onnx_from_bytes(lowered, name=name)
    if not _has(ir.DataType.BFLOAT16, model.graph):
        return lowered, _doubts(model.graph)
    return bytes_from_onnx(widen_bfloat16(model)), (BFLOAT16_NOTE,)


def widen_bfloat16(model: ir.Model) -> ir.Model:
    """Return ``model`` with its BF16 nodes in FP32, each result rounded to BF16; ``model`` itself if it has none.

    Tensors keep their names: what was BF16 is FP32 of BF16 values, outputs included.

    Raises:
        ModelError: If the graph does not say what type a tensor has.
    """
    if not _has(ir.DataType.BFLOAT16, model.graph):
        return model
    widened = model.clone()
    graph = widened.graph
    for value in graph.initializers.values():
        if value.dtype == ir.DataType.BFLOAT16:
            assert value.const_value is not None
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.type = _FLOAT
    for node in list(graph):
        for output in node.outputs:
            if output.dtype is None:  # it would be left unrounded
                raise ModelError(f"the type of {output.name} is not known", hint="lower what `export` wrote")
            if output.dtype == ir.DataType.BFLOAT16:
                _round(graph, node, output)
    return widened


def _round(graph: ir.Graph, node: ir.Node, output: ir.Value) -> None:
    """Put casts to BF16 and back behind a node, under the name of its output."""
    uses = [(use.node, use.idx) for use in output.uses()]
    name, positions = output.name, [index for index, value in enumerate(graph.outputs) if value is output]
    output.name, output.type = f"{name}.exact", _FLOAT
    if node.op_type == "Cast":  # to BF16
        node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    narrow = _cast(output, ir.DataType.BFLOAT16, f"{name}.bfloat16")
    wide = _cast(narrow.outputs[0], ir.DataType.FLOAT, f"{name}.rounded")
    wide.outputs[0].name = name
    graph.insert_after(node, [narrow, wide])
    for reader, index in uses:
        reader.replace_input_with(index, wide.outputs[0])
    for position in positions:
        graph.outputs[position] = wide.outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": dtype}, name=name)
    (output,) = node.outputs
    output.name, output.type, output.shape = name, ir.TensorType(dtype), value.shape
    return node


def _doubts(graph: ir.Graph) -> tuple[str, ...]:
    """Say that ONNX Runtime is too old to simulate FP16 between integers; nothing where it is not, or there is none."""
    version = installed_version("onnxruntime") or installed_version("onnxruntime-gpu") or ""
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    is_exact = not (major.isdigit() and minor.isdigit()) or (int(major), int(minor)) >= _EXACT_FP16
    if is_exact or not (_has(ir.DataType.FLOAT16, graph) and any(node.op_type == "QuantizeLinear" for node in graph)):
        return ()
    return (
        f"simulated by ONNX Runtime {version}, which rounds FP16 more than 1.30 does: the engine is nearer to FP32",
    )


def _has(dtype: ir.DataType, graph: ir.Graph) -> bool:
    constants = any(value.dtype == dtype for value in graph.initializers.values())
    return constants or any(output.dtype == dtype for node in graph for output in node.outputs)
