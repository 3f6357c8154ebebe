"""The columns that tell ways of calling apart, the same for the terminal and the page."""

from collections.abc import Callable, Iterator

from resnet_deploy.bench import statistics
from resnet_deploy.bench.records import BenchRecord, Samples, Way
from resnet_deploy.bench.statistics import Summary
from resnet_deploy.bench_spec import Scope
from resnet_deploy.report import evidence, wording
from resnet_deploy.report.columns import Cell, Column, throughput_cell


def way_columns(record: BenchRecord, rows: tuple[Summary, ...]) -> tuple[Column, ...]:
    """List the columns that tell ways of calling apart: several scopes, several numbers of callers, paces."""
    closed = [one.way for row in rows for one in row.engine.latency if one.offered is None]
    scope = statistics.headline_scope(record.engines)
    callers = sorted({way.concurrency for way in closed if way.scope == scope})
    listed = []
    if len(scopes := wording.scopes(record)) > 1 or scope is None:
        smallest = min((way.batch for way in closed), default=1)
        header = f"p50 ms, batch {smallest}, 1 caller"
        listed += [
            Column("scopes", (header, wording.scope_name(scope)), _scope_latency(scope, smallest)) for scope in scopes
        ]
    if len(callers) > 1 and scope is not None:
        header = "images/s (batch) by callers"
        listed += [Column("callers", (header, f"{count}"), _callers_throughput(scope, count)) for count in callers]
    return (*listed, *_paced(rows, scope))


def _paced(rows: tuple[Summary, ...], scope: Scope | None) -> Iterator[Column]:
    """Two columns for each pace: of the smallest batch and the fewest callers, the rest being for the page."""
    paced = [one.way for row in rows for one in row.engine.latency if one.offered is not None]
    if not paced:
        return
    shown = min(paced, key=lambda way: (way.scope != scope, way.batch, way.concurrency))
    alike = [way for way in paced if _but_pace(way) == _but_pace(shown)]
    for rate in sorted({way.offered for way in alike if way.offered is not None}):
        within = "" if shown.scope == scope else f", {wording.scope_name(shown.scope)}"
        called = f"batch {shown.batch}, {wording.callers(shown.concurrency)}{within}"
        header = f"ms at {wording.significant(rate)} calls/s, {called}"
        way = Way(shown.batch, shown.scope, shown.concurrency, None, rate)
        for percent in (50, 99):
            yield Column("paced", (header, f"p{percent}"), _latency_at(way, percent))


def _latency_at(way: Way, percent: float) -> Callable[[Summary], Cell]:
    """Write a latency from when each call was due, with CUDA graphs where there are both."""

    def cell(row: Summary) -> Cell:
        found = [
            one for one in row.engine.latency if one.offered == way.offered and _but_pace(one.way) == _but_pace(way)
        ]
        if not found:
            return Cell()
        samples = min(found, key=lambda one: statistics.way_order(one.way))
        text = wording.milliseconds(statistics.percentile(samples.seconds, percent))
        return Cell(text, evidence=evidence.of_percentile(row.engine, samples, percent))

    return cell


def _but_pace(way: Way) -> tuple[Scope, int, int]:
    return way.scope, way.batch, way.concurrency


def _scope_latency(scope: Scope, batch: int) -> Callable[[Summary], Cell]:
    def cell(row: Summary) -> Cell:
        found = [one for one in row.engine.latency if _is_plain(one, scope) and one.batch == batch]
        if not found:
            return Cell()
        samples = min(found, key=lambda one: statistics.way_order(one.way))
        text = wording.milliseconds(statistics.percentile(samples.seconds, 50))
        return Cell(text, evidence=evidence.of_percentile(row.engine, samples, 50))

    return cell


def _is_plain(samples: Samples, scope: Scope) -> bool:
    """Whether one caller called again as soon as it had its answer."""
    return samples.scope == scope and samples.concurrency == 1 and samples.offered is None


def _callers_throughput(scope: Scope, concurrency: int) -> Callable[[Summary], Cell]:
    def cell(row: Summary) -> Cell:
        found = [
            one
            for one in row.engine.latency
            if one.scope == scope and one.concurrency == concurrency and one.offered is None
        ]
        return throughput_cell(row, max(found, key=statistics.throughput), callers=False) if found else Cell()

    return cell
