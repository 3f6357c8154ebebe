"""The plots of where the time of a call goes, by each backend's own profiler."""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

import plotly.graph_objects as go

from resnet_deploy.bench.records import BenchRecord, EngineRecord, LayerTime, LayerTimes
from resnet_deploy.report import wording
from resnet_deploy.report.figures import COLOURS, GREY, add_row_names, escaped, label, new_figure, styles

SHOWN: Final = 20  # layers of an engine; of the rest, the sum is told
COMPARED: Final = 60  # layers of two engines
_COLOURED_KINDS: Final = 8
_LONGEST_NAME: Final = 34  # characters of a name on a bar; the whole name shows on pointing
# Backends name what they fused after the modules of the model, with additions of their own before and after.
_MODULE: Final = re.compile(
    r"(?:\blayer\d+\.\d+\.(?:conv\d+|downsample\.0)|(?<![\w.])conv1|(?<![\w.])fc)(?![\w.]*\.weight)"
)
_MULTIPLIES: Final = re.compile("conv|gemm|matmul|fullyconnected", re.IGNORECASE)
_PREFIX: Final = re.compile(r"^InsertedPrecisionFreeCast_")


def kind_colours(record: BenchRecord) -> dict[str, str]:
    """Give the kinds of layer that take most time a colour each, over all engines; others share grey."""
    shares: dict[str, float] = defaultdict(float)
    for engine in _profiled(record):
        layers = _times(engine).layers
        whole = sum(layer.seconds for layer in layers)
        for layer in layers:
            shares[layer.kind] += layer.seconds / whole
    listed = sorted(shares, key=lambda kind: -shares[kind])[:_COLOURED_KINDS]
    return {kind: COLOURS[number % len(COLOURS)] for number, kind in enumerate(listed)}


def plot_kinds(record: BenchRecord, colours: dict[str, str]) -> go.Figure:
    """Plot a bar per engine, made of the time that each kind of layer takes."""
    figure = new_figure("milliseconds per call", "")
    engines = _profiled(record)
    for kind in (*colours, None):
        times = [sum(one.seconds for one in _times(engine).layers if _is(one, kind, colours)) for engine in engines]
        if not any(times):
            continue
        wholes = [sum(one.seconds for one in _times(engine).layers) for engine in engines]
        figure.add_bar(
            x=[1e3 * seconds for seconds in times],
            y=[len(engines) - 1 - number for number in range(len(engines))],
            orientation="h",
            width=0.42,
            offset=-0.3,
            marker={"color": GREY if kind is None else colours[kind]},
            name="other kinds" if kind is None else escaped(kind),
            customdata=[
                f"{label(engine)}<br>{100 * seconds / whole:.1f} % of the layers' time"
                for engine, seconds, whole in zip(engines, times, wholes, strict=True)
            ],
            hovertemplate="%{fullData.name}: %{x:.4~g} ms<br>%{customdata}<extra></extra>",
        )
    names = [f"{label(engine)}, batch {_times(engine).batch}" for engine in engines]
    add_row_names(figure, names, 0.3)
    figure.update_layout(barmode="stack", showlegend=True)
    figure.update_layout(legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "traceorder": "normal"})
    figure.update_yaxes(range=[-0.5, len(engines) - 0.4])
    return figure


def plot_slowest(times: LayerTimes, colours: dict[str, str]) -> go.Figure:
    """Plot the layers that take longest, the longest first."""
    shown = slowest(times)
    whole = sum(layer.seconds for layer in times.layers)
    figure = new_figure(f"milliseconds per call at batch {times.batch}", "")
    figure.add_bar(
        x=[1e3 * layer.seconds for layer in shown],
        y=list(range(len(shown))),
        orientation="h",
        marker={"color": [colours.get(layer.kind, GREY) for layer in shown], "opacity": 0.4},
        text=[_on_bar(layer) for layer in shown],
        textposition="inside",
        insidetextanchor="start",
        textangle=0,
        constraintext="none",
        textfont={"size": 11.5},
        customdata=[
            f"{escaped(layer.name)}<br>{escaped(layer.kind)}<br>{100 * layer.seconds / whole:.1f} % of the layers' time"
            for layer in shown
        ],
        hovertemplate="%{customdata}<br>%{x:.4~g} ms<extra></extra>",
    )
    figure.update_yaxes(visible=False, autorange="reversed")
    figure.update_layout(bargap=0.12, margin={"l": 8})
    return figure


def slowest(times: LayerTimes) -> list[LayerTime]:
    """Pick the layers that take longest, the longest first."""
    return sorted(times.layers, key=lambda layer: -layer.seconds)[:SHOWN]


def rest(times: LayerTimes) -> str:
    """Say what the layers that are not shown take; empty where all are."""
    count = len(times.layers) - SHOWN
    if count <= 0:
        return ""
    whole = sum(layer.seconds for layer in times.layers)
    left = whole - sum(layer.seconds for layer in slowest(times))
    return f"the other {count} take {wording.milliseconds(left)} ms together, {100 * left / whole:.0f} % of all"


def pairs(record: BenchRecord) -> Iterator[tuple[int, int]]:
    """Find the engines, by number, to compare layer by layer: FP32 with INT8 of the same backend, role and batch."""
    numbered = [(number, one) for number, one in enumerate(record.engines) if one.layers is not None]
    for (first, float32), (second, int8) in itertools.product(numbered, repeat=2):
        if (float32.precision, int8.precision) != ("fp32", "int8"):
            continue
        alike = [(one.backend, one.role, _times(one).batch) for one in (float32, int8)]
        if alike[0] == alike[1] and matched(_times(float32), _times(int8)):
            yield first, second


def matched(first: LayerTimes, second: LayerTimes) -> dict[str, tuple[float, float]]:
    """Pair the times of the layers that hold the same single convolution, in the order of execution."""
    other = _by_module(second.layers)
    return {name: (seconds, other[name]) for name, seconds in _by_module(first.layers).items() if name in other}


def plot_pair(record: BenchRecord, pair: tuple[int, int]) -> go.Figure:
    """Plot the time of each layer in two engines, in the order of execution."""
    engines = [record.engines[number] for number in pair]
    looks = styles(record)
    both = matched(*(_times(engine) for engine in engines))
    kept = set(sorted(both, key=lambda name: -max(both[name]))[:COMPARED])
    names = [name for name in both if name in kept]
    figure = new_figure("milliseconds per call", "")
    figure.add_scatter(
        x=[value for name in names for value in (*(1e3 * seconds for seconds in both[name]), None)],
        y=[value for name in names for value in (name, name, None)],
        mode="lines",
        line={"color": GREY, "width": 1},
        hoverinfo="skip",
    )
    for side, (engine, number) in enumerate(zip(engines, pair, strict=True)):
        figure.add_scatter(
            x=[1e3 * both[name][side] for name in names],
            y=names,
            mode="markers",
            marker=looks[number].marker(8),
            name=label(engine),
            meta={"engine": number},
            customdata=[f"{both[name][0] / both[name][1]:.2f} times as fast" for name in names],
            hovertemplate="%{fullData.name}<br>%{y}<br>%{x:.4~g} ms<br>INT8 is %{customdata}<extra></extra>",
        )
    figure.update_yaxes(range=[len(names) - 0.4, -0.6], tickfont={"size": 11}, dtick=1, type="category")
    figure.update_xaxes(rangemode="tozero")
    return figure


def _by_module(layers: Sequence[LayerTime]) -> dict[str, float]:
    """Sum the time of the layers by the module of the model that they name; layers that name several are left out."""
    times: dict[str, float] = {}
    for layer in layers:
        found = set(_MODULE.findall(_PREFIX.sub("", layer.name)))
        if len(found) == 1 and _MULTIPLIES.search(layer.kind):
            (name,) = found
            times[name] = times.get(name, 0) + layer.seconds
    return times


def _profiled(record: BenchRecord) -> list[EngineRecord]:
    return [engine for engine in record.engines if engine.layers is not None]


def _times(engine: EngineRecord) -> LayerTimes:
    assert engine.layers is not None
    return engine.layers


def _is(layer: LayerTime, kind: str | None, colours: dict[str, str]) -> bool:
    return layer.kind == kind if kind is not None else layer.kind not in colours


def _on_bar(layer: LayerTime) -> str:
    """Write what stands on a bar: name, kind, time."""
    name = _PREFIX.sub("", layer.name)
    if len(name) > _LONGEST_NAME:
        half = _LONGEST_NAME // 2
        name = f"{name[:half]}\N{HORIZONTAL ELLIPSIS}{name[1 - half :]}"
    return escaped(f"{name} \N{MIDDLE DOT} {layer.kind} \N{MIDDLE DOT} {wording.milliseconds(layer.seconds)} ms")
