"""What LoadGen measured, as a table for the terminal."""

from collections.abc import Sequence
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resnet_deploy.bench.loadgen_records import LoadgenRecord, LoadgenResult, LoadgenTest, Peak, RulesVerdict
from resnet_deploy.bench.loadgen_spec import LOADGEN_NAMES
from resnet_deploy.names import printable
from resnet_deploy.report import wording

DISCLAIMER: Final = "LoadGen-based, not an MLPerf result: nobody has reviewed it"
_SERVER: Final = "MLPerf has no Server scenario for ResNet-50 since v5.1, which made it an edge benchmark"
_UNCHECKED: Final = (
    "not checked: whether the weights are those of MLPerf's reference model, its compliance tests, the description of "
    "the system"
)
_WIDEST_NOTE: Final = 110  # longer lines are hard to read
_SHOWN: Final = ("performance", "capacity")
_PERCENTS: Final = ("50.00", "90.00", "99.00")


def print_loadgen(record: LoadgenRecord, console: Console) -> None:
    """Print each test, what MLPerf's rules or a search came to, and the conditions."""
    console.print(Text(title(record), style="bold"))
    console.print()
    console.print(_tests(record))
    console.print()
    console.print(_notes(record))


def title(record: LoadgenRecord) -> str:
    """Say what was measured, by what, and when."""
    versions = dict.fromkeys(one.result.loadgen.partition(" ")[0] for one in record.tests)
    data = printable(record.data.name) if record.data is not None else "synthetic images"
    return f"{record.architecture} on {data}, by LoadGen {', '.join(versions)}, {wording.created(record)}"


def _tests(record: LoadgenRecord) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in ("\nengine", "\nscenario", "\nresult"):
        table.add_column(header, overflow="fold")
    for header in ("latency ms\np50", "\np90", "\np99", "\nqueries", "\nseconds"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("\nLoadGen", no_wrap=True)
    for test in record.tests:
        if test.purpose in _SHOWN:
            table.add_row(printable(test.engine), *_cells(test))
    return table


def _cells(test: LoadgenTest) -> list[str | Text]:
    result = test.result
    latencies = [result.percentiles.get(percent) for percent in _PERCENTS]
    return [
        _scenario(test),
        _metric(result),
        *(wording.NOTHING if value is None else wording.milliseconds(value) for value in latencies),
        f"{result.queries:,}",
        f"{result.seconds:.1f}",
        Text("VALID", style="green") if result.valid else Text("INVALID", style="yellow"),
    ]


def _scenario(test: LoadgenTest) -> str:
    result = test.result
    name = LOADGEN_NAMES[result.scenario]
    if result.scenario == "offline":
        return f"{name}, batch {test.batch}"
    if result.scenario == "server":
        bound = float(result.settings["target_latency_ns"]) * 1e-9
        rate = float(result.settings["target_qps"])
        return f"{name}, {rate:g}/s, {wording.milliseconds(bound)} ms, batch {test.batch}"
    return f"{name} ({result.settings['samples_per_query']})" if result.scenario == "multistream" else name


def _metric(result: LoadgenResult) -> str:
    """Write the figure that MLPerf compares; a latency is early stopping's estimate."""
    metric = result.metric
    if metric is None:
        return wording.NOTHING
    if metric.unit == "s":
        value = wording.NOTHING if metric.value is None else f"{wording.milliseconds(metric.value)} ms"
        return f"{metric.name} {value}"
    return wording.NOTHING if metric.value is None else f"{wording.significant(metric.value)} {metric.unit}"


def _notes(record: LoadgenRecord) -> Table:
    """Set the conditions beside their names, so that a narrow terminal wraps only the text."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold", max_width=_WIDEST_NOTE)
    uses_server = any(one.result.scenario == "server" for one in record.tests)
    notes = [
        ("invalid", _invalid(record)),
        ("rules", tuple(line for verdict in record.verdicts for line in _verdict(verdict))),
        ("peak", tuple(_peak(peak, record) for peak in record.peaks)),
        ("overhead", _overhead(record)),
        ("data", _data(record)),
        ("machine", (wording.machine(record),)),
        ("not run", tuple(map(wording.not_run, record.not_run))),
        ("MLPerf", (DISCLAIMER, *([_SERVER] if uses_server else []), *([_UNCHECKED] if record.verdicts else []))),
    ]
    for name, lines in notes:
        for number, line in enumerate(lines):
            grid.add_row("" if number else name, Text(line, style="yellow" if name == "invalid" else ""))
    return grid


def _invalid(record: LoadgenRecord) -> tuple[str, ...]:
    """Say why, in LoadGen's words."""
    return tuple(
        f"{printable(test.engine)}, {LOADGEN_NAMES[test.result.scenario]}: "
        f"{'; '.join((*test.result.reasons, *test.result.errors))}"
        for test in record.tests
        if test.purpose in _SHOWN and not test.result.valid
    )


def _verdict(verdict: RulesVerdict) -> tuple[str, ...]:
    """Say whether the rules are met, then each that is not in a line of its own."""
    met = "not met" if verdict.unmet else "met, as far as they are checked"
    accuracy = f"accuracy {wording.percent(verdict.accuracy)} %, target {wording.percent(verdict.target)} %"
    name = f"{printable(verdict.engine)}, {LOADGEN_NAMES[verdict.scenario]}"
    return (
        f"{name}: {met}; {accuracy} ({printable(verdict.reference)})",
        *(f"- {printable(line)}" for line in verdict.unmet),
    )


def _peak(peak: Peak, record: LoadgenRecord) -> str:
    probes = [one.result for one in record.tests if one.purpose == "probe" and one.engine == peak.engine]
    tried = ", ".join(f"{float(one.settings['target_qps']):.4g} {'yes' if one.valid else 'no'}" for one in probes)
    bound = f"p99 within {wording.milliseconds(peak.latency_s)} ms"
    found = f"no rate found with {bound}: {peak.reason}"
    if peak.rate is not None:
        found = (
            f"{peak.rate:.4g} queries/s with {bound}: held twice in succession, and failed twice at most "
            f"{peak.tolerance:.0%} above{_arrivals(probes)}{_beside_offline(peak, record)}"
        )
    if not probes:
        return f"{printable(peak.engine)}: {found}"
    return (
        f"{printable(peak.engine)}: {found}; {len(probes)} probes of at least {peak.seconds:g} s and "
        f"{peak.queries:,} queries: {tried}"
    )


def _arrivals(probes: Sequence[LoadgenResult]) -> str:
    """Say how far the arrivals, one draw for all probes, were from the rate that was asked for."""
    shares = [one.scheduled / float(one.settings["target_qps"]) - 1 for one in probes if one.scheduled is not None]
    if not shares or abs(max(shares, key=abs)) < 0.01:
        return ""
    return f" (all probes have one draw of arrivals, which fall due at {1 + max(shares, key=abs):.3f} times the rate)"


def _beside_offline(peak: Peak, record: LoadgenRecord) -> str:
    """Say where the rate is above what the engine did at once: the machine was then not the same throughout."""
    rates = [
        one.result.metric.value
        for one in record.tests
        if one.purpose == "capacity" and one.engine == peak.engine and one.result.metric is not None
        if one.result.scenario == "offline" and one.result.metric.value is not None
    ]
    if peak.rate is None or not rates or peak.rate <= rates[0]:
        return ""
    offline = wording.significant(rates[0])
    return f"; more than its {offline} samples/s Offline before: the machine was not the same throughout"


def _overhead(record: LoadgenRecord) -> tuple[str, ...]:
    by_scenario = {one.result.scenario: one.result for one in record.tests if one.purpose == "overhead"}
    alone, together = by_scenario.get("singlestream"), by_scenario.get("offline")
    if alone is None or together is None or together.metric is None or not together.metric.value:
        return ("not measured",)
    if not alone.percentiles.keys() >= {"50.00", "99.00"}:
        return ("not measured",)
    median, tail = (wording.significant(alone.percentiles[percent] * 1e6) for percent in ("50.00", "99.00"))
    per_image = wording.significant(1e6 / together.metric.value)
    line = (
        f"LoadGen and our own code cost {median} {wording.MICRO}s per query at p50, {tail} at p99 (SingleStream), and "
        f"{per_image} {wording.MICRO}s per image (Offline), as the null runner shows; included"
    )
    return (line,)


def _data(record: LoadgenRecord) -> tuple[str, ...]:
    data = record.data
    if data is None:
        return ("synthetic images, decoded before the clock starts",)
    labelled = "labelled" if data.labelled else "unlabelled"
    counted = f"{data.images:,} images, {labelled}, SHA-256 {data.digest[:12]}"
    line = f"{printable(data.name)}: {counted}, decoded before the clock starts"
    return (line, *([printable(data.labels_note)] if data.labels_note else []))
