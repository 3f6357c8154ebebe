"""The page of plots, made from the record alone; it needs no network."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots
from results import Record
from table import conditions, relative_gradients
from twins import is_plain

PLAIN_COLOUR, RESIDUAL_COLOUR = "#d55e00", "#2f7fc1"  # Okabe and Ito's, which colour-blind readers can tell apart
TITLES = ("plain", "residual")

LOSSES = (
    "Thin: each step of each seed. Bold: the mean over seeds, each averaged over the last half epoch. "
    "Overfitting cannot explain a training loss that is higher: this is what degradation means."
)
ERRORS = "After each epoch. Thin lines are the seeds, bold ones their mean."
GRADIENTS = (
    "The norm of the gradient of each convolution's weights over the norm of the weights: how far a step of rate 1 "
    "turns the layer. Mean over seeds. Layer 1 is the nearest to the image."
)
LIKENESS = (
    "How alike gradients by the image are on a straight line between two images: mean cosine, by the distance in "
    "steps. Where it falls at once, the gradient at an image says nothing about one that looks the same."
)

Curve = NDArray[np.float64]


class Section(NamedTuple):
    """A plot, its title, and what it shows."""

    title: str
    text: str
    figure: go.Figure


def render_page(record: Record) -> str:
    """Draw everything, as one HTML file."""
    sections = (
        Section("Training loss", LOSSES, draw_losses(record)),
        Section("Held-out error", ERRORS, draw_errors(record)),
        Section("Relative gradients", GRADIENTS, draw_gradients(record)),
        Section("Shattering, before training", LIKENESS, draw_likeness(record)),
    )
    body = "".join(f"<h2>{part.title}</h2><p>{part.text}</p>{embed(part.figure)}" for part in sections)
    head = "<meta charset='utf-8'><title>Plain against residual</title>"
    style = "<style>body{font:16px system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}</style>"
    intro = "<h1>Plain networks against residual ones</h1><p>" + conditions(record).replace("\n", "<br>") + "</p>"
    script = f"<script>{get_plotlyjs()}</script>"
    return f"<!doctype html><html lang='en'><head>{head}{style}{script}</head><body>{intro}{body}</body></html>\n"


def embed(figure: go.Figure) -> str:
    """Write a figure as a part of a page that has the library already."""
    html: str = figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False})
    return html


def draw_losses(record: Record) -> go.Figure:
    """Draw the loss of each step, plain networks beside residual ones."""
    figure = two_panels("step", "cross-entropy, nats", TITLES)
    half_epoch = max(1, len(record.runs[0].losses) // record.recipe.epochs // 2)
    for arm, panel in panels(record):
        runs = record.of(arm)
        losses = np.array([run.losses for run in runs])
        for run, values in zip(runs, losses, strict=True):
            add_line(figure, panel, arm, values, run.seed)
        add_line(figure, panel, arm, mean_of([running_mean(values, half_epoch) for values in losses]))
    figure.update_yaxes(type="log", dtick=1)
    return figure


def draw_errors(record: Record) -> go.Figure:
    """Draw the held-out error after each epoch, plain networks beside residual ones."""
    figure = two_panels("epoch", "error, %", TITLES)
    for arm, panel in panels(record):
        runs = record.of(arm)
        errors = 100 * np.array([run.held_out for run in runs])
        for run, values in zip(runs, errors, strict=True):
            add_line(figure, panel, arm, values, run.seed)
        add_line(figure, panel, arm, errors.mean(axis=0))
    figure.update_yaxes(rangemode="tozero")
    return figure


def draw_gradients(record: Record) -> go.Figure:
    """Draw the relative gradient of each layer, before the first step and before the last."""
    figure = two_panels("layer", "gradient over weights", ("before the first step", "before the last step"))
    for arm in record.arms:
        for panel, step in ((1, 0), (2, -1)):
            add_line(figure, panel, arm, mean_of([relative_gradients(run, step) for run in record.of(arm)]))
    figure.update_yaxes(type="log", dtick=1)
    return figure


def draw_likeness(record: Record) -> go.Figure:
    """Draw how alike input gradients are, from distance 1 on."""
    figure = two_panels("distance, in steps of the walk", "mean cosine", TITLES)
    for arm, panel in panels(record):
        add_line(figure, panel, arm, mean_of([run.likeness[1:] for run in record.of(arm)]))
    return figure


def panels(record: Record) -> Iterator[tuple[str, int]]:
    """Yield each arm and the panel it is drawn in: plain networks left, residual ones right."""
    return ((arm, 1 if is_plain(arm) else 2) for arm in record.arms)


def two_panels(x_title: str, y_title: str, titles: Sequence[str]) -> go.Figure:
    """Make an empty figure of two panels with one scale."""
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.04)
    figure.update_layout(template="plotly_white", height=420, margin={"l": 60, "r": 20, "t": 40, "b": 50})
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(title_text=y_title, col=1)
    return figure


def add_line(figure: go.Figure, panel: int, arm: str, values: Curve, seed: int | None = None) -> None:
    """Draw a curve from 1 on: thin for a seed, bold and named in the legend for a mean."""
    thin = seed is not None
    named = {trace.name for trace in figure.data if trace.showlegend}  # one entry switches both panels
    figure.add_scatter(
        x=np.arange(1, 1 + len(values)),
        y=values,
        mode="lines",
        name=arm,
        legendgroup=arm,
        showlegend=not thin and arm not in named,
        opacity=0.3 if thin else 1,
        line={
            "color": PLAIN_COLOUR if is_plain(arm) else RESIDUAL_COLOUR,
            "width": 1 if thin else 3,
            "dash": "dot" if arm.endswith("18") and not thin else "solid",
        },
        hovertemplate=f"{arm}{f', seed {seed}' if thin else ''}<br>%{{x}}: %{{y:.3g}}<extra></extra>",
        row=1,
        col=panel,
    )


def mean_of(curves: Sequence[Sequence[float] | Curve]) -> Curve:
    """Average curves of one length."""
    mean: Curve = np.array(curves, np.float64).mean(axis=0)
    return mean


def running_mean(values: Curve, window: int) -> Curve:
    """Average each value with up to ``window - 1`` before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(sums))
    starts = np.maximum(0, ends - window)
    means: Curve = (sums[ends] - sums[starts]) / (ends - starts)
    return means
