"""The columns of the results, the same for the terminal and the page."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from resnet_deploy.bench import statistics
from resnet_deploy.bench.records import BenchRecord
from resnet_deploy.bench.statistics import Accuracy, Summary
from resnet_deploy.report import wording


@dataclass(frozen=True)
class Cell:
    """One figure as text, with its 95 % interval where there is one."""

    text: str = wording.NOTHING
    interval: str = ""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        group: Which of a narrow terminal's two tables it belongs to; ``engine`` goes first in either.
        header: Two lines: what it is, and its unit. Neighbours with the same first line share it.
        cell: Writes one engine's figure.
        best: The figure to set off from the others, compared with ``value``; None for none.
        value: The figure itself, where ``best`` is set.
        detail: Only the page has room for it.
        interval_everywhere: Whether the terminal shows the interval too.
    """

    group: Literal["engine", "accuracy", "speed"]
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
        Column("accuracy", ("top-1", "%"), _share(lambda counts: counts.top1)),
        Column("accuracy", ("top-5", "%"), _share(lambda counts: counts.top5)),
    ]
    if record.reference:
        change = _of_others(record, _top1_change)
        listed.append(Column("accuracy", ("top-1 change", "points"), change, detail=True))
    return listed


def _against_reference(record: BenchRecord) -> list[Column]:
    name = wording.reference_name(record)
    agreement = _of_others(record, _share(lambda counts: counts.agreement))
    return [
        Column("accuracy", ("agreement", f"{name} %"), agreement),
        Column("accuracy", ("logit error", "SQNR dB"), _of_others(record, _sqnr)),
    ]


def _speed(record: BenchRecord, rows: tuple[Summary, ...], *, detail: bool) -> list[Column]:
    listed = [_latency(percent, rows, with_interval=detail) for percent in (50, 90, 99)]
    most = max(row.throughput for row in rows) if len(rows) > 1 else None
    listed.append(Column("speed", ("images/s", "(batch)"), _throughput, most, lambda row: row.throughput))
    if record.reference:
        header = ("speed-up", f"{wording.reference_name(record)} = 1")
        listed.append(Column("speed", header, _of_others(record, _speedup, "1"), interval_everywhere=True))
    return listed


def _latency(percent: float, rows: tuple[Summary, ...], *, with_interval: bool) -> Column:
    """Quote a percentile at the smallest batch, naming it in the header, or in brackets where engines differ in it."""
    batches = {row.latency_batch for row in rows}
    same = len(batches) == 1
    header = f"latency ms, batch {min(batches)}" if same else "latency ms (batch)"

    def value(row: Summary) -> float:
        return statistics.percentile(statistics.smallest_samples(row.engine).seconds, percent)

    def cell(row: Summary) -> Cell:
        text = wording.milliseconds(value(row)) + ("" if same else f" ({row.latency_batch})")
        if not with_interval:
            return Cell(text)
        interval = statistics.percentile_interval(statistics.smallest_samples(row.engine), percent)
        return Cell(text, wording.limits(interval, wording.milliseconds))

    least = min(map(value, rows)) if same and len(rows) > 1 else None
    return Column("speed", (header, f"p{percent}"), cell, least, value)


def _of_others(
    record: BenchRecord, write: Callable[[Summary], Cell], own: str = wording.NOTHING
) -> Callable[[Summary], Cell]:
    """Leave out the comparison of the reference with itself."""
    return lambda row: Cell(own) if row.engine.name == record.reference else write(row)


def _share(pick: Callable[[Accuracy], float | None]) -> Callable[[Summary], Cell]:
    def cell(row: Summary) -> Cell:
        share = pick(row.accuracy) if row.accuracy is not None else None
        if row.accuracy is None or share is None:
            return Cell()
        interval = statistics.share_interval(share, row.accuracy.images)
        return Cell(wording.percent(share), wording.limits(interval, wording.percent))

    return cell


def _top1_change(row: Summary) -> Cell:
    change = row.accuracy.top1_change if row.accuracy is not None else None
    return Cell() if change is None else Cell(wording.points(change.value), wording.limits(change, wording.points))


def _sqnr(row: Summary) -> Cell:
    value = row.accuracy.sqnr_db if row.accuracy is not None else None
    return Cell() if value is None else Cell(wording.decibels(value))


def _throughput(row: Summary) -> Cell:
    interval = statistics.throughput_interval(statistics.best_samples(row.engine))
    text = f"{wording.significant(row.throughput)} ({row.best_batch})"
    return Cell(text, wording.limits(interval, wording.significant))


def _speedup(row: Summary) -> Cell:
    if row.speedup is None:
        return Cell()
    return Cell(wording.ratio(row.speedup.value), wording.limits(row.speedup, wording.ratio))
