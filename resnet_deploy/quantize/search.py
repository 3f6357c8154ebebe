"""Giving layers back their precision until the accuracy is within a budget, at the least cost in speed.

First each layer, and each residual block as a whole, is tried alone in floating point: what that gains in the logits,
and what it costs. Then they are given back one after another, the most gained for the least cost first, and every step
is measured again, for gains do not add up. No measuring happens here: the caller brings it.
"""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from resnet_deploy.errors import AccuracyError

if TYPE_CHECKING:
    import onnx_ir as ir

    from resnet_deploy.protocols import Progress

# Of the whole. Medians of a few calls are no better than that: a layer that seems to cost nothing would come first,
# however little it gains.
_LEAST_COST: Final = 0.02


class Unit(msgspec.Struct, frozen=True):
    """Nodes that are given back their precision together: a layer, or a residual block."""

    name: str
    nodes: tuple[str, ...]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured with some nodes in floating point.

    Attributes:
        in_float: Names of the nodes.
        noise: Power of the difference from the FP32 model's logits over the power of these.
        cost: Of a call: seconds, or, where the backend cannot run here, multiply-adds in floating point.
        drop: Points of accuracy lost against the FP32 model; absent where only noise and cost were measured.
    """

    in_float: tuple[str, ...]
    noise: float
    cost: float
    drop: float | None = None


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """A search and its outcome.

    Attributes:
        max_drop: Points of accuracy that may be lost.
        metric: What is lost: ``top-1``, or ``agreement`` with the FP32 model where images have no labels.
        cost: Unit of the points' cost: ``seconds`` or ``multiply-adds``.
        dataset: Name of the folder of images that the drop was measured on.
        dataset_sha256: Their digest, as ``ImageDataset.digest``.
        images: How many they were, the damaged ones left out.
        sensitivity: Each unit alone in floating point, by name; empty where nothing had to be given back.
        steps: From everything on integers to what keeps to the budget; the last is the engine.

    Raises:
        ValueError: If there is no step.
    """

    max_drop: float
    metric: str
    cost: str
    dataset: str
    dataset_sha256: str
    images: int
    sensitivity: dict[str, Point]
    steps: tuple[Point, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("a search of no step")

    @property
    def in_float(self) -> tuple[str, ...]:
        """Nodes that the engine keeps in floating point."""
        return self.steps[-1].in_float

    @property
    def front(self) -> tuple[Point, ...]:
        """The steps that no other beats in both accuracy and cost."""
        return tuple(point for point in self.steps if not any(_beats(other, point) for other in self.steps))


Measure = Callable[[Collection[str], bool], Point]


def find_units(graph: "ir.Graph") -> list[Unit]:
    """List the layers, then the residual blocks, each in order of execution.

    The classifier takes the pooling before it along. A block is known by the name of its sum: ``layer1.0.add`` closes
    everything under ``layer1.0``.
    """
    names = [str(node.name) for node in graph]
    pooling = tuple(str(node.name) for node in graph if node.op_type in ("GlobalAveragePool", "Flatten"))
    layers = [
        Unit(str(node.name), (str(node.name), *(pooling if node.op_type == "Gemm" else ())))
        for node in graph
        if node.op_type in ("Conv", "Gemm")
    ]
    blocks = []
    for node in graph:
        if node.op_type == "Add":
            block = str(node.name).rpartition(".")[0]
            blocks.append(Unit(block, tuple(name for name in names if name.startswith(f"{block}."))))
    return layers + blocks


def search(
    units: Sequence[Unit], measure: Measure, max_drop: float, progress: "Progress"
) -> tuple[dict[str, Point], tuple[Point, ...]]:
    """Give units back their precision until the drop is within ``max_drop`` points.

    Args:
        units: What may be given back.
        measure: Measures with the named nodes in floating point; the drop too, where the flag is set.
        max_drop: Points of accuracy that may be lost.
        progress: Counts the units tried.

    Returns:
        Each unit alone (nothing, where the first step was within the budget), and the steps.

    Raises:
        AccuracyError: If the drop is beyond the budget with every unit in floating point.
    """
    steps = [measure((), True)]
    if _keeps(steps[0], max_drop):
        return {}, tuple(steps)
    tried = progress.track(units, "trying layers in floating point", len(units))
    alone = {unit.name: measure(unit.nodes, False) for unit in tried}
    order = sorted(units, key=lambda unit: _worth(alone[unit.name], steps[0]), reverse=True)
    kept: dict[str, None] = {}
    for unit in order:
        if kept.keys() >= set(unit.nodes):
            continue
        kept |= dict.fromkeys(unit.nodes)
        steps.append(measure(tuple(kept), True))
        if _keeps(steps[-1], max_drop):
            return alone, tuple(steps)
    raise AccuracyError(
        f"{steps[-1].drop:.2f} points are lost even with every layer in floating point, {max_drop:g} are allowed",
        hint="allow more with --max-drop, or build with --fp16",
    )


def _keeps(point: Point, max_drop: float) -> bool:
    return point.drop is not None and point.drop <= max_drop


def _worth(alone: Point, nothing: Point) -> float:
    """Share of the noise that a unit takes away, over the share of the cost that it adds."""
    gained = (nothing.noise - alone.noise) / nothing.noise if nothing.noise else 0.0
    added = (alone.cost - nothing.cost) / nothing.cost if nothing.cost else alone.cost
    return gained / max(added, _LEAST_COST)


def _beats(one: Point, other: Point) -> bool:
    if one.drop is None or other.drop is None:
        return False
    no_worse = one.drop <= other.drop and one.cost <= other.cost
    return no_worse and (one.drop, one.cost) != (other.drop, other.cost)
