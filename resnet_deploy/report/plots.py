"""The page's plots of speed and accuracy. Text and grid take their colours from its style sheet, light or dark."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import plotly.graph_objects as go

from resnet_deploy.bench import statistics
from resnet_deploy.bench.records import BenchRecord, EngineRecord, Samples
from resnet_deploy.bench.statistics import Summary
from resnet_deploy.report import wording

# Of Okabe and Ito's palette, which colour-blind readers can tell apart, those that show on white and on black; the
# blue is lightened for the latter.
_COLOURS: Final = ("#2f7fc1", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_REFERENCE_COLOUR: Final = "#868e96"
_NO_COLOUR: Final = "rgba(0,0,0,0)"
# Colours recur after the sixth engine and mean nothing to some: precision is told by shape as well.
_DASHES: Final = {"fp32": "dot", "fp16": "dash", "bf16": "longdash", "int8": "solid", "fp8": "longdashdot"}
_SYMBOLS: Final = {"fp32": "circle", "fp16": "square", "bf16": "square-open", "int8": "diamond", "fp8": "diamond-open"}
_CURVE_POINTS: Final = 400
_LABEL_GAP: Final = 10  # pixels between a point and its label
_PERCENTILES: Final = (0, 50, 90, 99, 99.9, 99.99, 99.999)


@dataclass(frozen=True)
class Style:
    """How one engine looks in every plot and in the legend."""

    colour: str
    dash: str
    symbol: str


def styles(record: BenchRecord) -> tuple[Style, ...]:
    """Give each engine its look, in the record's order."""
    others = (_COLOURS[number % len(_COLOURS)] for number in range(len(record.engines)))
    return tuple(
        Style(
            _REFERENCE_COLOUR if engine.name == record.reference else next(others),
            _DASHES.get(engine.precision, "dashdot"),
            _SYMBOLS.get(engine.precision, "cross"),
        )
        for engine in record.engines
    )


def plot_accuracy(record: BenchRecord, rows: Sequence[Summary]) -> go.Figure | None:
    """Plot accuracy against throughput, with the Pareto front; None where there is no accuracy."""
    points = [
        (row.throughput, share, style, _label(row.engine))
        for row, style in zip(rows, styles(record), strict=True)
        if (share := accuracy_share(row)) is not None
    ]
    if not points:
        return None
    figure = new_figure("images per second (best batch)", accuracy_name(record))
    front = pareto_front([(x, y) for x, y, _, _ in points])
    figure.add_scatter(
        x=[x for x, _ in front],
        y=[100 * y for _, y in front],
        mode="lines",
        line={"color": _REFERENCE_COLOUR, "width": 1, "shape": "vh"},
        hoverinfo="skip",
    )
    for x, y, style, label in points:
        figure.add_scatter(
            x=[x],
            y=[100 * y],
            mode="markers",
            marker={"color": style.colour, "symbol": style.symbol, "size": 11},
            name=label,
            hovertemplate="%{fullData.name}<br>%{x:,.4~g} images/s<br>%{y:.2f} %<extra></extra>",
        )
    figure.update_yaxes(ticksuffix=" %", range=_padded([100 * y for _, y, _, _ in points]))
    _scale(figure.layout.xaxis, [x for x, *_ in points])
    _add_labels(figure, [(x, 100 * y, label) for x, y, _, label in points])
    return figure


def plot_latency(record: BenchRecord) -> go.Figure:
    """Plot which share of the calls took at least so long, on axes that stretch the tail."""
    figure = new_figure("milliseconds per call", "percentile of the calls")
    samples = [statistics.smallest_samples(engine) for engine in record.engines]
    for engine, own, style in zip(record.engines, samples, styles(record), strict=True):
        curve = tail_curve(own)
        figure.add_scatter(
            x=[1e3 * seconds for seconds, _ in curve],
            y=[share for _, share in curve],
            mode="lines",
            line={"color": style.colour, "dash": style.dash, "width": 2, "shape": "vh"},
            name=_label(engine),
            customdata=[f"{100 * (1 - share):.4g}" for _, share in curve],
            hovertemplate="%{fullData.name}<br>%{x:.4~g} ms<br>%{customdata} % of the calls are faster<extra></extra>",
        )
    smallest = 1 / max(len(own.seconds) for own in samples)
    ticks = [percent for percent in _PERCENTILES if 1 - percent / 100 >= smallest / 1.001]
    times = [1e3 * seconds for own in samples for seconds in own.seconds]
    figure.update_xaxes(type="log", **log_ticks(min(times), max(times)))
    figure.update_yaxes(
        type="log",
        range=[0, math.log10(smallest) - 0.1],
        tickvals=[1 - percent / 100 for percent in ticks],
        ticktext=["min" if percent == 0 else f"p{percent:g}" for percent in ticks],
    )
    return figure


def plot_batches(record: BenchRecord) -> go.Figure:
    """Plot throughput over batch size, with 95 % intervals."""
    figure = new_figure("batch size", "images per second")
    batches = sorted({samples.batch for engine in record.engines for samples in engine.latency})
    rates: list[float] = []
    for engine, style in zip(record.engines, styles(record), strict=True):
        ordered = sorted(engine.latency, key=lambda samples: samples.batch)
        intervals = [statistics.throughput_interval(samples) for samples in ordered]
        rates += [rate for interval in intervals for rate in (interval.low, interval.high)]
        figure.add_scatter(
            x=[samples.batch for samples in ordered],
            y=[interval.value for interval in intervals],
            error_y={
                "array": [max(0.0, interval.high - interval.value) for interval in intervals],
                "arrayminus": [max(0.0, interval.value - interval.low) for interval in intervals],
                "thickness": 1,
                "width": 3,
            },
            mode="lines+markers",
            line={"color": style.colour, "dash": style.dash, "width": 2},
            marker={"color": style.colour, "symbol": style.symbol, "size": 8},
            name=_label(engine),
            hovertemplate="%{fullData.name}<br>batch %{x}<br>%{y:,.4~g} images/s<extra></extra>",
        )
    figure.update_xaxes(type="log", tickvals=batches, ticktext=[str(batch) for batch in batches])
    _scale(figure.layout.yaxis, rates)
    return figure


def accuracy_name(record: BenchRecord) -> str:
    """Name what the first plot shows of accuracy."""
    if record.dataset is not None and record.dataset.labels:
        return "top-1 accuracy"
    return f"agreement with {html.escape(wording.reference_name(record))}"


def accuracy_share(row: Summary) -> float | None:
    """Pick what the first plot shows of accuracy: top-1, or the agreement where there are no labels."""
    if row.accuracy is None:
        return None
    return row.accuracy.top1 if row.accuracy.top1 is not None else row.accuracy.agreement


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep the points that no other beats in one coordinate without losing in the other, by the first ascending."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front[::-1]


def tail_curve(samples: Samples, points: int = _CURVE_POINTS) -> list[tuple[float, float]]:
    """Pair times with the share of calls that took at least as long, thinned out where calls crowd, not in the tail."""
    ordered = sorted(samples.seconds)
    count = len(ordered)
    slower = (
        {round(count ** (step / (points - 1))) for step in range(points)} if count > points else range(1, count + 1)
    )
    return [(ordered[count - number], number / count) for number in sorted(slower, reverse=True)]


def log_ticks(low: float, high: float) -> dict[str, list[Any]]:
    """Choose round figures for a logarithmic axis, about three to ten of them; plotly's own crowd each other."""
    decades = math.log10(high / low)
    if decades < 0.5:
        rough = (high - low) / 4 or low / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * min((1, 2, 5, 10), key=lambda factor: abs(factor - rough / power))
        values = [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    else:
        steps = (1, 1.5, 2, 3, 4, 5, 7) if decades < 0.8 else (1, 2, 5) if decades < 3 else (1,)
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [step * 10.0**exponent for exponent in exponents for step in steps]
    shown = [value for value in values if low <= value <= high]
    return {"tickvals": shown, "ticktext": [f"{round(value, 6):,.12g}" for value in shown]}


def place_labels(spots: Sequence[tuple[float, float]], lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Find a place beside each point where its label covers neither another label nor a point.

    Points are given as shares of the plot's width and height, and lengths in characters; the plot is taken to be as
    wide as on a desktop. Labels point inwards; those to the left go above, for the front's line arrives from there.
    Returns the side (1: right, -1: left) and the pixels up.
    """
    width, height, line, letter = 1060, 330, 17, 7
    taken = [(x * width - 8, x * width + 8, y * height) for x, y in spots]
    chosen = []
    for (x, y), length in zip(spots, lengths, strict=True):
        side = 1 if x <= 0.5 else -1
        near, far = x * width + side * _LABEL_GAP, x * width + side * (_LABEL_GAP + letter * length)
        start, end = min(near, far), max(near, far)
        steps = sorted(range(-8, 9), key=lambda step: (abs(step if side > 0 else step - 1), -step))
        free = (
            step * line
            for step in steps
            if not any(a < end and start < b and abs(y * height + step * line - c) < line for a, b, c in taken)
        )
        up = next(free, 0)
        taken.append((start, end, y * height + up))
        chosen.append((side, up))
    return chosen


def _add_labels(figure: go.Figure, points: Sequence[tuple[float, float, str]]) -> None:
    """Write the names beside the points; annotations take the logarithm of the place on a logarithmic axis."""
    xs = [math.log10(x) if figure.layout.xaxis.type == "log" else x for x, _, _ in points]
    (left, right), (low, high) = figure.layout.xaxis.range, figure.layout.yaxis.range
    spots = [((x - left) / (right - left), (y - low) / (high - low)) for x, (_, y, _) in zip(xs, points, strict=True)]
    offsets = place_labels(spots, [len(html.unescape(label)) for *_, label in points])
    for x, (_, y, label), (side, up) in zip(xs, points, offsets, strict=True):
        beside = {"xanchor": "left" if side > 0 else "right", "xshift": side * _LABEL_GAP, "yshift": up}
        figure.add_annotation(x=x, y=y, text=label, showarrow=False, **beside)


def _label(engine: EngineRecord) -> str:
    """Escape a name, for plotly reads tags in text."""
    return html.escape(wording.printable(engine.name))


def _scale(axis: Any, values: Sequence[float]) -> None:
    """Start at zero, or go by powers of ten where engines are too far apart for that."""
    if max(values) > 20 * min(values):
        low, high = min(values) / 1.5, max(values) * 1.5
        axis.update(type="log", range=[math.log10(low), math.log10(high)], **log_ticks(low, high))
    else:
        axis.update(range=[0, 1.08 * max(values)], tickformat=",~r")


def _padded(percents: Sequence[float]) -> list[float]:
    """Leave room above and below; the narrowest range is one point, so that noise does not look like a cliff."""
    low, high = min(percents), max(percents)
    room = max(0.5, 0.2 * (high - low))
    return [low - room, min(high + room, 100 + 0.16 * room)]


def new_figure(x_title: str, y_title: str) -> go.Figure:
    """Make an empty figure that takes text and grid colours from the page."""
    # Ticks without colour keep the labels of the two axes apart in the corner.
    axis = {"showgrid": True, "zeroline": False, "automargin": True, "ticks": "outside", "tickcolor": _NO_COLOUR}
    return go.Figure(
        layout={
            "template": "none",
            "showlegend": False,
            "hovermode": "closest",
            "font": {"family": "system-ui, sans-serif", "size": 13},
            "paper_bgcolor": _NO_COLOUR,
            "plot_bgcolor": _NO_COLOUR,
            "margin": {"l": 56, "r": 16, "t": 28, "b": 48},
            "modebar": {"bgcolor": _NO_COLOUR, "color": _REFERENCE_COLOUR, "activecolor": _COLOURS[0]},
            "xaxis": axis | {"title": {"text": x_title, "standoff": 12}},
            "yaxis": axis | {"title": {"text": y_title, "standoff": 12}},
        }
    )
