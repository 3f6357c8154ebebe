"""One form for the kernels of a compiled engine, whoever describes them: what runs, on what types, what is fused."""

from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal[
    "convolution",
    "matrix multiply",
    "pooling",
    "reduction",
    "quantize",
    "dequantize",
    "reformat",
    "pointwise",
    "no-op",
    "other",
]

WEIGHTED: Final[tuple[Kind, ...]] = ("convolution", "matrix multiply")
FLOATS: Final = ("float32", "float16", "bfloat16")
BATCH: Final = -1  # stands for the batch size in a shape
_ITEM_BYTES: Final = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "float8_e4m3fn": 1,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


@dataclass(frozen=True)
class Tensor:
    """What a kernel reads or writes in the memory of the device.

    Attributes:
        name: As the compiler calls it.
        dtype: ``float32``, ``float16``, ``int8``, ...; empty where the source does not say.
        shape: ``BATCH`` where a dimension is the batch size; empty where the source does not say.
        layout: How it lies in memory, in the source's words.
        constant: Whether it is part of the engine: weights, biases, scales.
    """

    name: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    layout: str = ""
    constant: bool = False

    def bytes_at(self, batch: int) -> int | None:
        """Size in bytes at a batch size; None where type or shape are not known."""
        if self.dtype not in _ITEM_BYTES or not self.shape:
            return None
        size = _ITEM_BYTES[self.dtype]
        for dimension in self.shape:
            size *= batch if dimension == BATCH else dimension
        return size


@dataclass(frozen=True)
class LayerInfo:
    """One kernel.

    Attributes:
        name: As the compiler calls it.
        kind: What it mainly does; ``no-op`` launches nothing.
        inputs: What it reads, constants included.
        outputs: What it writes.
        fused: What it does besides: ``bias``, ``add`` (a residual sum), ``relu``, ``quantize``, ``pooling``, ...
        nodes: Nodes of the lowered graph that it stands for, where the source names them.
        tactic: Name of the implementation, where the source has one.
    """

    name: str
    kind: Kind
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    fused: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    tactic: str = ""

    @property
    def activations(self) -> tuple[Tensor, ...]:
        """Inputs that are not part of the engine."""
        return tuple(tensor for tensor in self.inputs if not tensor.constant)

    def traffic_bytes(self, batch: int) -> int | None:
        """Bytes that it reads and writes at a batch size, constants left out; None where not all sizes are known."""
        sizes = [tensor.bytes_at(batch) for tensor in (*self.activations, *self.outputs)]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    @property
    def weights_dtype(self) -> str:
        """Data type of the weights of a weighted layer; empty where the source does not say."""
        ranked = sorted((one for one in self.inputs if one.constant), key=lambda one: one.bytes_at(1) or 0)
        return ranked[-1].dtype if ranked else ""

    @property
    def types(self) -> str:
        """Operand and result types: ``int8 x int8 -> float16``."""
        operands = [tensor.dtype or "?" for tensor in self.activations]
        if self.kind in WEIGHTED:
            operands = [operands[0] if operands else "?", self.weights_dtype or "?"]
        results = dict.fromkeys(tensor.dtype or "?" for tensor in self.outputs)
        return f"{' x '.join(operands if self.kind in WEIGHTED else dict.fromkeys(operands))} -> {', '.join(results)}"


@dataclass(frozen=True)
class CompiledGraph:
    """Everything that one engine launches, in order.

    Attributes:
        source: What told so, such as ``the plan``.
        layers: The kernels.
        targets: Compute capabilities that this holds for, where the source names them.
        constants_bytes: Size of weights, biases and scales; None where the source does not say.
    """

    source: str
    layers: tuple[LayerInfo, ...]
    targets: tuple[str, ...] = ()
    constants_bytes: int | None = None

    @property
    def kernels(self) -> tuple[LayerInfo, ...]:
        """What is launched: all but no-ops."""
        return tuple(layer for layer in self.layers if layer.kind != "no-op")

    def weighted_types(self) -> dict[str, int]:
        """Count convolutions and matrix multiplications by their types."""
        return dict(Counter(layer.types for layer in self.layers if layer.kind in WEIGHTED))

    def fused_counts(self) -> dict[str, int]:
        """Count what is fused into convolutions and matrix multiplications."""
        return dict(Counter(what for layer in self.layers if layer.kind in WEIGHTED for what in layer.fused))

    def activation_bytes(self, batch: int) -> int | None:
        """Bytes that kernels read and write at a batch size, constants left out; None where not all sizes are known.

        A tensor counts each time that a kernel reads or writes it. A proxy for memory traffic: caches are left out of
        account, and so is what a kernel reads again.
        """
        sizes = [layer.traffic_bytes(batch) for layer in self.kernels]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None
