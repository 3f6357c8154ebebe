"""Progress on a person's terminal, drawn by rich on stderr so that stdout stays clean."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


class TerminalProgress:
    """A bar for what has a length, a spinner for what has none; where there is no terminal, nothing moves."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    def track(
        self, items: Iterable[T], description: str, total: int | None = None, *, still: bool = False
    ) -> Iterator[T]:
        """Yield ``items`` under a bar with the time remaining.

        It is drawn by a thread of its own, ten times a second; or, where ``still``, by this one between two items, so
        that nothing runs beside them.
        """
        if not self._console.is_interactive:  # rich itself would still print an empty line
            yield from items
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=True, auto_refresh=not still) as progress:
            yield from progress.track(items, total=total, description=description)

    @contextmanager
    def task(self, description: str) -> Iterator[None]:
        """Turn a spinner until the block ends."""
        if not self._console.is_interactive:
            yield
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            progress.add_task(description, total=None)
            yield


def stdout_console() -> Console:
    """Make the console that results are printed on; without a terminal, wide enough for any table."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200, no_color=True)
