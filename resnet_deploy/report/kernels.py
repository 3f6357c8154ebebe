"""The kernels of a compiled engine, for the terminal."""

from typing import TYPE_CHECKING

from resnet_deploy.compiled.lint import layer_name
from resnet_deploy.report import wording
from resnet_deploy.report.details import print_table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from resnet_deploy.compiled.layers import CompiledGraph, LayerInfo
    from resnet_deploy.compiled.lint import Finding


def kernel_facts(graph: "CompiledGraph", batch: int) -> list[tuple[str, str]]:
    """Describe what is launched; traffic is that of an image in a batch."""
    fused = ", ".join(f"{what} in {count}" for what, count in graph.fused_counts().items())
    size = graph.activation_bytes(batch)
    traffic = f"{size / batch / 1e6:.1f} MB of activations per image at batch {batch}; no timing" if size else ""
    return [
        ("kernels", f"{len(graph.kernels)} by {graph.source}"),
        ("multiplied", "; ".join(f"{count} {types}" for types, count in graph.weighted_types().items())),
        ("fused", fused),
        ("constants", f"{graph.constants_bytes / 1e6:.1f} MB" if graph.constants_bytes else ""),
        ("traffic", traffic),
    ]


def print_kernels(graph: "CompiledGraph", batch: int, console: "Console") -> None:
    """List the kernels in the order in which they are launched."""
    header = ("kernel", "kind", "types", "fused", f"MB per image\nat batch {batch}")
    rows = [
        (layer_name(layer), layer.kind, layer.types, ", ".join(layer.fused), _traffic(layer, batch))
        for layer in graph.kernels
    ]
    print_table(header, rows, 4, console)


def finding_lines(findings: "Iterable[Finding]") -> list[str]:
    """Write findings, a line each."""
    return [f"{one.layer}: {one.rule}: {one.problem}; {one.advice}" for one in findings]


def _traffic(layer: "LayerInfo", batch: int) -> str:
    size = layer.traffic_bytes(batch)
    return wording.NOTHING if size is None else f"{size / batch / 1e6:.2f}"
