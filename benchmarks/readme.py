"""Write benchmarks/README.md from README.in.md and the records.

    python benchmarks/readme.py [--check]

Every table of the page, and every figure in its text that a record has, is computed from the records when the page is
written; with --check nothing is written, and a page that differs is an error.
"""

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import calibration
import click
import cpp_preprocess
import cpp_throughput
import decode
import faults
import gate_power
import int8_quality
import jinja2
import microbatching
import msgspec
import overhead
import plan_facts
import reproducibility
import rounding
import scoring
import soak
from rich.console import Console
from soak_records import SoakRecord

from resnet_deploy.bench import statistics
from resnet_deploy.bench.loadgen_records import read_loadgen_record
from resnet_deploy.bench.records import BenchRecord, read_record
from resnet_deploy.report.loadgen_table import print_loadgen
from resnet_deploy.report.table import print_table

HERE = Path(__file__).parent
SOURCE, PAGE = HERE / "README.in.md", HERE / "README.md"
RESULTS = HERE / "results"
TABLE_WIDTH = 132
T = TypeVar("T")


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail where the page is not what the records give.")
def main(check: bool) -> None:
    """Write the page."""
    page = render()
    if not check:
        PAGE.write_text(page, encoding="utf-8")
        return
    kept = PAGE.read_text(encoding="utf-8")
    if page != kept:
        lines = difflib.unified_diff(kept.splitlines(), page.splitlines(), "README.md", "from the records", lineterm="")
        click.echo("\n".join(lines), err=True)
        raise click.ClickException("benchmarks/README.md is not what its records give: run benchmarks/readme.py")


def render() -> str:
    """Fill in the source of the page."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.globals |= FUNCTIONS
    head = "<!-- Written by benchmarks/readme.py from README.in.md and the records in results/: edit those. -->\n"
    return head + environment.from_string(SOURCE.read_text(encoding="utf-8")).render()


def bench(name: str) -> BenchRecord:
    """Read a record of `resnet-deploy bench`."""
    return read_record(RESULTS / name)


def bench_table(name: str) -> str:
    """Lay out the figures of a record of `resnet-deploy bench` as a terminal shows them, without its notes."""
    return tables_of(print_table, bench(name))


def median_ms(name: str, engine: str) -> float:
    """Median latency of an engine at its smallest batch, in milliseconds."""
    (found,) = (one for one in bench(name).engines if one.name == engine)
    return 1e3 * statistics.percentile(statistics.smallest_samples(found, "host").seconds, 50)


def rate(name: str, engine: str) -> float:
    """Images per second of an engine at its best batch size."""
    (found,) = (one for one in bench(name).engines if one.name == engine)
    return max(map(statistics.throughput, found.latency))


def load(name: str) -> Any:
    """Read the record of a script."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def link(name: str) -> str:
    """Link to a record, whichever script made it; the file must be there."""
    if not (RESULTS / name).is_file():
        raise click.ClickException(f"benchmarks/results/{name} is missing")
    return f"[{name}](results/{name})"


def decoded(name: str, kind: type[T]) -> T:
    """Read the record of a script by its type."""
    return msgspec.json.decode((RESULTS / name).read_bytes(), type=kind)


def int8_quality_table(name: str) -> str:
    """Lay out accuracy by method, weights and form."""
    return "\n".join(int8_quality.table(load(name)["rows"]))


def calibration_table(name: str) -> str:
    """Lay out what calibration costs."""
    record = load(name)
    return "\n".join(calibration.table(record["arms"], record["calibration_images"]))


def rounding_table(name: str) -> str:
    """Lay out what weights that are not rounded are worth."""
    return "\n".join(rounding.table(load(name)["rows"]))


def calibration_ratio(name: str, theirs: str, ours: str) -> float:
    """Say how many times as long as ``ours`` an arm took."""
    arms = load(name)["arms"]
    return calibration.median_seconds(arms[theirs]) / calibration.median_seconds(arms[ours])


def calibration_latencies(name: str, whose: str) -> str:
    """Say between which medians at batch 1, in milliseconds, the models lie whose arms are named so."""
    theirs = [arm for arm_name, arm in load(name)["arms"].items() if arm_name.startswith(whose)]
    found = [f"{1e3 * median(arm['latency_s']):.1f}" for arm in theirs]
    low, high = min(found, key=float), max(found, key=float)
    return low if low == high else f"{low} to {high}"


def plan_table(name: str) -> str:
    """Lay out what was read from plans."""
    return "\n".join(plan_facts.table(load(name)))


def gate_table(name: str) -> str:
    """Lay out how often the gate of `compare` is right."""
    return "\n".join(gate_power.table(load(name)))


def overhead_table(name: str) -> str:
    """Lay out what our own code costs."""
    return "\n".join(overhead.table(load(name)))


def decode_table(name: str) -> str:
    """Lay out what decoding costs beside engines."""
    return "\n".join(decode.table(decoded(name, decode.DecodeRecord)))


def microbatching_table(name: str) -> str:
    """Lay out what many callers get beside explicit batches."""
    return "\n".join(microbatching.table(decoded(name, microbatching.Record)))


def cpp_table(name: str) -> str:
    """Lay out the C++ runtime beside Python's."""
    return "\n".join(cpp_throughput.table(decoded(name, cpp_throughput.CppRecord)))


def preprocess_table(name: str) -> str:
    """Lay out preprocessing in C++ beside Pillow's."""
    return "\n".join(cpp_preprocess.table(decoded(name, cpp_preprocess.PreprocessRecord)))


def scoring_table(name: str) -> str:
    """Lay out scoring at scale beside one process."""
    return "\n".join(scoring.table(decoded(name, scoring.ScoringBenchmark)))


def scoring_bound(name: str) -> tuple[float, float, float]:
    """Images per second of decoding alone, of the engine alone, and of both together at best."""
    record = decoded(name, scoring.ScoringBenchmark)
    return record.decode, record.alone, record.bound


def soak_table(name: str) -> str:
    """Lay out what a soak found."""
    return "\n".join(soak.table(decoded(name, SoakRecord)))


def reproducibility_table(name: str) -> str:
    """Lay out which files are the same when they are made again."""
    return "\n".join(reproducibility.table(decoded(name, reproducibility.ReproducibilityRecord)))


def fault_tables(name: str) -> str:
    """Lay out what kills, crowds and bad places did."""
    return "\n".join(faults.table(decoded(name, faults.FaultRecord))).rstrip()


def loadgen_table(name: str) -> str:
    """Lay out what LoadGen said as a terminal shows it, without the notes."""
    return tables_of(print_loadgen, read_loadgen_record(RESULTS / name))


def loadgen_overhead(name: str) -> tuple[float, float]:
    """Microseconds per query at p50, and per image, that LoadGen and our own code cost."""
    tests = read_loadgen_record(RESULTS / name).tests
    alone, together = (
        next(one.result for one in tests if (one.purpose, one.result.scenario) == ("overhead", scenario))
        for scenario in ("singlestream", "offline")
    )
    assert together.metric is not None
    assert together.metric.value is not None
    return 1e6 * alone.percentiles["50.00"], 1e6 / together.metric.value


def tables_of(show: Callable[[Any, Console], None], record: object) -> str:
    """Print a record and keep the tables: what stands between its title and its notes."""
    console = Console(width=TABLE_WIDTH, color_system=None, force_terminal=False)
    with console.capture() as capture:
        show(record, console)
    lines = [line.rstrip() for line in capture.get().strip("\n").splitlines()]
    _title, *tables, _notes = "\n".join(lines).split("\n\n")
    return "\n\n".join(tables)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(
            bench_table,
            median_ms,
            rate,
            link,
            load,
            gate_table,
            overhead_table,
            decode_table,
            loadgen_table,
            loadgen_overhead,
        ),
        *(microbatching_table, cpp_table, preprocess_table, scoring_table, scoring_bound),
        *(soak_table, reproducibility_table),
        *(
            int8_quality_table,
            rounding_table,
            calibration_table,
            calibration_ratio,
            calibration_latencies,
            plan_table,
            fault_tables,
        ),
    )
}


if __name__ == "__main__":
    main()
