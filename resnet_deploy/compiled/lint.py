"""Whether a compiled engine is what its precision is meant to become: findings, each with its kernel and what to do.

What is expected is not the same everywhere:

=========================  =======================================  ==================================================
                           ``tensorrt``                             ``tensorrt-rtx``
=========================  =======================================  ==================================================
FP32, FP16                 convolution, bias, sum and ReLU are one kernel, in one data type; logits are FP32
INT8: operands             INT8 x INT8, the classifier FP16         the same
INT8: convolution's result INT8 where integers are read next        FP16
INT8: quantization         inside the convolution before it         a kernel after each convolution, whose bias, sum and
                                                                    ReLU are in it
INT8: dequantization       inside the convolution after it          the same
=========================  =======================================  ==================================================

Everywhere, what comes before the first convolution is free: normalisation is in FP32, and its result is quantized. The
column of ``tensorrt`` is what its documentation promises and what engines of 8.x in trt-engine-explorer show; that of
``tensorrt-rtx`` was read off plans of 1.7.1. Neither says that an engine is fast: that is measured.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from resnet_deploy.compiled.layers import BATCH, FLOATS, WEIGHTED, CompiledGraph, LayerInfo
from resnet_deploy.specs import Precision

QUANTIZES_APART: Final = ("tensorrt-rtx",)  # backends that never quantize inside a convolution
FLAVOURS: Final = ("tensorrt", *QUANTIZES_APART)
_NODES: Final = 3  # that a kernel is called by in print
_DTYPE: Final[dict[Precision, str]] = {"fp32": "float32", "fp16": "float16", "int8": "float16"}
PRECISIONS: Final = tuple(_DTYPE)  # what is expected of others is not known


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        rule: Which expectation it breaks.
        layer: The kernel, by the nodes of the lowered graph that it stands for where those are known.
        problem: What is so, and what it costs.
        advice: What to do about it.
    """

    rule: str
    layer: str
    problem: str
    advice: str


@dataclass(frozen=True)
class Expected:
    """What an engine is held against.

    Attributes:
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        precision: What was asked for.
        in_float: Layers of an INT8 engine that were left in floating point on purpose, by name of their node.
    """

    backend: str
    precision: Precision
    in_float: frozenset[str] = frozenset()


def lint(graph: CompiledGraph, expected: Expected) -> tuple[Finding, ...]:
    """List what is wrong, in order of the kernels; none where all is as expected.

    A graph without a weighted layer is a finding itself: nothing was looked at.
    """
    weighted = [layer for layer in graph.kernels if layer.kind in WEIGHTED]
    if not weighted:
        return (Finding("weighted layers", graph.source, "it has no convolution", "build the engine again"),)
    flow = _Flow(graph.layers)
    findings: list[Finding] = []
    for position, layer in enumerate(graph.layers):
        if layer.kind in WEIGHTED:
            findings += _weighted_findings(layer, expected, is_classifier=layer is weighted[-1])
        elif layer.kind != "no-op" and not flow.is_input_path(position) and not flow.is_output(position):
            findings += _other_findings(layer, expected, flow.writers(position))
    return tuple(findings)


class _Flow:
    """Where a kernel stands: before the first weighted layer, at the network's end, or in between.

    Kernels are known by their position, for a compiler gives one name to several tensors, one after another.
    """

    def __init__(self, layers: tuple[LayerInfo, ...]) -> None:
        self._layers = layers
        self._sources: list[list[int]] = []  # positions of the kernels that wrote what a kernel reads
        self._inner: list[bool] = []  # whether it depends on a weighted layer
        self._read: set[int] = set()
        written: dict[str, int] = {}
        for position, layer in enumerate(layers):
            sources = [written[tensor.name] for tensor in layer.activations if tensor.name in written]
            self._sources.append(sources)
            self._read.update(sources)
            self._inner.append(layer.kind in WEIGHTED or any(self._inner[source] for source in sources))
            written |= {tensor.name: position for tensor in layer.outputs}

    def is_input_path(self, position: int) -> bool:
        return not self._inner[position]

    def is_output(self, position: int) -> bool:
        return bool(self._layers[position].outputs) and position not in self._read

    def writers(self, position: int) -> list[LayerInfo]:
        """Kernels that write what the one at ``position`` reads, seen through layout changes."""
        found: list[LayerInfo] = []
        pending = list(self._sources[position])
        while pending:
            source = pending.pop()  # always an earlier position: this ends
            if self._layers[source].kind in ("reformat", "no-op"):
                pending += self._sources[source]
            else:
                found.append(self._layers[source])
        return found


def _weighted_findings(layer: LayerInfo, expected: Expected, *, is_classifier: bool) -> Iterator[Finding]:
    name = layer_name(layer)
    body = _DTYPE[expected.precision]
    integer = expected.precision == "int8" and not is_classifier and not expected.in_float.intersection(layer.nodes)
    operand = "int8" if integer else body
    reads = {tensor.dtype for tensor in layer.activations[:1]} | ({layer.weights_dtype} - {""})
    if reads != {operand}:
        kind = "the classifier" if is_classifier else "it"
        advice = "see which Q/DQ it reads: both operands need one" if integer else "check the data types of the graph"
        yield Finding("operands", name, f"{kind} computes {layer.types}, where {operand} is expected", advice)
    allowed = {body, "float32"} if is_classifier else {body}
    if expected.precision == "int8" and not is_classifier:
        allowed.add("int8")  # also behind a layer in floating point, whose result may be quantized in it
    writes = {tensor.dtype for tensor in layer.outputs}
    if not writes <= allowed:
        advice = _WIDE[expected.backend] if integer else "check where the graph casts"
        yield Finding("results", name, f"{layer.types}: its result is wider than {body}{_cost(layer)}", advice)


_WIDE: Final = {
    "tensorrt-rtx": "give its weights one scale per tensor: with one per channel nothing is fused into it",
    "tensorrt": "see what reads it: Q/DQ in FP16, and a quantized shortcut where a sum follows",
}


def _other_findings(layer: LayerInfo, expected: Expected, writers: list[LayerInfo]) -> Iterator[Finding]:
    if "add" in layer.fused:
        yield _finding("residual sums", layer, "the sum is in no convolution", "see Q/DQ and types of its operands")
    elif expected.precision != "int8" and layer.kind in ("quantize", "dequantize"):
        yield _finding("Q/DQ", layer, "it quantizes in an engine without INT8", "build from a graph without Q/DQ")
    elif layer.kind == "quantize":
        yield from _quantize_findings(layer, expected, writers)
    elif layer.kind == "dequantize":
        yield _finding(
            "Q/DQ", layer, "it dequantizes, by itself", "read the tensor in FP16 before its Q, or move the DQ"
        )
    elif layer.kind == "reformat":
        yield from _reformat_findings(layer)
    elif layer.kind == "pointwise":
        yield from _pointwise_findings(layer)
    if expected.precision != "fp32" and any(tensor.dtype == "float32" for tensor in layer.outputs):
        yield _finding("FP32", layer, f"it writes FP32: {layer.types}", "check where the graph casts")


def _quantize_findings(layer: LayerInfo, expected: Expected, writers: list[LayerInfo]) -> Iterator[Finding]:
    if expected.backend not in QUANTIZES_APART:
        advice = (
            "the documented placement fuses it: quantize what convolutions read and the shortcut of sums, no results"
        )
        yield _finding("Q/DQ", layer, "it quantizes, by itself", advice)
        return
    if any(tensor.dtype in FLOATS for tensor in layer.outputs):
        yield _finding("Q/DQ", layer, "it rounds to integers and back", "leave what only sums read without Q/DQ")
    for writer in writers:
        if writer.kind in WEIGHTED and "relu" not in writer.fused:
            problem = f"it quantizes what {layer_name(writer)} gives before its ReLU"
            yield _finding("Q/DQ", layer, problem, "quantize behind the ReLU")


def _reformat_findings(layer: LayerInfo) -> Iterator[Finding]:
    reads, writes = ({tensor.dtype for tensor in tensors} for tensors in (layer.activations, layer.outputs))
    if ("int8" in reads) != ("int8" in writes):
        yield _finding(
            "reformat", layer, f"it does nothing but convert {layer.types}", "quantize both of its sides alike"
        )


def _pointwise_findings(layer: LayerInfo) -> Iterator[Finding]:
    """Whatever is computed element by element behind a convolution could be part of one."""
    what = ", ".join(layer.fused) or "arithmetic"
    advice = "see Q/DQ and types of the convolution before it"
    yield _finding("pointwise", layer, f"a kernel of its own for {what}", advice)


def _finding(rule: str, layer: LayerInfo, problem: str, advice: str) -> Finding:
    return Finding(rule, layer_name(layer), f"{problem}{_cost(layer)}", advice)


def _cost(layer: LayerInfo) -> str:
    size = layer.traffic_bytes(1)
    per_image = " per image" if any(BATCH in tensor.shape for tensor in layer.outputs) else ""
    return f", {size / 1e6:.3g} MB of memory traffic{per_image}" if size else ""


def layer_name(layer: LayerInfo) -> str:
    """What a kernel is called in print: by the nodes that it computes, without those that dequantize its operands."""
    dropped = ".dequantize" if layer.kind in WEIGHTED else ".weight.dequantize"
    nodes = [node for node in layer.nodes if not node.endswith(dropped)]
    more = f" and {len(nodes) - _NODES} more" if len(nodes) > _NODES else ""
    return " + ".join(nodes[:_NODES]) + more or layer.name
