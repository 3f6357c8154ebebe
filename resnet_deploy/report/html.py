"""The results as one HTML page that needs nothing else: plots, every figure, conditions, raw samples."""

import itertools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from resnet_deploy.bench import statistics
from resnet_deploy.bench.records import BenchRecord, EngineRecord, Samples
from resnet_deploy.bench.statistics import Summary
from resnet_deploy.report import plots, quantization_plots, wording
from resnet_deploy.report.columns import Cell, Column, columns


@dataclass(frozen=True)
class _Plot:
    """A plot with the words around it."""

    div: str
    title: str
    caption: str
    figure: Any


def render_html(record: BenchRecord) -> str:
    """Render ``record`` as a page to be written as UTF-8.

    The record itself is inside, in the element ``record``: what the page shows can be computed again from the page.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        resources.files("resnet_deploy.report").joinpath("template.html").read_text(encoding="utf-8")
    )
    rows = statistics.summarize(record)
    listed = columns(record, rows, detail=True)
    drawn = _plots(record, rows)
    return template.render(
        record=record,
        wording=wording,
        capital=_capital,
        lead=_lead(record, rows),
        engines=list(zip(rows, plots.styles(record), strict=True)),
        header=[(title, [column.header[1] for column in group]) for title, group in _shared_titles(listed)],
        columns=listed,
        batches=[(engine, _batches(engine)) for engine in record.engines],
        conditions=_conditions(record),
        plots=drawn,
        figures=_embed({plot.div: json.loads(plot.figure.to_json()) for plot in drawn}),
        raw=_embed(record),
        plotly=Markup(get_plotlyjs()),  # noqa: S704 - plotly's own code
    )


def _lead(record: BenchRecord, rows: tuple[Summary, ...]) -> str:
    """Say in a sentence what the run found."""
    if not rows:
        return "No engine could be run here."
    best = max(rows, key=lambda row: row.throughput)
    name = wording.printable(best.engine.name)
    lead = f"Fastest: {name}, {wording.significant(best.throughput)} images/s at batch {best.best_batch}"
    if best.speedup is None or best.engine.name == record.reference:
        return f"{lead}."
    ends = wording.limits(best.speedup, wording.ratio)
    lead += f", {wording.ratio(best.speedup.value)} times {wording.reference_name(record)} (95 % interval {ends})"
    if best.accuracy is not None and best.accuracy.agreement is not None:
        lead += f", with which it agrees on {wording.percent(best.accuracy.agreement)} % of the images"
    return f"{lead}."


def _plots(record: BenchRecord, rows: tuple[Summary, ...]) -> list[_Plot]:
    if not rows:
        return []
    batches = sorted({row.latency_batch for row in rows})
    batch = f"batch {batches[0]}" if len(batches) == 1 else "each engine's smallest batch"
    tail = "Curves to the left are faster. Both axes are logarithmic: p99 gets as much room as p90, and tails show."
    drawn = [
        _Plot("plot-latency", f"Latency at {batch}", tail, plots.plot_latency(record)),
        _Plot("plot-batches", "Throughput over batch size", "Bars: 95 % intervals.", plots.plot_batches(record)),
    ]
    accuracy = plots.plot_accuracy(record, rows)
    if accuracy is not None:
        title = f"{_capital(plots.accuracy_name(record))} against throughput"
        drawn.insert(0, _Plot("plot-accuracy", title, _accuracy_caption(rows), accuracy))
    return drawn + _quantization_plots(record)


def _quantization_plots(record: BenchRecord) -> list[_Plot]:
    drawn = []
    if any(len(engine.search) > 1 for engine in record.engines):
        caption = "Each step gives layers back their precision; the line joins the steps that no other beats in both."
        title = "What the limit of accuracy cost"
        drawn.append(_Plot("plot-search", title, caption, quantization_plots.plot_searches(record)))
    for number, (engine, style) in enumerate(zip(record.engines, plots.styles(record), strict=True)):
        if engine.histograms:
            title = f"{wording.printable(engine.name)}: the activations that 8 bits serve worst"
            caption = (
                "Values seen in calibration, on a logarithmic axis of counts; dashed lines: the range that is covered; "
                "decibels: the tensor's power over that of rounding and clipping it, expected from the histogram."
            )
            figure = quantization_plots.plot_histograms(engine, style)
            drawn.append(_Plot(f"plot-histograms-{number}", title, caption, figure))
    return drawn


def _accuracy_caption(rows: tuple[Summary, ...]) -> str:
    """Explain the line, and say how much of a difference the number of images can show."""
    points = [(row.throughput, share) for row in rows if (share := plots.accuracy_share(row)) is not None]
    if len(plots.pareto_front(points)) > 1:
        caption = "The line joins the engines that no other beats in one without losing in the other."
    else:
        caption = "The fastest engine is as accurate as any."
    counted = [row.accuracy for row in rows if row.accuracy is not None]
    shares = [counts.top1 for counts in counted if counts.top1 is not None]
    if not shares:
        return caption
    widest = max(
        (statistics.share_interval(share, counted[0].images) for share in shares), key=lambda one: one.high - one.low
    )
    half = wording.percent((widest.high - widest.low) / 2)
    return f"{caption} {counted[0].images:,} images: each accuracy is known to within {half} points (95 %)."


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _shared_titles(listed: tuple[Column, ...]) -> list[tuple[str, list[Column]]]:
    """Group neighbours whose headers share their first line."""
    groups = itertools.groupby(listed, key=lambda column: column.header[0] or column.header)
    return [(group[0].header[0], group) for group in (list(group) for _, group in groups)]


def _batches(engine: EngineRecord) -> list[list[Cell]]:
    """Write what was measured at each batch size."""
    return [_batch(samples) for samples in sorted(engine.latency, key=lambda samples: samples.batch)]


def _batch(samples: Samples) -> list[Cell]:
    rate = statistics.throughput_interval(samples)
    fastest_to_slowest = (0, 50, 90, 99, 100)
    return [
        Cell(f"{samples.batch}"),
        Cell(f"{len(samples.seconds):,}"),
        Cell(f"{len(set(samples.rounds)):,}"),
        *(Cell(wording.milliseconds(statistics.percentile(samples.seconds, rank))) for rank in fastest_to_slowest),
        Cell(wording.significant(rate.value), wording.limits(rate, wording.significant)),
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
        ("model", f"{wording.printable(record.architecture)}, weights SHA-256 {record.weights_sha256[:12]}"),
        ("input", prepared),
    ]


def _embed(value: object) -> Markup:
    r"""Write JSON that no HTML parser takes for markup: ``<`` becomes ``\u003c``, which JSON reads back as ``<``."""
    text = msgspec.json.encode(value).decode()
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # noqa: S704 - escaped above
