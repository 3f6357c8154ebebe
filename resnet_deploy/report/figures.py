"""What all plots share: how an engine looks, axes, ticks. Text and grid get their colours from the style sheet."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import plotly.graph_objects as go

from resnet_deploy.bench.records import BenchRecord, EngineRecord
from resnet_deploy.names import printable
from resnet_deploy.report import wording

# Okabe and Ito's palette, which colour-blind readers can tell apart, less black and yellow and with the blue lightened,
# so that each shows on white and on black; the last four are for runs with many peers.
COLOURS: Final = (
    *("#2f7fc1", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#8f6bd1", "#a0793d", "#c2425a", "#5f9e2f"),
)
GREY: Final = "#868e96"
NO_COLOUR: Final = "rgba(0,0,0,0)"
# Colours recur after the tenth engine and mean nothing to some: precision is told by shape as well.
_DASHES: Final = {"fp32": "dot", "fp16": "dash", "bf16": "longdash", "int8": "solid", "fp8": "longdashdot"}
_SYMBOLS: Final = {"fp32": "circle", "fp16": "square", "bf16": "triangle-up", "int8": "diamond", "fp8": "hexagon"}


@dataclass(frozen=True)
class Style:
    """How one engine looks in every plot and in the legend; the markers of peers are hollow, and their lines thin."""

    colour: str
    dash: str
    symbol: str
    hollow: bool = False

    @property
    def line(self) -> dict[str, Any]:
        """As plotly has a line."""
        return {"color": self.colour, "dash": self.dash, "width": 1.25 if self.hollow else 2.25}

    def marker(self, size: int) -> dict[str, Any]:
        """As plotly has a marker."""
        symbol = f"{self.symbol}-open" if self.hollow else self.symbol
        return {"color": self.colour, "symbol": symbol, "size": size, "line": {"width": 2 if self.hollow else 0}}


def styles(record: BenchRecord) -> tuple[Style, ...]:
    """Give each engine its look, in the record's order.

    The reference is grey. A peer takes the colour of the engine of ours that has its backend and precision, once.
    """
    roles = [wording.role(record, engine) for engine in record.engines]
    ours = [engine for engine, role in zip(record.engines, roles, strict=True) if role == "engine"]
    colours = {engine.name: COLOURS[number % len(COLOURS)] for number, engine in enumerate(ours)}
    counterparts = {(engine.backend, engine.precision): colours[engine.name] for engine in reversed(ours)}
    used = len(ours)
    found = []
    for engine, role in zip(record.engines, roles, strict=True):
        colour = GREY if role == "reference" else colours.get(engine.name, "")
        if role == "peer":
            colour = counterparts.pop((engine.backend, engine.precision), "")
            if not colour:
                colour, used = COLOURS[used % len(COLOURS)], used + 1
        dash, symbol = _DASHES.get(engine.precision, "dashdot"), _SYMBOLS.get(engine.precision, "cross")
        found.append(Style(colour, dash, symbol, hollow=role == "peer"))
    return tuple(found)


def new_figure(x_title: str, y_title: str) -> go.Figure:
    """Make an empty figure that takes text and grid colours from the page."""
    return go.Figure(
        layout={
            "template": "none",
            "showlegend": False,
            "hovermode": "closest",
            "font": {"family": "system-ui, sans-serif", "size": 13},
            "paper_bgcolor": NO_COLOUR,
            "plot_bgcolor": NO_COLOUR,
            "margin": {"l": 56, "r": 16, "t": 28, "b": 48},
            "modebar": {"bgcolor": NO_COLOUR, "color": GREY, "activecolor": COLOURS[0]},
            "xaxis": new_axis(x_title),
            "yaxis": new_axis(y_title),
        }
    )


def new_axis(title: str) -> dict[str, Any]:
    """Describe an axis; ticks without colour keep the labels of the two axes apart in the corner."""
    axis = {"showgrid": True, "zeroline": False, "automargin": True, "ticks": "outside", "tickcolor": NO_COLOUR}
    return axis | {"title": {"text": title, "standoff": 12}}


def add_row_names(figure: go.Figure, names: Sequence[str], up: float) -> None:
    """Write the names of rows, the first one on top, above what is drawn in each, and take the axis's own labels away.

    Beside the plot, long names would leave no room for it on a phone.
    """
    for number, name in enumerate(names):
        place = {"xref": "paper", "x": 0, "xanchor": "left", "y": len(names) - 1 - number + up, "yanchor": "middle"}
        figure.add_annotation(text=name, showarrow=False, font={"size": 12}, **place)
    figure.update_yaxes(showticklabels=False, showgrid=False)
    figure.update_layout(margin={"l": 8})


def label(engine: EngineRecord) -> str:
    """Escape a name, for plotly reads tags in text."""
    return escaped(engine.name)


def escaped(text: str) -> str:
    """Make text from elsewhere harmless to plotly."""
    return html.escape(printable(text))


def scale(axis: Any, values: Sequence[float]) -> None:
    """Start at zero, or go by powers of ten where engines are too far apart for that."""
    if max(values) > 20 * min(values):
        low, high = min(values) / 1.5, max(values) * 1.5
        axis.update(type="log", range=[math.log10(low), math.log10(high)], **log_ticks(low, high))
    else:
        axis.update(range=[0, 1.08 * max(values)], tickformat=",~r")


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
