"""``resnet-deploy report``."""

from pathlib import Path

import click

from resnet_deploy.cli.bench import require_html, write_html
from resnet_deploy.cli.options import PATH, refuse_idle


@click.command()
@click.argument("record", type=PATH)
@click.option("--html", type=PATH, metavar="FILE", help="Write the HTML report there too.")
def report(record: Path, html: Path | None) -> None:
    """Print the table of a record of `bench`, and draw its report again; or the table of one of `evaluate`.

    \b
    Example:
      resnet-deploy report benchmarks/results/RECORD.json --html report.html
    """
    from resnet_deploy.bench.evaluation_records import is_evaluation, read_evaluation
    from resnet_deploy.bench.records import read_record
    from resnet_deploy.cli.terminal import stdout_console
    from resnet_deploy.report.evaluation_table import print_evaluation
    from resnet_deploy.report.table import print_table

    if html is not None:
        require_html()
    if is_evaluation(record):
        refuse_idle("a record of `evaluate`", "html", hint="drop it: an evaluation has a table alone")
        print_evaluation(read_evaluation(record), stdout_console())
        return
    loaded = read_record(record)
    try:
        if html is not None:
            write_html(loaded, html)
    finally:  # the table is seen though the page cannot be written, and the page written though the table is not seen
        print_table(loaded, stdout_console())
    if html is not None:
        click.echo(f"report: {html}")
