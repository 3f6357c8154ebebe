"""The tables of every way in which engines were called, a table for each scope."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from resnet_deploy.bench import statistics
from resnet_deploy.bench.records import BenchRecord, EngineRecord, Samples
from resnet_deploy.names import printable
from resnet_deploy.report import evidence, wording
from resnet_deploy.report.columns import Cell

# With fewer calls the percentile is the slowest call itself, which has a column of its own.
_PERCENTILES: Final = ((0, 1), (50, 1), (90, 10), (95, 20), (99, 100), (99.9, 1000), (100, 1))
_WITH_INTERVAL: Final = (50, 99)


@dataclass(frozen=True)
class WayTable:
    """What was measured in one scope.

    Attributes:
        scope: Its name in words.
        header: Of the columns that say how the engine was called, before those of figures.
        engines: Name of each engine with its rows, a row for each way.
    """

    scope: str
    header: tuple[str, ...]
    engines: tuple[tuple[str, tuple[tuple[Cell, ...], ...]], ...]


def way_tables(record: BenchRecord) -> tuple[WayTable, ...]:
    """Write what was measured in every way, scope by scope."""
    tables = []
    for scope in wording.scopes(record):
        by_engine = [
            (
                engine,
                sorted(
                    (one for one in engine.latency if one.scope == scope), key=lambda one: statistics.way_order(one.way)
                ),
            )
            for engine in record.engines
        ]
        listed = [samples for _, own in by_engine for samples in own]
        shown = [column for column in _CALLED if column.is_shown(listed)]
        engines = tuple(
            (printable(engine.name), tuple(_row(engine, samples, shown) for samples in own))
            for engine, own in by_engine
            if own
        )
        tables.append(WayTable(wording.scope_name(scope), tuple(column.header for column in shown), engines))
    return tuple(tables)


@dataclass(frozen=True)
class _Called:
    """A column that says how the engine was called, shown where the answer is not always the same plain one."""

    header: str
    write: Callable[[Samples], str]
    plain: str = ""

    def is_shown(self, listed: list[Samples]) -> bool:
        return any(self.write(samples) != self.plain for samples in listed)


_CALLED: Final = (
    _Called("batch", lambda samples: f"{samples.batch}"),
    _Called("callers", lambda samples: f"{samples.concurrency}", "1"),
    _Called(
        "CUDA graphs",
        lambda samples: {None: wording.NOTHING, True: "yes", False: "no"}[samples.graphs],
        wording.NOTHING,
    ),
    _Called(
        "calls/s due",
        lambda samples: wording.NOTHING if samples.offered is None else wording.significant(samples.offered),
        wording.NOTHING,
    ),
)


def _row(engine: EngineRecord, samples: Samples, shown: list[_Called]) -> tuple[Cell, ...]:
    called = (Cell(column.write(samples)) for column in shown)
    times = (_percentile(engine, samples, percent, least) for percent, least in _PERCENTILES)
    counts = (Cell(f"{len(samples.seconds):,}"), Cell(f"{len(set(samples.rounds)):,}"))
    return (*called, *times, _throughput(engine, samples), *counts)


def _percentile(engine: EngineRecord, samples: Samples, percent: float, least: int) -> Cell:
    if len(samples.seconds) < least:
        return Cell()
    text = wording.milliseconds(statistics.percentile(samples.seconds, percent))
    interval = ""
    if percent in _WITH_INTERVAL:
        interval = wording.limits(statistics.percentile_interval(samples, percent), wording.milliseconds)
    return Cell(text, interval, evidence.of_percentile(engine, samples, percent))


def _throughput(engine: EngineRecord, samples: Samples) -> Cell:
    if samples.scope in ("h2d", "d2h"):
        return Cell()  # a copy alone is no throughput
    rate = statistics.throughput_interval(samples)
    interval = wording.limits(rate, wording.significant)
    return Cell(wording.significant(rate.value), interval, evidence.of_throughput(engine, samples))
