"""The plots of INT8: what the grid covers of the tensors it serves worst, and what a limit of accuracy cost."""

import math

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from resnet_deploy.bench.records import BenchRecord, EngineRecord
from resnet_deploy.report.figures import GREY, Style, escaped, label, new_figure, styles
from resnet_deploy.report.plots import pareto_front

_COLUMNS = 2


def plot_histograms(engine: EngineRecord, style: Style) -> go.Figure:
    """Plot the values of the tensors that an engine's grid serves worst, with the ends of the range it covers."""
    rows = math.ceil(len(engine.histograms) / _COLUMNS)
    titles = [f"{escaped(one.tensor)}: {one.sqnr_db:.0f} dB" for one in engine.histograms]
    grid = make_subplots(rows, _COLUMNS, subplot_titles=titles, vertical_spacing=0.5 / rows, horizontal_spacing=0.1)
    figure = new_figure("", "")
    figure.layout.update(
        {name: grid.layout[name] for name in sorted(grid.layout) if name.startswith(("xaxis", "yaxis"))}
    )
    figure.layout.annotations = grid.layout.annotations
    for number, one in enumerate(engine.histograms):
        suffix = "" if number == 0 else str(number + 1)
        figure.add_bar(
            x=[one.first + (index + 0.5) * one.width for index in range(len(one.counts))],
            y=list(one.counts),
            marker={"color": style.colour, "line": {"width": 0}, "opacity": 0.55},
            xaxis=f"x{suffix}",
            yaxis=f"y{suffix}",
            hovertemplate="%{x:.4~g}<br>%{y:,} values<extra></extra>",
        )
        for end in (one.low, one.high):
            line = {"color": GREY, "width": 1.5, "dash": "dash"}
            figure.add_shape(
                type="line", x0=end, x1=end, y0=0, y1=1, xref=f"x{suffix}", yref=f"y{suffix} domain", line=line
            )
    figure.update_yaxes(type="log", showticklabels=False, showgrid=False)
    figure.update_layout(bargap=0, margin={"t": 52})  # room for titles below the buttons
    figure.update_annotations(font={"size": 12})
    return figure


def plot_searches(record: BenchRecord) -> go.Figure:
    """Plot, for engines that were kept to a limit, the accuracy lost over the cost of a call at each step."""
    figure = new_figure("cost of a call, all on integers = 1", "points of accuracy lost")
    for number, (engine, style) in enumerate(zip(record.engines, styles(record), strict=True)):
        if not engine.search:
            continue
        figure.add_scatter(
            x=[step.cost for step in engine.search],
            y=[step.drop for step in engine.search],
            mode="markers",
            marker=style.marker(9),
            name=label(engine),
            meta={"engine": number},
            customdata=[step.layers for step in engine.search],
            hovertemplate="%{fullData.name}<br>%{customdata} layers in floating point<br>%{y:.2f} points lost<br>"
            "%{x:.2f} times the cost<extra></extra>",
        )
        front = pareto_front([(-step.cost, -step.drop) for step in engine.search])
        figure.add_scatter(
            x=[-cost for cost, _ in front],
            y=[-drop for _, drop in front],
            mode="lines",
            line={"color": style.colour, "width": 1, "shape": "hv"},
            meta={"engine": number},
            hoverinfo="skip",
        )
    return figure
