"""The columns of the results, the same for the terminal and the page."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from resnet_deploy.bench import statistics
from resnet_deploy.bench.records import BenchRecord, Samples
from resnet_deploy.bench.statistics import Accuracy, Summary
from resnet_deploy.report import evidence, wording
from resnet_deploy.report.evidence import Evidence


@dataclass(frozen=True)
class Cell:
    """One figure as text.

    Attributes:
        text: The figure.
        interval: Its interval, where there is one: of 95 %, and of a speed-up as ``wording.meanings`` says.
        evidence: The raw values it was computed from, where it was computed from any.
    """

    text: str = wording.NOTHING
    interval: str = ""
    evidence: Evidence | None = None


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        group: Which of a narrow terminal's tables it belongs to; ``engine`` goes first.
        header: Two lines: what it is, and its unit. Neighbours with the same first line share it.
        cell: Writes one engine's figure.
        best: The figure to set off from the others, compared with ``value``; None for none.
        value: The figure itself, where ``best`` is set.
        detail: Only the page has room for it.
        interval_everywhere: Whether the terminal shows the interval too.
    """

    group: Literal["engine", "accuracy", "speed", "scopes", "callers", "paced"]
    header: tuple[str, str]
    cell: Callable[[Summary], Cell]
    best: float | None = None
    value: Callable[[Summary], float] = lambda row: 0.0
    detail: bool = False
    interval_everywhere: bool = False

    def is_best(self, row: Summary) -> bool:
        """Whether this engine's figure is the one to set off."""
        return self.best is not None and self.value(row) == self.best


def columns(record: BenchRecord, rows: tuple[Summary, ...], *, detail: bool = False) -> tuple[Column, ...]:
    """List the columns that ``record`` has figures for; the engine's name is not among them."""
    listed = [
        Column("engine", ("", "precision"), lambda row: Cell(row.engine.precision)),
        Column("engine", ("size", "MB"), lambda row: Cell(wording.size(row.engine.size_bytes))),
    ]
    if record.dataset is not None and any(row.accuracy is not None for row in rows):
        if record.dataset.labels:
            listed += _against_labels(record)
        if record.reference:
            listed += _against_reference(record)
    if rows:
        listed += _speed(record, rows, detail=detail)
    return tuple(column for column in listed if detail or not column.detail)


def _against_labels(record: BenchRecord) -> list[Column]:
    listed = [
        Column("accuracy", ("top-1", "%"), _share(record, "top-1", lambda counts: counts.top1)),
        Column("accuracy", ("top-5", "%"), _share(record, "top-5", lambda counts: counts.top5)),
    ]
    if record.reference:
        change = _of_others(record, lambda row: _top1_change(record, row))
        listed.append(Column("accuracy", ("top-1 change", "points"), change, detail=True))
    return listed


def _against_reference(record: BenchRecord) -> list[Column]:
    name = wording.reference_name(record)
    agreement = _of_others(record, _share(record, "agreement", lambda counts: counts.agreement))
    return [
        Column("accuracy", ("agreement", f"{name} %"), agreement),
        Column("accuracy", ("logit error", "SQNR dB"), _of_others(record, lambda row: _sqnr(record, row))),
    ]


def _speed(record: BenchRecord, rows: tuple[Summary, ...], *, detail: bool) -> list[Column]:
    """List the columns of what engines are compared in; none where they have no scope in common."""
    bests = [row.best for row in rows if row.best is not None]
    if not bests:
        return []
    listed = [_latency(percent, rows, with_interval=detail) for percent in (50, 90, 99)]
    most = max(row.throughput for row in rows) if len(rows) > 1 else None
    callers = any(best.concurrency > 1 for best in bests)
    unit = "(batch\N{MULTIPLICATION SIGN}callers)" if callers else "(batch)"

    def throughput(row: Summary) -> Cell:
        return Cell() if row.best is None else throughput_cell(row, row.best, callers=callers)

    listed.append(Column("speed", ("images/s", unit), throughput, most, lambda row: row.throughput))
    if record.reference:
        header = ("speed-up", f"{wording.reference_name(record)} = 1")
        listed.append(
            Column(
                "speed", header, _of_others(record, lambda row: _speedup(record, row), "1"), interval_everywhere=True
            )
        )
    return listed


def _latency(percent: float, rows: tuple[Summary, ...], *, with_interval: bool) -> Column:
    """Quote a percentile at the smallest batch, naming it in the header, or in brackets where engines differ in it."""
    batches = {row.latency.batch for row in rows}
    same = len(batches) == 1
    header = f"latency ms, batch {min(batches)}" if same else "latency ms (batch)"

    def value(row: Summary) -> float:
        return statistics.percentile(row.latency.seconds, percent)

    def cell(row: Summary) -> Cell:
        text = wording.milliseconds(value(row)) + ("" if same else f" ({row.latency.batch})")
        found = evidence.of_percentile(row.engine, row.latency, percent)
        if not with_interval:
            return Cell(text, evidence=found)
        interval = statistics.percentile_interval(row.latency, percent)
        return Cell(text, wording.limits(interval, wording.milliseconds), found)

    least = min(map(value, rows)) if same and len(rows) > 1 else None
    return Column("speed", (header, f"p{percent}"), cell, least, value)


def _of_others(
    record: BenchRecord, write: Callable[[Summary], Cell], own: str = wording.NOTHING
) -> Callable[[Summary], Cell]:
    """Leave out the comparison of the reference with itself."""
    return lambda row: Cell(own) if row.engine.name == record.reference else write(row)


def _share(record: BenchRecord, name: str, pick: Callable[[Accuracy], float | None]) -> Callable[[Summary], Cell]:
    rules = {
        "top-1": "images whose best class is the label",
        "top-5": "images whose label is among the five best classes",
        "agreement": "images whose best class is the reference's",
    }

    def cell(row: Summary) -> Cell:
        share = pick(row.accuracy) if row.accuracy is not None else None
        if row.accuracy is None or share is None:
            return Cell()
        interval = statistics.share_interval(share, row.accuracy.images)
        rule = f"{rules[name]}: {round(share * row.accuracy.images):,} of {row.accuracy.images:,}; Wilson's interval"
        found = evidence.of_answers(record, row.engine, (name, "%"), rule)
        return Cell(wording.percent(share), wording.limits(interval, wording.percent), found)

    return cell


def _top1_change(record: BenchRecord, row: Summary) -> Cell:
    change = row.accuracy.top1_change if row.accuracy is not None else None
    if change is None:
        return Cell()
    rule = "top-1 less the reference's, counted on the same images; the interval is that of Agresti and Min"
    found = evidence.of_answers(record, row.engine, ("top-1-change", "points"), rule)
    return Cell(wording.points(change.value), wording.limits(change, wording.points), found)


def _sqnr(record: BenchRecord, row: Summary) -> Cell:
    value = row.accuracy.sqnr_db if row.accuracy is not None else None
    if value is None:
        return Cell()
    rule = "ten times the logarithm of the sum of signal over the sum of noise, over all images"
    return Cell(wording.decibels(value), evidence=evidence.of_answers(record, row.engine, ("sqnr", "dB"), rule))


def throughput_cell(row: Summary, samples: Samples, *, callers: bool) -> Cell:
    """Write a throughput with its batch in brackets, and the number of callers if they are to be told apart."""
    interval = statistics.throughput_interval(samples)
    way = f"{samples.batch}\N{MULTIPLICATION SIGN}{samples.concurrency}" if callers else f"{samples.batch}"
    text = f"{wording.significant(interval.value)} ({way})"
    return Cell(text, wording.limits(interval, wording.significant), evidence.of_throughput(row.engine, samples))


def _speedup(record: BenchRecord, row: Summary) -> Cell:
    if row.speedup is None:
        return Cell()
    found = evidence.of_speedup(record, row)
    return Cell(wording.ratio(row.speedup.value), wording.limits(row.speedup, wording.ratio), found)
