"""Standard output: JSON on it; and that it is closed, full, or cannot show a character is not worth a traceback."""

import io
import os
import sys
from typing import Any

import click
import msgspec

from resnet_deploy.names import printable


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output; what is not a finite number is null."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=1).decode())


def print_line(text: str) -> None:
    """Print one line on standard output; what would steer a terminal in names and labels is written as escapes."""
    click.echo(printable(text))


def replace_what_cannot_be_shown() -> None:
    """Let standard output print "?" for a character that its encoding lacks, instead of ending the command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def is_to_blame(error: OSError) -> bool:
    """Whether it was standard output that failed: it then fails at a line feed, too."""
    if error.filename is not None:
        return False  # an open stream has no name for its errors
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError as again:
        return again.errno == error.errno
    return False


def give_up() -> None:
    """Let what standard output still holds vanish: Python would try, and complain, once more when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
