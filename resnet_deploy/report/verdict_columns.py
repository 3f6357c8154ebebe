"""The columns of verdicts: whether a difference from the reference is one, in speed and in accuracy."""

from collections.abc import Callable

from resnet_deploy.bench.accuracy import Flips
from resnet_deploy.bench.records import BenchRecord
from resnet_deploy.bench.statistics import Summary
from resnet_deploy.report import evidence, wording
from resnet_deploy.report.columns import Cell, Column


def verdict_columns(record: BenchRecord, rows: tuple[Summary, ...]) -> tuple[Column, ...]:
    """List the columns of verdicts that ``rows`` have; none without a reference to differ from."""
    name, listed = wording.reference_name(record), []
    if any(row.speed_verdict is not None for row in rows):
        listed.append(Column("speed", (f"speed, against {name}", "verdict"), lambda row: _speed(record, row)))
    if any(row.accuracy_verdict is not None for row in rows):
        header = f"top-1, against {name}, image by image"
        listed += [
            Column("accuracy", (header, "gained"), _of_flips(record, "gained", lambda flips: f"{flips.gained:,}")),
            Column("accuracy", (header, "lost"), _of_flips(record, "lost", lambda flips: f"{flips.lost:,}")),
            Column("accuracy", (header, "McNemar p"), _of_flips(record, "p-value", _p_value)),
            Column("accuracy", (header, "verdict"), _of_flips(record, "verdict", None)),
        ]
    return tuple(listed)


def _speed(record: BenchRecord, row: Summary) -> Cell:
    if row.speed_verdict is None:
        return Cell()
    return Cell(row.speed_verdict, evidence=evidence.of_speedup(record, row))


def _of_flips(record: BenchRecord, figure: str, write: Callable[[Flips], str] | None) -> Callable[[Summary], Cell]:
    """Write a figure of the images that only one of the two answers rightly, or what the test says of them."""
    rules = {
        "gained": "images that this engine answers rightly and the reference does not",
        "lost": "images that the reference answers rightly and this engine does not",
    }

    def cell(row: Summary) -> Cell:
        test = (
            "McNemar's exact test of the images that only one of the two answers rightly; "
            f"significant up to {row.level:.3g}, which is 0.05 shared by all engines"
        )
        flips = row.accuracy.flips if row.accuracy is not None else None
        if flips is None or row.accuracy_verdict is None:
            return Cell()
        text = row.accuracy_verdict if write is None else write(flips)
        found = evidence.of_answers(record, row.engine, (figure, ""), rules.get(figure, test))
        return Cell(text, evidence=found)

    return cell


def _p_value(flips: Flips) -> str:
    return "<0.0001" if flips.p_value < 0.0001 else f"{flips.p_value:.4f}"
