"""Which plots a record gets, in groups, with the words around each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from resnet_deploy.bench import statistics
from resnet_deploy.bench.records import BenchRecord
from resnet_deploy.bench.statistics import Summary
from resnet_deploy.names import printable
from resnet_deploy.report import latency_plots, layer_plots, plots, quantization_plots, throughput_plots, wording
from resnet_deploy.report.figures import styles

_ROW_REM = 3.1  # of an engine, where engines are rows


@dataclass(frozen=True)
class Plot:
    """A plot with the words around it.

    Attributes:
        div: Identifier of its element.
        title, caption: In plain text.
        figure: As plotly has it.
        wide: Whether it takes the whole width of the page.
        height: In rem.
    """

    div: str
    title: str
    caption: str
    figure: Any
    wide: bool = False
    height: float = 26


def gallery(record: BenchRecord, rows: tuple[Summary, ...]) -> list[tuple[str, list[Plot]]]:
    """Draw what ``record`` has figures for, as pairs of a heading and its plots; nothing without engines."""
    if not rows:
        return []
    groups = [
        ("Accuracy and speed", list(_accuracy(record, rows))),
        ("Throughput", list(_throughput(record))),
        ("Latency", list(_latency(record, rows)) if rows[0].best is not None else []),
        ("Layers", list(_layers(record))),
        ("Quantization", list(_quantization(record))),
    ]
    return [(heading, drawn) for heading, drawn in groups if drawn]


def _accuracy(record: BenchRecord, rows: tuple[Summary, ...]) -> Iterator[Plot]:
    figure = plots.plot_accuracy(record, rows)
    if figure is not None:
        title = f"{capital(plots.accuracy_name(record))} against throughput"
        yield Plot("plot-accuracy", title, _accuracy_caption(rows), figure, wide=True)


def _throughput(record: BenchRecord) -> Iterator[Plot]:
    for sweep in throughput_plots.batch_sweeps(record):
        title = f"Throughput over batch size, {wording.scope_name(sweep.scope)}"
        caption = "One caller, who calls again once it has its answer. Bars: 95 % intervals."
        figure = throughput_plots.plot_batches(record, sweep)
        yield Plot(f"plot-batches-{sweep.scope}", title, caption, figure)
    for sweep in throughput_plots.caller_sweeps(record):
        title = f"Throughput over callers, {wording.scope_name(sweep.scope)}, batch {sweep.fixed}"
        caption = "Each caller has a runner of its own, and calls again once it has its answer. Bars: 95 % intervals."
        figure = throughput_plots.plot_callers(record, sweep)
        yield Plot(f"plot-callers-{sweep.scope}-{sweep.fixed}", title, caption, figure)


def _latency(record: BenchRecord, rows: tuple[Summary, ...]) -> Iterator[Plot]:
    ways = {row.latency.way for row in rows}
    way = wording.way(next(iter(ways))) if len(ways) == 1 else "each engine's smallest batch"
    caption = "Each engine's calls to their own height; ticks: p50 and p99. The axis is logarithmic."
    height = max(27, 6 + _ROW_REM * len(record.engines))
    figure = latency_plots.plot_distributions(record)
    yield Plot("plot-distribution", f"Distribution of latency: {way}", caption, figure, height=height)
    caption = "Curves to the left are faster. Both axes are logarithmic: p99 gets as much room as p90, and tails show."
    yield Plot("plot-latency", f"Tail of latency: {way}", caption, latency_plots.plot_tails(record), height=height)
    if max(number for row in rows for number in row.latency.rounds) > 0:
        caption = "The median of each round over that of all, so that drift shows"
        told = any(state.elsewhere is not None or state.mhz for state in record.machine)
        below = "; below it, what the machine did." if told else "; the machine's state was not recorded."
        title = f"From round to round: {way}"
        yield Plot("plot-rounds", title, caption + below, latency_plots.plot_rounds(record), wide=True, height=32)


def _layers(record: BenchRecord) -> Iterator[Plot]:
    profiled = [(number, engine) for number, engine in enumerate(record.engines) if engine.layers is not None]
    if not profiled:
        return
    colours = layer_plots.kind_colours(record)
    caption = "Means by each backend's own profiler, in calls of their own, which profiling slows down."
    height = 10 + _ROW_REM * len(profiled)
    figure = layer_plots.plot_kinds(record, colours)
    yield Plot("plot-kinds", "Time by kind of layer", caption, figure, wide=True, height=height)
    for number, engine in profiled:
        times = engine.layers
        assert times is not None
        title = f"{printable(engine.name)}: the layers that take longest"
        caption = f"Mean of {times.calls:,} calls, by {printable(times.profiler)}; colours as above"
        caption += f"; {rest}." if (rest := layer_plots.rest(times)) else "."
        figure = layer_plots.plot_slowest(times, colours)
        yield Plot(f"plot-layers-{number}", title, caption, figure, height=34)
    for first, second in layer_plots.pairs(record):
        names = [printable(record.engines[number].name) for number in (first, second)]
        title = f"Layer by layer: {names[0]} and {names[1]}"
        caption = "Layers that hold the same convolution, in the order of execution; to the left is faster."
        figure = layer_plots.plot_pair(record, (first, second))
        height = 7 + 1.05 * len(figure.data[1].y)
        yield Plot(f"plot-pair-{first}-{second}", title, caption, figure, wide=True, height=height)


def _quantization(record: BenchRecord) -> Iterator[Plot]:
    if any(len(engine.search) > 1 for engine in record.engines):
        caption = "Each step gives layers back their precision; the line joins the steps that no other beats in both."
        title = "What the limit of accuracy cost"
        yield Plot("plot-search", title, caption, quantization_plots.plot_searches(record))
    for number, (engine, style) in enumerate(zip(record.engines, styles(record), strict=True)):
        if engine.histograms:
            title = f"{printable(engine.name)}: the activations that 8 bits serve worst"
            caption = (
                "Values seen in calibration, on a logarithmic axis of counts; dashed lines: the range that is covered; "
                "decibels: the tensor's power over that of rounding and clipping it, expected from the histogram."
            )
            figure = quantization_plots.plot_histograms(engine, style)
            yield Plot(f"plot-histograms-{number}", title, caption, figure, wide=True)


def _accuracy_caption(rows: tuple[Summary, ...]) -> str:
    """Explain the line, and say how much of a difference the number of images can show."""
    points = [
        (row.throughput, share)
        for row in rows
        if row.best is not None and (share := plots.accuracy_share(row)) is not None
    ]
    caption = "Each in its best way. The fastest engine is as accurate as any."
    if len(plots.pareto_front(points)) > 1:
        caption = "Each in its best way. The line joins those that no other beats in one without losing in the other."
    counted = [row.accuracy for row in rows if row.accuracy is not None]
    shares = [counts.top1 for counts in counted if counts.top1 is not None]
    if not shares:
        return caption
    widest = max(
        (statistics.share_interval(share, counted[0].images) for share in shares), key=lambda one: one.high - one.low
    )
    half = wording.percent((widest.high - widest.low) / 2)
    return f"{caption} {counted[0].images:,} images: each accuracy is known to within {half} points (95 %)."


def capital(text: str) -> str:
    """Begin a sentence."""
    return text[0].upper() + text[1:]
