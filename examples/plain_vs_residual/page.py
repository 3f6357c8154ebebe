"""Put the table of a record into the page that explains it.

    python examples/plain_vs_residual/page.py demo/plain_vs_residual/record.json

No figure is written by hand: the page's table is what the record gives.
"""

import io
import re
from pathlib import Path

import click
from results import Record, read_record
from rich.console import Console
from table import print_table

from resnet_deploy.artifact import read_bytes, write_bytes
from resnet_deploy.errors import FileError, ResnetDeployError

PAGE = Path(__file__).with_name("README.md")
WIDTH = 132  # columns
PLACE = re.compile(r"(?<=<!-- measured -->\n).*?(?=<!-- /measured -->)", re.DOTALL)


@click.command()
@click.argument("record", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("page", type=click.Path(path_type=Path, exists=True, dir_okay=False), default=PAGE)
def main(record: Path, page: Path) -> None:
    """Put the table of RECORD into PAGE, by default the README of this example."""
    try:
        fill_page(page, read_record(record))
    except ResnetDeployError as error:
        raise click.ClickException(f"{error.message} ({error.hint})") from error


def fill_page(page: Path, record: Record) -> None:
    """Put the table between ``<!-- measured -->`` and ``<!-- /measured -->`` of a page, in place of what is there.

    Raises:
        FileError: If the page cannot be read or written, or has no such place.
    """
    text = read_bytes(page).decode()
    filled, count = PLACE.subn(lambda _: fenced(record), text)
    if count != 1:
        raise FileError(f"{page} has {count} places for the table", hint="it wants one <!-- measured --> pair of lines")
    write_bytes(page, filled.encode())


def fenced(record: Record) -> str:
    """Render the table and its conditions as a block of Markdown."""
    console = Console(file=io.StringIO(), width=WIDTH)
    with console.capture() as capture:
        print_table(record, console)
    lines = "\n".join(line.rstrip() for line in capture.get().strip("\n ").splitlines())
    return f"```\n{lines}\n```\n"


if __name__ == "__main__":
    main()
