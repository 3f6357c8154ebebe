"""The plot of accuracy against throughput, and its Pareto front."""

import html
import math
from collections.abc import Sequence
from typing import Final

import plotly.graph_objects as go

from resnet_deploy.bench.records import BenchRecord
from resnet_deploy.bench.statistics import Summary
from resnet_deploy.report import wording
from resnet_deploy.report.figures import GREY, label, new_figure, scale, styles

_LABEL_GAP: Final = 10  # pixels between a point and its label


def plot_accuracy(record: BenchRecord, rows: Sequence[Summary]) -> go.Figure | None:
    """Plot accuracy against throughput, with the Pareto front; None where either is missing."""
    drawn = [
        (number, row, share, style)
        for number, (row, style) in enumerate(zip(rows, styles(record), strict=True))
        if (share := accuracy_share(row)) is not None and row.best is not None
    ]
    if not drawn:
        return None
    figure = new_figure("images per second", accuracy_name(record))
    front = pareto_front([(row.throughput, share) for _, row, share, _ in drawn])
    figure.add_scatter(
        x=[x for x, _ in front],
        y=[100 * y for _, y in front],
        mode="lines",
        line={"color": GREY, "width": 1, "shape": "vh"},
        hoverinfo="skip",
    )
    for number, row, share, style in drawn:
        best = "" if row.best is None else wording.way(row.best.way)
        figure.add_scatter(
            x=[row.throughput],
            y=[100 * share],
            mode="markers",
            marker=style.marker(11),
            name=label(row.engine),
            meta={"engine": number},
            hovertemplate=f"%{{fullData.name}}<br>%{{x:,.4~g}} images/s<br>%{{y:.2f}} %<br>{best}<extra></extra>",
        )
    figure.update_yaxes(ticksuffix=" %", range=_padded([100 * share for _, _, share, _ in drawn]))
    scale(figure.layout.xaxis, [row.throughput for _, row, _, _ in drawn])
    _add_labels(figure, [(row.throughput, 100 * share, label(row.engine), number) for number, row, share, _ in drawn])
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


def _add_labels(figure: go.Figure, points: Sequence[tuple[float, float, str, int]]) -> None:
    """Write the names beside the points; annotations take the logarithm of the place on a logarithmic axis."""
    xs = [math.log10(x) if figure.layout.xaxis.type == "log" else x for x, *_ in points]
    (left, right), (low, high) = figure.layout.xaxis.range, figure.layout.yaxis.range
    spots = [((x - left) / (right - left), (y - low) / (high - low)) for x, (_, y, *_) in zip(xs, points, strict=True)]
    offsets = place_labels(spots, [len(html.unescape(text)) for _, _, text, _ in points])
    for x, (_, y, text, number), (side, up) in zip(xs, points, offsets, strict=True):
        beside = {"xanchor": "left" if side > 0 else "right", "xshift": side * _LABEL_GAP, "yshift": up}
        figure.add_annotation(x=x, y=y, text=text, name=f"engine-{number}", showarrow=False, **beside)


def _padded(percents: Sequence[float]) -> list[float]:
    """Leave room above and below; the narrowest range is one point, so that noise does not look like a cliff."""
    low, high = min(percents), max(percents)
    room = max(0.5, 0.2 * (high - low))
    return [low - room, min(high + room, 100 + 0.16 * room)]
