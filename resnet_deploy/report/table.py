"""The results as a table for the terminal, fitted to its width."""

import itertools
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from resnet_deploy.bench import statistics
from resnet_deploy.bench.records import BenchRecord
from resnet_deploy.bench.statistics import Summary
from resnet_deploy.names import printable
from resnet_deploy.report import wording
from resnet_deploy.report.columns import Column, columns
from resnet_deploy.report.way_columns import way_columns

_GAP: Final = 2  # blanks between columns
_NARROWEST_NAME: Final = 16  # a name is folded at its hyphens, but not into a narrower column than this
_WIDEST_NOTE: Final = 110  # longer lines are hard to read


@dataclass(frozen=True)
class _Block:
    """Columns that share the first line of their header, set as one."""

    group: str
    justify: Literal["left", "right"]
    header: Text
    entries: tuple[Text, ...]

    @property
    def width(self) -> int:
        """Width with the gap before it."""
        texts = (self.header, *self.entries)
        return _GAP + max(cell_len(line) for text in texts for line in text.plain.split("\n"))


def print_table(record: BenchRecord, console: Console) -> None:
    """Print the results and their conditions, in colour where the console has it."""
    console.print(render_table(record, console.width))


def render_table(record: BenchRecord, width: int) -> RenderableType:
    """Lay the results out for ``width`` columns: figures are never cut or wrapped, names at most folded."""
    rows = statistics.summarize(record)
    names = [printable(row.engine.name) for row in rows]
    peers = [number for number, row in enumerate(rows) if row.engine.role == "peer"]
    first_peer = peers[0] if peers else None
    parts: list[RenderableType] = [Text(wording.title(record), style="bold")]
    if not rows:
        return Group(*parts, Text("no engine could be run here"), Text(), _notes(record, rows))
    for listed in (columns(record, rows), way_columns(record, rows)):
        shared = itertools.groupby(listed, key=lambda column: column.header[0] or column.header)
        blocks = [_block(list(group), rows) for _, group in shared]
        for chosen, name_width in _arrange(blocks, max(map(cell_len, ("engine", *names))), width):
            parts += [Text(), _table(chosen, names, name_width, first_peer)]
    return Group(*parts, Text(), _notes(record, rows))


def _block(listed: Sequence[Column], rows: tuple[Summary, ...]) -> _Block:
    """Pad neighbouring columns into one, under the line that their headers share."""
    lines = [[Text(column.header[1]), *(_entry(column, row) for row in rows)] for column in listed]
    widths = [max(cell_len(text.plain) for text in column) for column in lines]
    justify: Literal["left", "right"] = "left" if listed[0].header == ("", "precision") else "right"
    joined = [_join(texts, widths, justify) for texts in zip(*lines, strict=True)]
    header = Text("\n").join([Text(listed[0].header[0]), joined[0]])
    return _Block(listed[0].group, justify, header, tuple(joined[1:]))


def _join(texts: Iterable[Text], widths: Sequence[int], justify: Literal["left", "right"]) -> Text:
    """Set one line of neighbouring columns."""
    padded = [text.copy() for text in texts]
    for text, width in zip(padded, widths, strict=True):
        text.align(justify, width)
    return Text(" " * _GAP).join(padded)


def _entry(column: Column, row: Summary) -> Text:
    cell = column.cell(row)
    shown = f"{cell.text} ({cell.interval})" if column.interval_everywhere and cell.interval else cell.text
    return Text(shown, style="bold" if column.is_best(row) else "")


def _arrange(blocks: Sequence[_Block], longest_name: int, width: int) -> list[tuple[list[_Block], int]]:
    """Spread the blocks over as few tables as the width allows, with the width of the names in each."""
    if not blocks:
        return []
    if longest_name + sum(block.width for block in blocks) <= width:
        return [(list(blocks), longest_name)]
    has_accuracy = any(block.group == "accuracy" for block in blocks)
    tables: list[list[_Block]] = [[]]
    for block in blocks:
        starts_speed = has_accuracy and block.group == "speed" and tables[-1] and tables[-1][-1].group != "speed"
        is_full = _NARROWEST_NAME + sum(one.width for one in (*tables[-1], block)) > width
        if starts_speed or (is_full and tables[-1]):
            tables.append([])
        tables[-1].append(block)
    left = [width - sum(block.width for block in table) for table in tables]
    # A block that is wider than the terminal is shown all the same.
    return [(table, min(longest_name, max(one, _NARROWEST_NAME))) for table, one in zip(tables, left, strict=True)]


def _table(blocks: Sequence[_Block], names: Sequence[str], name_width: int, first_peer: int | None) -> Table:
    """Set the blocks beside the names; a blank line keeps peers apart."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
    table.add_column(Text("\nengine"), width=name_width, overflow="fold")
    for block in blocks:
        table.add_column(block.header, justify=block.justify, no_wrap=True)
    for number, name in enumerate(names):
        if number == first_peer:
            table.add_section()
        table.add_row(Text(textwrap.fill(name, name_width)), *(block.entries[number] for block in blocks))
    return table


def _notes(record: BenchRecord, rows: tuple[Summary, ...]) -> Table:
    """Set the conditions beside their names, so that a narrow terminal wraps only the text."""
    notes = [
        ("timed", wording.timed(record)),
        ("columns", ("; ".join(wording.meanings(record)),) if rows else ()),
        ("procedure", (wording.procedure(record),)),
        ("harness", (wording.harness(record),)),
        ("data", wording.data(record)),
        ("peers", tuple(wording.peer(engine) for engine in record.engines if engine.role == "peer")),
        ("machine", (wording.machine(record),)),
        ("not run", tuple(map(wording.not_run, record.not_run))),
    ]
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold", max_width=_WIDEST_NOTE)
    for name, lines in notes:
        for number, line in enumerate(lines):
            grid.add_row("" if number else name, Text(line))
    for number, (row, text) in enumerate((row, text) for row in rows if (text := wording.verdict(row, record))):
        grid.add_row("" if number else "verdicts", Text(f"{printable(row.engine.name)}: {text}"))
    noted = [engine for engine in record.engines if engine.notes]
    for number, engine in enumerate(noted):
        line = f"{printable(engine.name)}: {printable('; '.join(engine.notes))}"
        grid.add_row("" if number else "notes", Text(line))
    for line in wording.quietness(record):
        grid.add_row("warnings", Text(line, style="yellow"))
    for row in rows:
        if row.warnings:
            line = f"{printable(row.engine.name)}: {'; '.join(row.warnings)}"
            grid.add_row("warnings", Text(line, style="yellow"))
    return grid
