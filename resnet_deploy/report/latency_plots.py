"""The plots of latency: its distribution, its tail, and how it and the machine moved from round to round."""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from resnet_deploy.bench import statistics
from resnet_deploy.bench.records import BenchRecord, MachineState, Samples
from resnet_deploy.report.figures import (
    COLOURS,
    GREY,
    NO_COLOUR,
    add_row_names,
    escaped,
    label,
    log_ticks,
    new_axis,
    new_figure,
    styles,
)

_CURVE_POINTS: Final = 400
_BINS: Final = 240  # of the widest spread; fine enough that a mode a tenth off shows as one of its own
_RIDGE: Final = 0.62  # of a row's height; the rest is the name's
_PERCENTILES: Final = (0, 50, 90, 99, 99.9, 99.99, 99.999)
_STATES: Final = (("elsewhere", "other processes", COLOURS[4]), ("stolen", "stolen by the host", COLOURS[8]))


def plot_tails(record: BenchRecord) -> go.Figure:
    """Plot which share of the calls took at least so long, on axes that stretch the tail."""
    figure = new_figure("milliseconds per call", "percentile of the calls")
    samples = _quoted(record)
    for number, (engine, own, style) in enumerate(zip(record.engines, samples, styles(record), strict=True)):
        curve = tail_curve(own)
        figure.add_scatter(
            x=[1e3 * seconds for seconds, _ in curve],
            y=[share for _, share in curve],
            mode="lines",
            line=style.line | {"shape": "vh"},
            name=label(engine),
            meta={"engine": number},
            customdata=[f"{100 * (1 - share):.4g}" for _, share in curve],
            hovertemplate="%{fullData.name}<br>%{x:.4~g} ms<br>%{customdata} % of the calls are faster<extra></extra>",
        )
    smallest = 1 / max(len(own.seconds) for own in samples)
    ticks = [percent for percent in _PERCENTILES if 1 - percent / 100 >= smallest / 1.001]
    figure.update_xaxes(type="log", **log_ticks(*_ends(samples)))
    figure.update_yaxes(
        type="log",
        range=[0, math.log10(smallest) - 0.1],
        tickvals=[1 - percent / 100 for percent in ticks],
        ticktext=["min" if percent == 0 else f"p{percent:g}" for percent in ticks],
    )
    return figure


def tail_curve(samples: Samples) -> list[tuple[float, float]]:
    """Pair times with the share of calls that took at least as long, thinned out where calls crowd, not in the tail."""
    ordered = sorted(samples.seconds)
    count = len(ordered)
    slower = (
        {round(count ** (step / (_CURVE_POINTS - 1))) for step in range(_CURVE_POINTS)}
        if count > _CURVE_POINTS
        else range(1, count + 1)
    )
    return [(ordered[count - number], number / count) for number in sorted(slower, reverse=True)]


def plot_distributions(record: BenchRecord) -> go.Figure:
    """Plot a ridge per engine: how many calls took how long, each to its own height, with p50 and p99 marked."""
    figure = new_figure("milliseconds per call", "")
    samples = _quoted(record)
    low, high = _ends(samples)
    edges = np.geomspace(low / 1.001, high * 1.001, _BINS + 1)
    for number, (engine, own, style) in enumerate(zip(record.engines, samples, styles(record), strict=True)):
        row = len(samples) - 1 - number
        xs, ys = ridge(own, edges)
        figure.add_scatter(
            x=xs,
            y=[round(row + _RIDGE * height, 4) for height in ys],
            mode="lines",
            line={"color": style.colour, "width": 1.25},
            fill="toself",
            fillcolor=_faded(style.colour),
            meta={"engine": number},
            hoverinfo="skip",
        )
        percentiles = [50, 99]
        figure.add_scatter(
            x=[1e3 * statistics.percentile(own.seconds, percent) for percent in percentiles],
            y=[row] * len(percentiles),
            mode="markers",
            marker={"color": style.colour, "symbol": "line-ns-open", "size": 12, "line": {"width": 2}},
            name=label(engine),
            meta={"engine": number},
            customdata=[f"p{percent}" for percent in percentiles],
            hovertemplate="%{fullData.name}<br>%{customdata} %{x:.4~g} ms<extra></extra>",
        )
    add_row_names(figure, [label(engine) for engine in record.engines], _RIDGE + 0.17)
    figure.update_xaxes(type="log", range=[math.log10(low / 1.03), math.log10(high * 1.03)], **log_ticks(low, high))
    figure.update_yaxes(range=[-0.25, len(samples)])
    return figure


def ridge(samples: Samples, edges: "np.ndarray[Any, Any]") -> tuple[list[float], list[float]]:
    """Outline the histogram of the calls, in milliseconds, as a closed line of steps; its highest bin is 1."""
    counts, _ = np.histogram(1e3 * np.asarray(samples.seconds), edges)
    filled = np.flatnonzero(counts)
    shown = slice(filled[0], filled[-1] + 1)
    lefts, rights = edges[:-1][shown], edges[1:][shown]
    xs = [float(lefts[0]), *np.column_stack([lefts, rights]).ravel().tolist(), float(rights[-1]), float(lefts[0])]
    ys = [0.0, *np.repeat(counts[shown] / counts.max(), 2).tolist(), 0.0, 0.0]
    return [round(x, 6) for x in xs], ys


def plot_rounds(record: BenchRecord) -> go.Figure:
    """Plot how far each round's median lay from the engine's own, with what the machine did below on the same axis."""
    figure = new_figure("round", "median, % of own")
    for number, (engine, own, style) in enumerate(zip(record.engines, _quoted(record), styles(record), strict=True)):
        medians = round_medians(own)
        whole = statistics.percentile(own.seconds, 50)
        figure.add_scatter(
            x=list(medians),
            y=[100 * median / whole for median in medians.values()],
            mode="lines+markers",
            line=style.line,
            marker=style.marker(5),
            name=label(engine),
            meta={"engine": number},
            customdata=[1e3 * median for median in medians.values()],
            hovertemplate="%{fullData.name}<br>round %{x}<br>median %{customdata:.4~g} ms<extra></extra>",
        )
    figure.add_hline(y=100, line={"color": GREY, "width": 1})
    figure.update_xaxes(tickformat="d")
    _add_states(figure, record.machine)
    return figure


def round_medians(samples: Samples) -> dict[int, float]:
    """Compute the median of each round, in seconds, in the order of the rounds."""
    by_round: dict[int, list[float]] = {}
    for number, seconds in zip(samples.rounds, samples.seconds, strict=True):
        by_round.setdefault(number, []).append(seconds)
    return {number: statistics.percentile(by_round[number], 50) for number in sorted(by_round)}


def _quoted(record: BenchRecord) -> list[Samples]:
    """List the samples that each engine's latencies are quoted for."""
    scope = statistics.headline_scope(record.engines)
    return [statistics.smallest_samples(engine, scope) for engine in record.engines]


def _add_states(figure: go.Figure, states: Sequence[MachineState]) -> None:
    """Put what the machine did under the medians: time that went elsewhere, and the clock, where it told."""
    drawn = [(name, text, colour) for name, text, colour in _STATES if any(_of(states, name))]
    clock = any(state.mhz for state in states)
    if not states or not (clock or any(state.elsewhere is not None for state in states)):
        return
    bottom = 0.36 if clock else 0.24
    figure.update_layout(yaxis={"domain": [bottom + 0.1, 1]}, barmode="stack", bargap=0.3)
    figure.update_layout(yaxis2=new_axis("busy, %") | {"domain": [0.2 if clock else 0, bottom], "rangemode": "tozero"})
    # The page has a legend of engines; this one is of what they shared the machine with.
    figure.update_traces(showlegend=False)
    figure.update_layout(
        showlegend=True, legend={"orientation": "h", "x": 0, "y": bottom, "yanchor": "bottom", "bgcolor": NO_COLOUR}
    )
    rounds = [state.round for state in states]
    for name, text, colour in drawn or _STATES[:1]:
        figure.add_bar(
            x=rounds,
            y=[100 * share for share in _of(states, name)],
            yaxis="y2",
            marker={"color": colour},
            name=text,
            showlegend=True,
            hovertemplate="%{fullData.name}<br>round %{x}: %{y:.1f} % of the cores<extra></extra>",
        )
    if clock:
        clocks = [state.mhz for state in states if state.mhz]
        # A tenth of room, so that a clock that stood still does not look like one that moved.
        room = {"range": [0.9 * min(clocks), 1.1 * max(clocks)], "nticks": 4}
        figure.update_layout(yaxis3=new_axis("MHz") | {"domain": [0, 0.14]} | room)
        figure.add_scatter(
            x=rounds,
            y=[state.mhz for state in states],
            yaxis="y3",
            mode="lines+markers",
            line={"color": GREY, "width": 1.5},
            marker={"color": GREY, "size": 4},
            name="clock",
            showlegend=False,
            customdata=[escaped(state.throttled) or "not held down" for state in states],
            hovertemplate="round %{x}: %{y:,.0f} MHz<br>%{customdata}<extra></extra>",
        )
    figure.update_layout(xaxis={"anchor": "y3" if clock else "y2"})


def _of(states: Sequence[MachineState], name: str) -> list[float]:
    return [getattr(state, name) or 0.0 for state in states]


def _ends(samples: Sequence[Samples]) -> tuple[float, float]:
    """Find the shortest and the longest call, in milliseconds."""
    times = [seconds for own in samples for seconds in own.seconds]
    return 1e3 * min(times), 1e3 * max(times)


def _faded(colour: str) -> str:
    """Thin a colour such that what lies behind it shows."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.25)"
