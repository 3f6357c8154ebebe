"""The results as one HTML page that needs nothing else: plots, every figure, conditions, raw samples."""

import itertools
import json
import math
from importlib import resources

import jinja2
import msgspec
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from resnet_deploy.bench import statistics
from resnet_deploy.bench.records import BenchRecord
from resnet_deploy.bench.statistics import Summary
from resnet_deploy.names import printable
from resnet_deploy.report import reproduce, wording
from resnet_deploy.report.columns import Column, columns
from resnet_deploy.report.every_way import way_tables
from resnet_deploy.report.evidence import way_key
from resnet_deploy.report.figures import new_figure, styles
from resnet_deploy.report.gallery import capital, gallery
from resnet_deploy.report.verdict_columns import verdict_columns
from resnet_deploy.report.way_columns import way_columns

_MACHINE_TOLD = ("used", "elsewhere", "stolen")


def render_html(record: BenchRecord) -> str:
    """Render ``record`` as a page to be written as UTF-8.

    The record itself is inside, in the element ``record``: what the page shows can be computed again from the page, and
    every figure of its tables leads to the samples that it was computed from.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    rows = statistics.summarize(record)
    groups = gallery(record, rows)
    drawn = {plot.div: json.loads(plot.figure.to_json()) for _, group in groups for plot in group}
    return environment.from_string(_part("template.html")).render(
        record=record,
        wording=wording,
        capital=capital,
        lead=_lead(record, rows),
        engines=list(zip(rows, styles(record), strict=True)),
        results=_table(columns(record, rows, detail=True)),
        verdicts=_table(verdict_columns(record, rows)),
        ways=_table(way_columns(record, rows)),
        way_tables=way_tables(record),
        machine=_machine(record),
        decoding=_decoding(record),
        conditions=_conditions(record),
        command=reproduce.command(record),
        groups=groups,
        figures=_embed(drawn),
        strip=_embed(json.loads(new_figure("call, in the order of measuring", "milliseconds").to_json())),
        keys=_embed(
            [
                (engine.name, [(way_key(one.way), wording.way(one.way)) for one in engine.latency])
                for engine in record.engines
            ]
        ),
        raw=_embed(record),
        style=Markup(_part("page.css")),  # noqa: S704 - ours
        script=Markup(_part("page.js")),  # noqa: S704 - ours
        plotly=Markup(get_plotlyjs()),  # noqa: S704 - plotly's own code
    )


def _part(name: str) -> str:
    return resources.files("resnet_deploy.report").joinpath(name).read_text(encoding="utf-8")


def _lead(record: BenchRecord, rows: tuple[Summary, ...]) -> str:
    """Say in a sentence what the run found."""
    if not rows:
        return "No engine could be run here."
    fastest = max(rows, key=lambda row: row.throughput)
    best = fastest.best
    if best is None:
        return "The engines have no scope in common that their speed can be compared in."
    name, rate = printable(fastest.engine.name), wording.significant(fastest.throughput)
    lead = f"Fastest: {name}, {rate} images/s at batch {best.batch}"
    if best.concurrency > 1:
        lead += f" with {wording.callers(best.concurrency)}"
    if fastest.speedup is None or fastest.compared is None:
        return f"{lead}."
    ends = f"{wording.confidence(fastest)} interval {wording.limits(fastest.speedup, wording.ratio)}"
    if math.isinf(fastest.speedup.high):
        ends = "too few rounds for an interval"
    callers = fastest.compared[1].concurrency
    alike = "" if callers == best.concurrency else f"with {wording.callers(callers)} "
    lead += f", {alike}{wording.ratio(fastest.speedup.value)} times {wording.reference_name(record)} "
    lead += f"({ends})"
    if fastest.accuracy is not None and fastest.accuracy.agreement is not None:
        lead += f", with which it agrees on {wording.percent(fastest.accuracy.agreement)} % of the images"
    return f"{lead}."


def _table(listed: tuple[Column, ...]) -> dict[str, object]:
    """Group neighbours whose headers share their first line."""
    groups = itertools.groupby(listed, key=lambda column: column.header[0] or column.header)
    grouped = [list(group) for _, group in groups]
    header = [(group[0].header[0], [column.header[1] for column in group]) for group in grouped]
    return {"header": header, "columns": listed}


def _machine(record: BenchRecord) -> list[tuple[str, ...]]:
    """Write what the machine did in each round; nothing where it did not tell."""
    states = [state for state in record.machine if any(getattr(state, name) is not None for name in _MACHINE_TOLD)]
    return [
        (
            f"{state.round}",
            f"{state.seconds:.1f}",
            *(_percent(getattr(state, name)) for name in _MACHINE_TOLD),
            wording.NOTHING if state.mhz is None else f"{state.mhz:,.0f}",
            printable(state.throttled) or wording.NOTHING,
        )
        for state in states
    ]


def _percent(share: float | None) -> str:
    return wording.NOTHING if share is None else f"{100 * share:.1f}"


def _decoding(record: BenchRecord) -> list[tuple[str, str, str]]:
    """Write what decoding leaves of each engine's throughput, in images per second."""
    if record.decoding is None:
        return []
    return [
        (printable(name), wording.significant(alone), wording.significant(both))
        for name, (alone, both) in record.decoding.engines.items()
    ]


def _conditions(record: BenchRecord) -> list[tuple[str, str]]:
    """List what the figures depend on besides the machine."""
    contract = record.preprocess
    prepared = (
        f"{wording.prepared(contract)}; "
        f"{contract.dtype} {contract.layout} {contract.color}, mean {contract.mean}, std {contract.std}"
    )
    return [
        *(("timed", line) for line in wording.timed(record)),
        ("procedure", wording.procedure(record)),
        ("harness", wording.harness(record)),
        *(("data", line) for line in wording.data(record)),
        ("model", f"{printable(record.architecture)}, weights SHA-256 {record.weights_sha256[:12]}"),
        ("input", prepared),
    ]


def _embed(value: object) -> Markup:
    r"""Write JSON that no HTML parser takes for markup: ``<`` becomes ``\u003c``, which JSON reads back as ``<``."""
    text = msgspec.json.encode(value).decode()
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # noqa: S704 - escaped above
