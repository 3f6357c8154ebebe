"""``resnet-deploy report``."""

from pathlib import Path

import click

from resnet_deploy.cli.bench import require_html, write_html
from resnet_deploy.cli.options import PATH


@click.command()
@click.argument("record", type=PATH)
@click.option("--html", type=PATH, metavar="FILE", help="Write the HTML report there too.")
def report(record: Path, html: Path | None) -> None:
    """Print the table of a benchmark record, and draw its report again.

    \b
    Example:
      resnet-deploy report benchmarks/results/RECORD.json --html report.html
    """
    from resnet_deploy.bench.records import read_record
    from resnet_deploy.cli.terminal import stdout_console
    from resnet_deploy.report.table import print_table

    if html is not None:
        require_html()
    loaded = read_record(record)
    try:
        if html is not None:
            write_html(loaded, html)
    finally:  # the table is seen though the page cannot be written, and the page written though the table is not seen
        print_table(loaded, stdout_console())
    if html is not None:
        click.echo(f"report: {html}")
