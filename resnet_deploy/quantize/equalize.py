"""Cross-layer equalization: rescale channels so that layers quantize well, without changing what the network computes.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1. For a positive
factor s of each channel,

    f(W x + b) = s f(W/s x + b/s)        f: ReLU, pooling, a sum of tensors that share s, a reshape

so a channel may be divided by s where it is made and multiplied by s where it is read. Tensors that such operations
connect share their factors and form a *group*: what flows between two convolutions of a block, or the whole residual
stream of a stage, from the stem or the downsampling convolution to the classifier or the next stage. With r1 and r2 the
ranges of a channel where it is made (rows of weights, and bias) and where it is read (columns of weights), each over
the range of its whole tensor,

    s = sqrt(r1 / r2)        gives        r1 / s = r2 s = sqrt(r1 r2)

which is the paper's equation 11. A layer lies between two groups, so groups take turns until their factors settle;
where several layers make or read a group, the largest of their relative ranges counts.

Factors are rounded to powers of two. Then nothing is rounded when weights are rescaled, nor when the network runs:
short of overflow and of numbers too small to be normal, its logits are the same to the last bit. A group that is within
a factor of two of balance is left alone. No image is looked at, so that calibration can be parted and merged; and what
weights alone say of so small a difference is wrong as often as right: rescaled all the same, the network trained on
digits loses 1 to 3 dB.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from resnet_deploy.environment import compute_threads
from resnet_deploy.errors import ModelError
from resnet_deploy.quantize.graph import constant, is_network_input, tensor_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Exponents = NDArray[np.float64]  # binary logarithms, one for each channel

_HOMOGENEOUS: Final = ("Relu", "Add", "MaxPool", "GlobalAveragePool", "Flatten")
_WEIGHTED: Final = ("Conv", "Gemm")
_FLOOR: Final = -24.0  # a channel 2**24 below its tensor's largest is as good as dead, and is not blown up
_SETTLED: Final = 0.05  # of a power of two
_SWEEPS: Final = 100
_BALANCED: Final = 1  # power of two
_PIECE: Final = 1 << 17  # kernels whose sums with factors stay in a core's cache
# Kernels' ranges are held in 128ths of a power of two, as integers of 16 bits, with which each turn takes half as long.
# Those of float32 lie between -149 and 128 powers of two; with factors, taken for 96 where they are larger, none
# overflows. A kernel of zeros counts as one of the smallest number.
_STEPS: Final = 128
_EXPONENTS: Final = (-149, 128)
_MOST: Final = 96


@dataclass(frozen=True)
class GroupReport:
    """What was done to the tensors that share their channels' factors.

    Attributes:
        makers: Layers whose outputs were divided.
        readers: Layers whose inputs were multiplied.
        channels: How many there are.
        smallest, largest: Binary exponents of the factors.
    """

    makers: tuple[str, ...]
    readers: tuple[str, ...]
    channels: int
    smallest: int
    largest: int


@dataclass(frozen=True)
class EqualizationReport:
    """What was done to a graph.

    Attributes:
        groups: The groups that were rescaled, in order of execution.
        skipped: The other groups, by their first tensor, each with the reason.
    """

    groups: tuple[GroupReport, ...]
    skipped: dict[str, str]


def equalize(model: ir.Model) -> tuple[ir.Model, EqualizationReport]:
    """Return a copy of the FP32 ``model`` with its channels rescaled, and what was done.

    The copy keeps the model card: it is the same network of the same weights, written differently.

    Raises:
        ModelError: If a weight is not finite.
    """
    equalized = model.clone()
    groups, skipped = _find_groups(equalized.graph)
    nodes = list(dict.fromkeys(node for group in groups for node in (*group.makers, *group.readers)))
    with ThreadPoolExecutor(compute_threads(), thread_name_prefix="equalize") as pool:
        layers = dict(zip(nodes, pool.map(_Layer, nodes), strict=True))
    for _ in range(_SWEEPS):
        moves = [group.settle(layers) for group in groups]
        if max(moves, default=0.0) < _SETTLED:
            break
    reports = []
    for group in groups:
        if np.abs(group.factors).max() <= _BALANCED:
            skipped[group.name] = "its channels are within a factor of two of balance"
        else:
            reports.append(group.apply())
    return equalized, EqualizationReport(tuple(reports), skipped)


class _Layer:
    """Ranges of a convolution or classifier, as binary logarithms, with the factors so far taken into account."""

    def __init__(self, node: ir.Node) -> None:
        weights = constant(node.inputs[1])
        largest = _largest_magnitudes(weights)
        for value, magnitudes in ((node.inputs[1], largest), *((value, constant(value)) for value in node.inputs[2:])):
            assert value is not None
            if not np.isfinite(magnitudes).all():
                raise ModelError(f"{value.name} has a value that is not finite", hint="check the weights")
        with np.errstate(divide="ignore"):
            self._weights = _steps(np.log2(largest), *_EXPONENTS)  # (out, in)
            self._bias = np.log2(np.abs(constant(node.inputs[2]).astype(np.float64))) if len(node.inputs) > 2 else None
        rows = max(1, _PIECE // weights.shape[1])
        self._pieces = [slice(start, start + rows) for start in range(0, len(weights), rows)]
        self.divided: Exponents = np.zeros(weights.shape[0])
        self.multiplied: Exponents = np.zeros(weights.shape[1])

    def made(self) -> "Exponents":
        """Range of each output channel, of weights or bias, over the largest of them."""
        factors = _steps(self.multiplied, -_MOST, _MOST)
        largest = np.concatenate([(self._weights[rows] + factors).max(1) for rows in self._pieces]) / _STEPS
        ranges = _relative(largest - self.divided)
        return ranges if self._bias is None else np.maximum(ranges, _relative(self._bias - self.divided))

    def read(self) -> "Exponents":
        """Range of each input channel over the largest of them."""
        factors = _steps(self.divided, -_MOST, _MOST)[:, None]
        largest = np.max([(self._weights[rows] - factors[rows]).max(0) for rows in self._pieces], axis=0) / _STEPS
        return _relative(largest + self.multiplied)


class _Group:
    """Layers that make and read tensors of common factors."""

    def __init__(self, name: str, makers: list[ir.Node], readers: list[ir.Node]) -> None:
        self.name, self.makers, self.readers = name, makers, readers
        self.exponents: Exponents = np.zeros(constant(makers[0].inputs[1]).shape[0])

    def settle(self, layers: dict[ir.Node, _Layer]) -> float:
        """Move the factors to where both sides have the same ranges; return the largest move."""
        made = _largest([layers[node].made() for node in self.makers])
        read = _largest([layers[node].read() for node in self.readers])
        self.exponents = self.exponents + (made - read) / 2
        for node in self.makers:
            layers[node].divided = self.exponents
        for node in self.readers:
            layers[node].multiplied = self.exponents
        return float(np.abs(made - read).max()) / 2

    @property
    def factors(self) -> "NDArray[np.int64]":
        """The nearest powers of two."""
        return np.rint(self.exponents).astype(np.int64)

    def apply(self) -> GroupReport:
        """Rescale the layers."""
        rounded = self.factors
        for node in self.makers:
            for index in range(1, len(node.inputs)):
                _rescale(node, index, -rounded, axis=0)
        for node in self.readers:
            _rescale(node, 1, rounded, axis=1)
        names = [tuple(str(node.name) for node in nodes) for nodes in (self.makers, self.readers)]
        return GroupReport(names[0], names[1], len(rounded), int(rounded.min()), int(rounded.max()))


def _find_groups(graph: ir.Graph) -> tuple[list[_Group], dict[str, str]]:
    """Find the groups, in order of execution, and what is left out."""
    groups, skipped = [], {}
    for tensors in _connected(graph):
        makers = [node for node in (tensor.producer() for tensor in tensors) if node and node.op_type in _WEIGHTED]
        readers = [use.node for tensor in tensors for use in tensor.uses() if use.node.op_type in _WEIGHTED]
        reason = _reason_against(tensors, makers, readers)
        if not reason and not (_any_nonzero(makers, 1, 2) and _any_nonzero(readers, 1)):
            reason = "its channels are all zero, or read by zeros"
        if not reason:
            groups.append(_Group(tensor_name(tensors[0]), makers, readers))
        elif makers or readers:
            first = next(tensor for tensor in tensors if tensor.const_value is None)
            skipped[tensor_name(first)] = reason
    return groups, skipped


def _connected(graph: ir.Graph) -> list[list[ir.Value]]:
    """Part the activations into those that homogeneous operations connect, and constants that these read with them."""
    group_of: dict[ir.Value, list[ir.Value]] = {}
    for node in graph:
        for value in (*(node.inputs if node.op_type in _HOMOGENEOUS else node.inputs[:1]), *node.outputs):
            if value is not None:
                group_of.setdefault(value, [value])
        if node.op_type in _HOMOGENEOUS:
            for value in node.inputs:
                assert value is not None
                one, other = group_of[value], group_of[node.outputs[0]]
                if one is not other:
                    one += other
                    group_of |= dict.fromkeys(other, one)
    return list({id(group): group for group in group_of.values()}.values())


def _reason_against(tensors: list[ir.Value], makers: list[ir.Node], readers: list[ir.Node]) -> str:
    """Say why channels cannot be rescaled; empty if they can."""
    if any(tensor.is_graph_output() for tensor in tensors):
        return "logits are what the network promises"
    if any(tensor.const_value is not None for tensor in tensors):
        return "a constant is added to it"
    if any(is_network_input(tensor) for tensor in tensors):
        return "the network's input is what it is given"
    made_otherwise = [tensor.producer() for tensor in tensors if tensor.producer() not in makers]
    if any(node is None or node.op_type not in _HOMOGENEOUS for node in made_otherwise):
        return "it is made by something that a factor does not pass through"
    if any(use.node.op_type not in (*_HOMOGENEOUS, *_WEIGHTED) for tensor in tensors for use in tensor.uses()):
        return "it is read by something that a factor does not pass through"
    return "" if readers else "nothing reads it"


def _any_nonzero(layers: list[ir.Node], *indices: int) -> bool:
    constants = (constant(layer.inputs[index]) for layer in layers for index in indices if index < len(layer.inputs))
    return any(channel.any() for array in constants for channel in array)  # the first channel usually tells


def _largest_magnitudes(weights: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Largest magnitude in each kernel, (out, in); NaN where one is NaN.

    A kernel's few values are compared place by place: a maximum over a short last axis takes several times as long.
    """
    kernels = weights.reshape(*weights.shape[:2], -1)
    largest: NDArray[np.float32] = np.abs(kernels[:, :, 0])
    for place in range(1, kernels.shape[2]):
        np.maximum(largest, np.abs(kernels[:, :, place]), out=largest)
    return largest


def _steps(exponents: "NDArray[np.floating]", low: int, high: int) -> "NDArray[np.int16]":
    """Round to ``_STEPS`` for a power of two; what lies beyond ``low`` or ``high`` is taken for these."""
    steps: NDArray[np.int16] = np.rint(np.clip(exponents, low, high) * _STEPS).astype(np.int16)
    return steps


def _relative(exponents: "Exponents") -> "Exponents":
    largest = exponents.max()
    return exponents - largest if np.isfinite(largest) else exponents


def _largest(ranges: "list[Exponents]") -> "Exponents":
    most: Exponents = np.maximum(np.max(ranges, axis=0), _FLOOR)
    return most


def _rescale(node: ir.Node, index: int, exponents: "NDArray[np.int64]", *, axis: int) -> None:
    """Multiply a constant by powers of two along an axis; exact, short of overflow and underflow."""
    value, array = node.inputs[index], constant(node.inputs[index])
    assert value is not None
    shape = [1] * array.ndim
    shape[axis] = -1
    value.const_value = ir.tensor(np.ldexp(array, exponents.reshape(shape)).astype(np.float32), name=value.name)
