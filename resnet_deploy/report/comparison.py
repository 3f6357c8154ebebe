"""Two runs against each other, for the terminal."""

import math
import textwrap
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resnet_deploy.bench.comparison import AnswerComparison, Comparison, EngineComparison, WayComparison
from resnet_deploy.bench.intervals import Interval, calls_needed
from resnet_deploy.bench.records import Way
from resnet_deploy.names import printable
from resnet_deploy.report import wording

_STYLES = {"worse": "red", "better": "green"}
_TOO_FEW = "too few rounds for this confidence: `bench` with more --rounds, or compare fewer engines with --engine"
_NARROW = 110  # in fewer columns there is no room for everything
_NARROW_NAME = 15
_WIDEST_NOTE = 110  # longer lines are hard to read


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print what got better or worse, relative to what, and under which conditions."""
    console.print(Text(f"{_when(comparison.new)} against {_when(comparison.old)}", style="bold"))
    if any(engine.ways for engine in comparison.engines):
        console.print()
        console.print(_speeds(comparison, console.width))
    console.print()
    notes = Table.grid(padding=(0, 2, 0, 0))
    notes.add_column(no_wrap=True, style="dim")
    notes.add_column(overflow="fold", max_width=_WIDEST_NOTE)
    last = ""
    for name, text, style in _notes(comparison, tails=console.width >= _NARROW):
        notes.add_row("" if name == last else name, Text(printable(text), style=style))
        last = name
    console.print(notes)


def _uncertainty(comparison: Comparison) -> str:
    """Say which engines may be slower for all that the runs can tell, and what would help."""
    names = ", ".join(map(printable, comparison.uncertain))
    return (
        f"{names}: too uncertain to tell a slowdown of {comparison.tolerance * 100:g} %: "
        "`bench` with more --rounds, or on a quieter machine"
    )


def way_in_words(way: Way) -> str:
    """Say how an engine was called, leaving out what is usual."""
    parts = [f"batch {way.batch}"]
    if way.scope != "host":
        parts.append(wording.scope_name(way.scope))
    if way.concurrency > 1:
        parts.append(f"{way.concurrency} callers")
    if way.graphs is not None:
        parts.append("graphs" if way.graphs else "no graphs")
    if way.offered is not None:
        parts.append(f"{wording.significant(way.offered)} calls/s due")
    return ", ".join(parts)


def _speeds(comparison: Comparison, width: int) -> Table:
    """One row for each way of calling; a narrow terminal gets folded names and no p99, but no figure is cut."""
    narrow = width < _NARROW
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("\nengine", no_wrap=True)
    table.add_column("\ncalled")
    for header in ("images/s", "p50", "p99")[: 2 if narrow else 3]:
        table.add_column(f"{header}\nnew / old", justify="right", no_wrap=True)
    table.add_column("\nverdict")
    for engine in comparison.engines:
        name = textwrap.fill(_name(engine), _NARROW_NAME) if narrow else _name(engine)
        for number, way in enumerate(engine.ways):
            ratios = (_ratio(way.throughput), _ratio(way.p50), _ratio(way.p99))[: 2 if narrow else 3]
            table.add_row("" if number else Text(name), way_in_words(way.way), *ratios, _verdict(way))
    return table


def _verdict(way: WayComparison) -> Text:
    if way.regression:
        return Text("worse: regression", style=_STYLES["worse"])
    if way.uncertain:
        return Text("too uncertain", style="yellow")
    return Text(way.verdict, style=_STYLES.get(way.verdict, ""))


def _notes(comparison: Comparison, *, tails: bool) -> Iterable[tuple[str, str, str]]:
    """Name, text and style of each line below the table, which shows the p99 or does not."""
    for engine in comparison.engines:
        if engine.answers is not None:
            text = f"{_name(engine)}: {_answers(engine.answers)}"
            yield "answers", text, _STYLES.get(engine.answers.verdict or "", "")
    for engine in comparison.engines:
        if not engine.same_file:
            old, new = (wording.size(size) for size in engine.size_bytes)
            yield "size", f"{_name(engine)}: {old} MB, now {new} MB", ""
    if same := [_name(engine) for engine in comparison.engines if engine.same_file]:
        yield "same file", ", ".join(same), ""
    for missing in comparison.missing:
        yield "missing", f"{missing.name}: {missing.reason}", "red"
    yield from _conditions(comparison, tails=tails)


def _conditions(comparison: Comparison, *, tails: bool) -> Iterable[tuple[str, str, str]]:
    """What the figures rest on, and what they cannot tell."""
    ways = [way for engine in comparison.engines for way in engine.ways]
    yield "relative", _relative(comparison), ""
    yield "intervals", _intervals(comparison), ""
    if tails and any(way.p99 is None for way in ways):
        yield (
            "p99",
            f"{wording.NOTHING} where a run made fewer than {calls_needed(99)} calls: it would be the slowest",
            "",
        )
    if any(math.isinf(way.p50.high) for way in ways):
        yield "warning", _TOO_FEW, "yellow"
    elif comparison.uncertain:
        yield "warning", _uncertainty(comparison), "yellow"
    for difference in comparison.differences:
        yield "unlike", difference, "yellow"
    for warning in comparison.warnings:
        yield "warning", warning, "yellow"


def _intervals(comparison: Comparison) -> str:
    return (
        f"of images/s and p50: {comparison.confidence * 100:.4g} % each, so that all of them hold together with 95 %; "
        "verdicts on answers hold together with another 95 %; p99: 95 % each, and no part of the verdict; "
        "a regression is a slowdown that the interval confirms and that is "
        f"above {comparison.tolerance * 100:g} % as estimated"
    )


def _relative(comparison: Comparison) -> str:
    control = comparison.control
    if not control.name:
        return (
            f"to nothing ({control.why}): whatever else was different when the runs were made passes for a difference "
            "of the engines"
        )
    left_out = [_name(engine) for engine in comparison.engines if not engine.control]
    but = f"; not {', '.join(left_out)}, on another processor" if left_out else ""
    moved = "" if control.moved is None else f", which itself took {_ratio(control.moved)} times as long"
    return f"to {control.name}{moved}; intervals are wider by half of its own change{but}"


def _answers(answers: AnswerComparison) -> str:
    alike = f"{wording.percent(answers.agreement)} % of {answers.images:,} answers as before"
    if answers.flips is None or answers.change is None:
        return f"{alike}; no labels, so no verdict"
    flips = answers.flips
    beyond = ": regression" if answers.regression else ""
    return (
        f"{answers.verdict}{beyond}; top-1 {wording.points(answers.change.value)} points "
        f"({wording.limits(answers.change, wording.points)}), {flips.gained} images gained and {flips.lost} lost, "
        f"McNemar's exact p = {wording.significant(flips.p_value, 2)}; {alike}"
    )


def _ratio(interval: Interval | None) -> str:
    if interval is None:
        return wording.NOTHING
    limits = wording.limits(interval, lambda end: wording.significant(end) if math.isinf(end) else f"{end:.3f}")
    return f"{interval.value:.3f} ({limits})"


def _name(engine: EngineComparison) -> str:
    name = engine.old if engine.old == engine.new else f"{engine.old} \N{RIGHTWARDS ARROW} {engine.new}"
    return printable(name)


def _when(created: str) -> str:
    return f"run of {created[:16].replace('T', ' ')} UTC"
