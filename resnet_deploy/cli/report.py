"""``resnet-deploy report``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from resnet_deploy.cli.bench import require_html, write_html
from resnet_deploy.cli.options import PATH, json_option, refuse_idle
from resnet_deploy.cli.output import print_json, print_line

if TYPE_CHECKING:
    from rich.console import Console

Record = TypeVar("Record")


@click.command()
@click.argument("record", type=PATH)
@click.option("--html", type=PATH, metavar="FILE", help="Write the HTML report there too.")
@json_option
def report(record: Path, html: Path | None, as_json: bool) -> None:
    """Print the table of a record, and draw its page again.

    A record is what `bench`, `evaluate` or `loadgen` wrote; one of `bench` has a page, too.

    \b
    Example:
      resnet-deploy report benchmarks/results/RECORD.json --html report.html
    """
    from resnet_deploy.bench import evaluation_records, loadgen_records, record_files
    from resnet_deploy.bench.records import read_record
    from resnet_deploy.report import data
    from resnet_deploy.report.evaluation_table import print_evaluation
    from resnet_deploy.report.loadgen_table import print_loadgen
    from resnet_deploy.report.table import print_table

    if html is not None:
        require_html(", or leave --html out")
    kind = record_files.kind_of(record)
    if kind != record_files.BENCH:
        refuse_idle(f"a record of `{kind}`", "html", hint="drop it: such a record has a table alone")
    if kind == evaluation_records.FORMAT.kind:
        evaluation = evaluation_records.read_evaluation(record)
        _show(evaluation, print_evaluation, data.evaluation_data, as_json=as_json)
        return
    if kind == loadgen_records.FORMAT.kind:
        loadgen = loadgen_records.read_loadgen_record(record)
        _show(loadgen, print_loadgen, lambda whole: whole, as_json=as_json)
        return
    loaded = read_record(record)
    try:
        if html is not None:
            write_html(loaded, html)
    finally:  # the table is seen though the page cannot be written, and the page written though the table is not seen
        _show(loaded, print_table, data.bench_data, as_json=as_json)
    if html is not None and not as_json:
        print_line(f"report: {html}")


def _show(
    record: Record, print_record: "Callable[[Record, Console], None]", data: Callable[[Record], Any], *, as_json: bool
) -> None:
    """Print a record, for a person or for a program."""
    from resnet_deploy.cli.terminal import stdout_console

    if as_json:
        print_json(data(record))
    else:
        print_record(record, stdout_console())
