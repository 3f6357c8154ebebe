"""What precision a graph holds its layers and activations in, read from the graph itself."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from resnet_deploy.quantize.float8 import FLOAT8, LARGEST
from resnet_deploy.quantize.graph import constant, tensor_name, weighted_nodes

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from resnet_deploy.quantize.observers import Histogram
    from resnet_deploy.quantize.ranges import Range

# A cast keeps values, a maximum and a reshape pick among them: what comes out lies in the range of what goes in.
_KEEPS_RANGE: Final = ("MaxPool", "Flatten", "Cast", "QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Layer:
    """How the weights of one convolution or of the classifier are stored.

    Attributes:
        name: Of the node.
        operator: ``Conv`` or ``Gemm``.
        shape: Of the weights, output channels first.
        dtype: Data type they are stored in.
        bits: How many of its bits they use: 7 where full-range products would saturate.
        scales: How many scales they have: 0 in floating point, 1 per tensor, else one per output channel.
        smallest_scale: Of those; None without.
        largest_scale: Likewise.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    dtype: str
    bits: int
    scales: int = 0
    smallest_scale: float | None = None
    largest_scale: float | None = None

    @property
    def precision(self) -> str:
        """Data type and grid in words."""
        if not self.scales:
            return self.dtype
        bits = f", {self.bits} bits used" if self.bits < 8 else ""
        return f"{self.dtype}{bits}, {'per tensor' if self.scales == 1 else 'per channel'}"


@dataclass(frozen=True)
class Grid:
    """The integers, or the FP8 numbers, that one activation is put on.

    Attributes:
        tensor: Name of the activation.
        source: Name of the observed tensor whose range it takes; empty where none is known.
        dtype: Data type of these.
        scale: Step of the grid; value of the FP8 number 1.
        zero_point: Integer that stands for zero.
        low, high: Values of the first and the last of them.
    """

    tensor: str
    source: str
    dtype: str
    scale: float
    zero_point: int
    low: float
    high: float


def read_layers(model: "ir.Model") -> tuple[Layer, ...]:
    """List the weighted layers in order of execution, exported or lowered."""
    return tuple(map(_layer, weighted_nodes(model.graph)))


def read_grids(model: "ir.Model", observed: Collection[str] = ()) -> tuple[Grid, ...]:
    """List the quantized activations in order of execution; ``observed`` names the tensors with known ranges."""
    return tuple(_grid(node, observed) for node in model.graph if node.op_type == "QuantizeLinear")


def used_bits(integers: "NDArray[Any]") -> int:
    """Bits of symmetric INT8 weights that are used: 7 where no magnitude exceeds 63, else 8; 8 of FP8."""
    if integers.dtype == FLOAT8:
        return 8
    return 7 if np.abs(integers.astype(np.int16)).max() <= 63 else 8


def clipped_shares(histograms: "Mapping[str, Histogram]", chosen: "Mapping[str, Range]") -> dict[str, float]:
    """Share of each tensor's observed values beyond its chosen range, by tensor name.

    Counted are the bins that lie beyond it as a whole, one that begins at its very end included: off from the truth by
    no more than what one bin at either end holds.
    """
    return {name: _clipped_share(histograms[name], chosen[name]) for name in chosen if name in histograms}


def _clipped_share(histogram: "Histogram", chosen: "Range") -> float:
    half = len(histogram.counts) // 2
    inner_edges = np.arange(half) * histogram.width  # of the bins on either side of zero
    above, below = histogram.counts[half:], histogram.counts[half:0:-1]
    clipped = 0
    if chosen.high < histogram.high:
        clipped += int(above[inner_edges >= chosen.high].sum())
    if chosen.low > histogram.low:
        clipped += int(below[1:][inner_edges[1:] >= -chosen.low].sum())
    return clipped / histogram.total


def _layer(node: "ir.Node") -> Layer:
    producer = node.inputs[1].producer() if node.inputs[1] is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        weights = constant(node.inputs[1])
        return Layer(str(node.name), node.op_type, weights.shape, weights.dtype.name, 8 * weights.dtype.itemsize)
    weights, scales = constant(producer.inputs[0]), constant(producer.inputs[1])
    return Layer(
        name=str(node.name),
        operator=node.op_type,
        shape=weights.shape,
        dtype=weights.dtype.name,
        bits=used_bits(weights),
        scales=scales.size,
        smallest_scale=float(scales.min()),
        largest_scale=float(scales.max()),
    )


def _grid(quantize: "ir.Node", observed: Collection[str]) -> Grid:
    scale, zero_point = float(constant(quantize.inputs[1])), constant(quantize.inputs[2])
    if zero_point.dtype == FLOAT8:
        first, last = -LARGEST, LARGEST
    else:
        limits = np.iinfo(zero_point.dtype.name)
        first, last = limits.min - int(zero_point), limits.max - int(zero_point)
    return Grid(
        tensor=tensor_name(quantize.inputs[0]),
        source=_source(quantize.inputs[0], observed),
        dtype=zero_point.dtype.name,
        scale=scale,
        zero_point=int(zero_point),
        low=first * scale,
        high=last * scale,
    )


def _source(value: "ir.Value | None", observed: Collection[str]) -> str:
    """Walk up to the tensor that was observed."""
    while value is not None:
        if value.name in observed:
            return str(value.name)
        producer = value.producer()
        if producer is None or producer.op_type not in _KEEPS_RANGE:
            break
        value = producer.inputs[0]
    return ""
