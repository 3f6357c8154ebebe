"""Train plain networks and residual ones side by side on the digits: what a residual connection is for.

    python examples/plain_vs_residual/run.py --out demo/plain_vs_residual

The record is written after each run of an arm, and runs that it has are not made again. The page of plots and the
table are made from the record alone.
"""

from pathlib import Path

import click
import torch
from curves import render_page
from results import Recipe, Record, open_record, write_record
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from table import print_table
from training import load_digits, train_arm
from twins import DEPTHS, arms_of

from resnet_deploy.artifact import write_bytes
from resnet_deploy.errors import ResnetDeployError, SpecError

RECORD_FILE, PAGE_FILE = "record.json", "curves.html"
THREADS = 2  # another number rounds otherwise, and so trains otherwise
DEFAULTS = Recipe()


def parse_depths(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Read depths separated by commas."""
    try:
        depths = tuple(int(depth) for depth in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers") from None
    if unknown := [depth for depth in depths if depth not in DEPTHS]:
        known = ", ".join(map(str, DEPTHS))
        raise click.BadParameter(f"there are no twins of depth {unknown[0]}; choose among {known}", context, parameter)
    return depths


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo/plain_vs_residual"),
    show_default=True,
    help=f"Folder of {RECORD_FILE} and {PAGE_FILE}.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=DEFAULTS.epochs, show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Train each arm so many times.")
@click.option("--depths", callback=parse_depths, default=",".join(map(str, DEPTHS)), show_default=True)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULTS.rate,
    show_default=True,
    help="Rate of learning; the default is what suits plain-34.",
)
def main(out: Path, epochs: int, seeds: int, depths: tuple[int, ...], rate: float) -> None:
    """Train every arm with every seed, and write what was measured to OUT."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    try:
        record = open_record(out / RECORD_FILE, Recipe(epochs=epochs, rate=rate))
        record = complete(record, arms_of(depths), seeds, out / RECORD_FILE)
        write_bytes(out / PAGE_FILE, render_page(record).encode())
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} is missing: pip install scikit-learn plotly") from error
    except SpecError as error:
        raise click.UsageError(f"{error.message} ({error.hint})") from error
    except ResnetDeployError as error:
        raise click.ClickException(f"{error.message} ({error.hint})") from error
    print_table(record, Console())
    click.echo(f"{out / PAGE_FILE}, from {out / RECORD_FILE}")


def complete(record: Record, arms: tuple[str, ...], seeds: int, path: Path) -> Record:
    """Make the runs that the record lacks, and write it after each."""
    # Seed by seed, so that a record that was cut short compares all arms.
    missing = [(arm, seed) for seed in range(seeds) for arm in arms if record.find(arm, seed) is None]
    if not missing:
        return record
    digits = load_digits()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        steps = len(digits.train.labels) // record.recipe.batch * record.recipe.epochs
        task = progress.add_task("", total=len(missing) * steps)
        for arm, seed in missing:
            progress.update(task, description=f"{arm}, seed {seed}")
            record = record.with_run(train_arm(arm, seed, digits, record.recipe, lambda: progress.advance(task)))
            write_record(path, record)
    return record


if __name__ == "__main__":
    main()
