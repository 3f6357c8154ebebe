"""``resnet-deploy report``."""

from pathlib import Path

import click

from resnet_deploy.cli.bench import require_html, write_html
from resnet_deploy.cli.options import PATH, refuse_idle


@click.command()
@click.argument("record", type=PATH)
@click.option("--html", type=PATH, metavar="FILE", help="Write the HTML report there too.")
def report(record: Path, html: Path | None) -> None:
    """Print the table of a record of `bench`, `evaluate` or `loadgen`; draw the page of one of `bench` again.

    \b
    Example:
      resnet-deploy report benchmarks/results/RECORD.json --html report.html
    """
    from resnet_deploy.bench import evaluation_records, loadgen_records, record_files
    from resnet_deploy.bench.records import read_record
    from resnet_deploy.cli.terminal import stdout_console
    from resnet_deploy.report.evaluation_table import print_evaluation
    from resnet_deploy.report.loadgen_table import print_loadgen
    from resnet_deploy.report.table import print_table

    if html is not None:
        require_html()
    kind = record_files.kind_of(record)
    if kind != record_files.BENCH:
        refuse_idle(f"a record of `{kind}`", "html", hint="drop it: such a record has a table alone")
    if kind == evaluation_records.FORMAT.kind:
        print_evaluation(evaluation_records.read_evaluation(record), stdout_console())
        return
    if kind == loadgen_records.FORMAT.kind:
        print_loadgen(loadgen_records.read_loadgen_record(record), stdout_console())
        return
    loaded = read_record(record)
    try:
        if html is not None:
            write_html(loaded, html)
    finally:  # the table is seen though the page cannot be written, and the page written though the table is not seen
        print_table(loaded, stdout_console())
    if html is not None:
        click.echo(f"report: {html}")
