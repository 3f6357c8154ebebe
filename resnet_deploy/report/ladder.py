"""The parity ladder as a table for the terminal."""

from collections.abc import Callable
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resnet_deploy.names import printable
from resnet_deploy.parity import Ladder, Rung
from resnet_deploy.report import wording

_COLUMNS: Final[tuple[tuple[str, str, Callable[[float], str]], ...]] = (
    ("top1", "top-1\n%", wording.percent),
    ("agreement", "agreement\nfirst rung %", wording.percent),
    ("sqnr_db", "SQNR dB\nfirst rung", wording.decibels),
    ("step_db", "SQNR dB\nrung above", wording.decibels),
)


def print_ladder(ladder: Ladder, console: Console) -> None:
    """Print the rungs, what could not run, and the layer that diverges."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("\nrung", overflow="fold")
    for _, header, _ in _COLUMNS:
        table.add_column(header, justify="right", no_wrap=True)
    for rung in ladder.rungs:
        table.add_row(rung.name, *(_cell(rung, name, write) for name, _, write in _COLUMNS))
    console.print(Text(f"{printable(ladder.engine)}: {ladder.title}", style="bold"))
    console.print(Text(f"on {printable(ladder.inputs)}"))
    console.print()
    console.print(table)
    console.print()
    for rung in ladder.rungs:
        if rung.not_run:
            console.print(Text(f"{rung.name}: not run: {printable(rung.not_run)}", style="yellow"))
    for line in layers_in_words(ladder):
        console.print(Text(line, style="red" if ladder.diverging else ""))
    for caveat in ladder.caveats:
        console.print(Text(printable(caveat), style="yellow"))


def layers_in_words(ladder: Ladder) -> tuple[str, ...]:
    """Name the layer that diverges, or say that none does and which come closest."""
    images = f"on {wording.counted(ladder.step_images, 'image')}"
    if ladder.diverging is not None:
        count = sum(step.diverges for step in ladder.steps)
        others = f"; {count - 1} more after it" if count > 1 else ""
        return (f"first layer to diverge, {images}: {ladder.diverging}{others}",)
    lowest = ladder.lowest
    return (
        f"no layer diverges, {images}",
        f"largest loss of one: {ladder.costliest}",
        f"lowest SQNR so far: {wording.decibels(lowest.so_far_db)} dB at {lowest.layer}",
    )


def _cell(rung: Rung, name: str, write: Callable[[float], str]) -> str:
    value = getattr(rung, name)
    return wording.NOTHING if value is None else write(value)
