"""The plots of throughput over batch size and over callers, a plot for each scope: scopes do not share an axis."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import plotly.graph_objects as go

from resnet_deploy.bench import statistics
from resnet_deploy.bench.records import BenchRecord, EngineRecord, Samples, Way
from resnet_deploy.bench_spec import Scope
from resnet_deploy.report.figures import label, new_figure, scale, styles

_COPIES: Final = ("h2d", "d2h")  # copies are in the tables: images per second of a copy alone is no throughput


@dataclass(frozen=True)
class Sweep:
    """What was varied while the rest stood still.

    Attributes:
        scope: Of all of its calls.
        fixed: The batch size of a sweep over callers; the number of callers of a sweep over batch sizes.
        values: What was varied, ascending.
    """

    scope: Scope
    fixed: int
    values: tuple[int, ...]


def batch_sweeps(record: BenchRecord) -> list[Sweep]:
    """Find the scopes in which a single caller was timed: one sweep over batch sizes for each."""
    return list(_sweeps(record, lambda way: way.concurrency, lambda way: way.batch, least=1, only={1}))


def caller_sweeps(record: BenchRecord) -> list[Sweep]:
    """Find the scopes and batch sizes that more than one number of callers were timed in."""
    return list(_sweeps(record, lambda way: way.batch, lambda way: way.concurrency, least=2, only=None))


def plot_batches(record: BenchRecord, sweep: Sweep) -> go.Figure:
    """Plot throughput over batch size, with 95 % intervals."""
    figure = new_figure("batch size", "images per second")
    _draw(figure, record, sweep, lambda way: (way.concurrency, way.batch))
    return figure


def plot_callers(record: BenchRecord, sweep: Sweep) -> go.Figure:
    """Plot throughput over the number of callers at once, with 95 % intervals."""
    figure = new_figure("callers at once", "images per second")
    _draw(figure, record, sweep, lambda way: (way.batch, way.concurrency))
    return figure


def _sweeps(
    record: BenchRecord, fixed: Callable[[Way], int], varied: Callable[[Way], int], *, least: int, only: set[int] | None
) -> Iterator[Sweep]:
    values: dict[tuple[Scope, int], set[int]] = defaultdict(set)
    for way in _closed_ways(record.engines):
        if way.scope not in _COPIES and (only is None or fixed(way) in only):
            values[way.scope, fixed(way)].add(varied(way))
    for (scope, still), found in values.items():
        if len(found) >= least:
            yield Sweep(scope, still, tuple(sorted(found)))


def _closed_ways(engines: Iterable[EngineRecord]) -> list[Way]:
    """List the ways in which callers called again at once: what is paced has the throughput that it is given."""
    return [one.way for engine in engines for one in engine.latency if one.way.offered is None]


def _draw(figure: go.Figure, record: BenchRecord, sweep: Sweep, place: Callable[[Way], tuple[int, int]]) -> None:
    """Draw a line per engine, and one more, paler, where it ran without CUDA graphs as well."""
    rates: list[float] = []
    for number, (engine, style) in enumerate(zip(record.engines, styles(record), strict=True)):
        for graphs, points in _lines(engine, sweep, place):
            intervals = [statistics.throughput_interval(samples) for _, samples in points]
            rates += [rate for interval in intervals for rate in (interval.low, interval.high)]
            figure.add_scatter(
                x=[value for value, _ in points],
                y=[interval.value for interval in intervals],
                error_y={
                    "array": [max(0.0, interval.high - interval.value) for interval in intervals],
                    "arrayminus": [max(0.0, interval.value - interval.low) for interval in intervals],
                    "thickness": 1,
                    "width": 3,
                },
                mode="lines+markers",
                line=style.line,
                marker=style.marker(8),
                opacity=0.5 if graphs is False else 1,
                name=label(engine) + {None: "", True: ", CUDA graphs", False: ", no CUDA graphs"}[graphs],
                meta={"engine": number},
                hovertemplate="%{fullData.name}<br>" + f"{figure.layout.xaxis.title.text}" + " %{x}<br>"
                "%{y:,.4~g} images/s<extra></extra>",
            )
    figure.update_xaxes(type="log", tickvals=list(sweep.values), ticktext=[str(value) for value in sweep.values])
    scale(figure.layout.yaxis, rates)


def _lines(
    engine: EngineRecord, sweep: Sweep, place: Callable[[Way], tuple[int, int]]
) -> list[tuple[bool | None, list[tuple[int, Samples]]]]:
    """Sort an engine's samples that belong to a sweep by CUDA graphs, and each line by what was varied."""
    lines: dict[bool | None, list[tuple[int, Samples]]] = defaultdict(list)
    for samples in engine.latency:
        still, value = place(samples.way)
        if samples.offered is None and samples.scope == sweep.scope and still == sweep.fixed:
            lines[samples.graphs].append((value, samples))
    return [(graphs, sorted(points, key=_value)) for graphs, points in lines.items()]


def _value(point: tuple[int, Any]) -> int:
    return point[0]
