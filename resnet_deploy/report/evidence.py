"""Which raw values a figure was computed from, and how: what the page shows of a figure that is followed."""

from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote

from resnet_deploy.bench import statistics
from resnet_deploy.bench.intervals import nearest_rank_index
from resnet_deploy.bench.records import BenchRecord, EngineRecord, Samples, Way
from resnet_deploy.bench.statistics import Summary
from resnet_deploy.report import wording

ANSWERS: Final = "answers"


@dataclass(frozen=True)
class Evidence:
    """The raw values behind one figure.

    Attributes:
        kind: Times of calls, or answers on the data set.
        engine: Its name.
        way: Key of the way of calling; empty for answers.
        figure: What was computed, as the page's address has it, such as ``p99``.
        unit: Of the figure, such as ``ms``.
        rule: How it was computed, in words.
        against: Address of the values it was compared with; empty for none.
        call: Which call the figure is, from 0; None where it is computed from several.
    """

    kind: Literal["samples", "answers"]
    engine: str
    way: str
    figure: str
    unit: str
    rule: str
    against: str = ""
    call: int | None = None

    @property
    def address(self) -> str:
        """The fragment of the page's address that shows them; stable from one page to the next."""
        return "#" + "/".join(quote(part, safe="") for part in (self.kind, self.engine, self.way, self.figure) if part)


def way_key(way: Way) -> str:
    """Name a way of calling as the page's address has it, such as ``host-b8-c2``."""
    parts = [way.scope, f"b{way.batch}"]
    if way.concurrency > 1:
        parts.append(f"c{way.concurrency}")
    if way.graphs is not None:
        parts.append("graphs" if way.graphs else "nographs")
    if way.offered is not None:
        parts.append(f"r{way.offered:g}")
    return "-".join(parts)


def of_percentile(engine: EngineRecord, samples: Samples, percent: float) -> Evidence:
    """Say which call a percentile is: it is a call that was really made."""
    count = len(samples.seconds)
    rank = nearest_rank_index(percent, count) + 1
    name, rule = f"p{percent:g}", f"nearest-rank p{percent:g} of {count:,} calls: number {rank:,} from the fastest"
    if percent in (0, 100):
        name = "slowest" if percent else "fastest"
        rule = f"the {name} of {count:,} calls"
    call = samples.seconds.index(statistics.percentile(samples.seconds, percent))
    return Evidence("samples", engine.name, way_key(samples.way), name, "ms", rule, call=call)


def of_throughput(engine: EngineRecord, samples: Samples) -> Evidence:
    """Say what a throughput was computed from."""
    images = f"{samples.batch} images \N{MULTIPLICATION SIGN} {len(samples.seconds):,} calls"
    if samples.wall:
        rule = f"{images}, over the {sum(samples.wall):.4g} s of wall clock that their rounds took"
    else:
        rule = f"{images}, over the {sum(samples.seconds):.4g} s that the calls took, one after the other"
    return Evidence("samples", engine.name, way_key(samples.way), "throughput", "images/s", rule)


def of_speedup(record: BenchRecord, row: Summary) -> Evidence | None:
    """Say what a speed-up was computed from; nothing where there is none."""
    if row.compared is None:
        return None
    reference, own = row.compared
    rule = (
        "in each round, images per second over the reference's, both in their best way with numbers of callers that "
        "both have; of these ratios the Hodges-Lehmann estimate, with the interval by Wilcoxon's signed ranks, of "
        f"{wording.confidence(row)}"
    )
    against = f"{quote(record.reference, safe='')}/{way_key(reference.way)}"
    return Evidence("samples", row.engine.name, way_key(own.way), "speed-up", "times", rule, against)


def of_answers(record: BenchRecord, engine: EngineRecord, figure: tuple[str, str], rule: str) -> Evidence:
    """Say which answers a figure, given with its unit, was counted from; those of the reference stand beside them."""
    against = quote(record.reference, safe="") if record.reference not in ("", engine.name) else ""
    return Evidence(ANSWERS, engine.name, "", *figure, rule, against)
