"""What an exported model or an engine is, for the terminal."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resnet_deploy.bundle import Manifest
from resnet_deploy.names import printable
from resnet_deploy.report import wording
from resnet_deploy.specs import ModelCard

if TYPE_CHECKING:
    from resnet_deploy.quantize.layers import Layer
    from resnet_deploy.quantize.outliers import ActivationSpread, WeightSpread

_DIGITS: Final = 12  # of a digest, as elsewhere in print; JSON has all


def print_facts(title: str, facts: Iterable[tuple[str, str]], console: Console) -> None:
    """Print a title, and pairs of a name and a value below it; empty values are left out."""
    console.print(Text(printable(title), style="bold"))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        if value:
            table.add_row(Text(name), Text(printable(value)))
    console.print(table)


def card_facts(card: ModelCard) -> list[tuple[str, str]]:
    """Describe a model and its input contract."""
    contract = card.preprocess
    labels = ", ".join(card.labels[:3]) + (", ..." if len(card.labels) > 3 else "")
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (contract.mean, contract.std))
    shape = "x".join(map(str, contract.shape))
    return [
        ("model", f"{card.architecture}, {card.num_classes} classes{f' ({labels})' if labels else ', without labels'}"),
        ("weights", card.weights),
        ("input", f"{contract.dtype} {contract.layout} {shape}, {contract.color}, any batch size"),
        ("images", wording.prepared(contract)),
        ("scaled", f"to 0..1, mean {mean}, std {std}"),
        ("output", f"float32 logits, {card.num_classes}"),
    ]


def manifest_facts(manifest: Manifest, size_bytes: int) -> list[tuple[str, str]]:
    """Describe an engine: what it is, what it was made from, what it needs, what was measured."""
    spec, requires, measured = manifest.spec, manifest.requires, manifest.measured
    needs = [f"{requires.library} {requires.version}".strip()]
    if requires.compute_capabilities:
        needs.append(f"a GPU of compute capability {' or '.join(requires.compute_capabilities)}")
    if requires.int8_dot_product:
        needs.append("a CPU with an INT8 dot product")
    chain = manifest.chain
    steps = [("weights", chain.weights), ("onnx", chain.onnx), ("images", chain.images)]
    steps += [("calibration", chain.calibration), ("lowered", chain.lowered), ("engine", chain.engine)]
    agreement, sqnr = wording.percent(measured.agreement), wording.decibels(measured.sqnr_db)
    accuracy = f"agreement with FP32 {agreement} %, SQNR {sqnr} dB"
    latency = f", {wording.milliseconds(measured.latency_s)} ms at batch {spec.batch.min}" if measured.latency_s else ""
    return [
        *card_facts(manifest.card)[:-1],
        ("engine", f"{spec.precision} for {spec.backend}, {wording.size(size_bytes)} MB ({manifest.engine})"),
        ("batch", f"{spec.batch.min} to {spec.batch.max}, fastest at {spec.batch.opt}"),
        ("needs", ", ".join(needs)),
        ("measured", f"by {measured.by} on {measured.images} {measured.inputs}: {accuracy}{latency}"),
        ("made with", ", ".join(f"{name} {version}" for name, version in manifest.toolchain.items())),
        ("made on", f"{manifest.environment.cpu.model}, {manifest.environment.os}"),
        ("digests", ", ".join(f"{name} {digest[:_DIGITS]}" for name, digest in steps if digest)),
        *(("note", note) for note in manifest.notes),
    ]


def layers_in_words(layers: "Sequence[Layer]") -> str:
    """Count the layers by precision."""
    counts = Counter(layer.precision for layer in layers)
    return f"{len(layers)}: " + "; ".join(f"{count} in {precision}" for precision, count in counts.items())


def print_layers(layers: "Sequence[Layer]", console: Console) -> None:
    """List the weighted layers, in order of execution."""
    rows = [
        (
            layer.name,
            {"Conv": "convolution", "Gemm": "classifier"}[layer.operator],
            "x".join(map(str, layer.shape)),
            layer.precision,
            _number(layer.smallest_scale),
            _number(layer.largest_scale),
        )
        for layer in layers
    ]
    header = ("layer", "kind", "weights", "precision", "smallest scale", "largest scale")
    has_scales = any(layer.scales for layer in layers)
    print_table(header if has_scales else header[:4], rows if has_scales else [row[:4] for row in rows], 4, console)


def print_scales(rows: Sequence[Sequence[str]], console: Console) -> None:
    """List quantized activations, a row of ``SCALE_COLUMNS`` each."""
    print_table(SCALE_COLUMNS, rows, 1, console)


SCALE_COLUMNS: Final = ("activation", "observed", "chosen", "method", "clipped %", "grid", "scale", "zero point")


def interval(ends: tuple[float, float] | None) -> str:
    """Write a range of values."""
    return wording.NOTHING if ends is None else f"{ends[0]:.4g} to {ends[1]:.4g}"


def share(value: float | None) -> str:
    """Write a share in percent, small ones with three digits."""
    return wording.NOTHING if value is None else f"{value * 100:.3g}"


def print_spreads(spreads: "Sequence[WeightSpread]", console: Console) -> None:
    """List how evenly each layer's weights fill an integer grid, in the order given, and how many need what."""
    of_channels = ("layer", "largest /\nmedian", "decades", "channels\nwasting %")
    of_grids = ("per tensor\n8 bits dB", "\n7 bits dB", "per channel\n8 bits dB", "\n7 bits dB", "verdict")
    rows = [
        (
            spread.layer,
            f"{spread.max_over_median:.3g}",
            f"{spread.decades:.2f}",
            f"{spread.wasting * 100:.1f}",
            *map(
                wording.decibels,
                (spread.per_tensor_db, spread.per_tensor_7_db, spread.per_channel_db, spread.per_channel_7_db),
            ),
            spread.verdict,
        )
        for spread in spreads
    ]
    print_table(of_channels + of_grids, rows, 1, console, left=(8,))
    legend = (
        "dB: SQNR that rounding leaves the median channel's weights; wasting: channels that a scale per tensor "
        "leaves fewer than 16 of 127 levels"
    )
    _print_verdicts([spread.verdict for spread in spreads], "layers", legend, console)


def print_activation_spreads(spreads: "Sequence[ActivationSpread]", console: Console) -> None:
    """List how evenly each activation fills an 8-bit grid, in the order given, and how many need what."""
    methods = tuple(spreads[0].bulk_db)
    bulk = (f"99.9 % by\n{method} dB" for method in methods)
    header = ("activation", "observed", "largest /\n99.9 %", *bulk, "all by\npercentile dB", "verdict")
    rows = [
        (
            spread.tensor,
            interval((spread.low, spread.high)),
            f"{spread.max_over_bulk:.3g}",
            *(wording.decibels(spread.bulk_db[method]) for method in methods),
            wording.decibels(spread.expected_db["percentile"]),
            spread.verdict,
        )
        for spread in spreads
    ]
    print_table(header, rows, 2, console, left=(len(header) - 1,))
    legend = (
        "dB: SQNR that 8 bits leave of what was observed, in the range that each method chooses: of the 99.9 % of "
        "the values that are smallest, which large ones would hide, and of all"
    )
    _print_verdicts([spread.verdict for spread in spreads], "activations", legend, console)


def _print_verdicts(verdicts: Sequence[str], what: str, legend: str, console: Console) -> None:
    """Say how many share each verdict, and what the columns above mean."""
    console.print()
    for verdict, count in Counter(verdicts).items():
        console.print(Text(f"{count} of {len(verdicts)} {what}: {verdict}"))
    console.print(Text(legend))


def _number(value: float | None) -> str:
    return wording.NOTHING if value is None else f"{value:.4g}"


def print_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], figures_from: int, console: Console, left: Sequence[int] = ()
) -> None:
    """Print rows of cells; those from column ``figures_from`` on are figures, but for those in ``left``."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, name in enumerate(header):
        is_figure = index >= figures_from and index not in left
        table.add_column(name, justify="right" if is_figure else "left", no_wrap=is_figure, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print()
    console.print(table)
