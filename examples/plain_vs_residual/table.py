"""The results as a table for the terminal, and the conditions below it."""

from statistics import mean

from results import Record, Run
from rich import box
from rich.console import Console
from rich.table import Table

HEADER = (
    "loss\nnats",
    "training\nerror %",
    "held-out\nerror %",
    "gradient\ngrowth",
    "neighbours'\ncorrelation",
    "time\ns",
)


def print_table(record: Record, console: Console) -> None:
    """Print a row for each arm: means over the seeds, and below them the least and the largest."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("arm\n")
    for title in HEADER:
        table.add_column(title, justify="right")
    for arm in record.arms:
        runs = record.of(arm)
        table.add_row(
            arm,
            spread([last_loss(run, record.recipe.epochs) for run in runs], "{:.3f}"),
            spread([100 * run.training_error for run in runs], "{:.1f}"),
            spread([100 * run.held_out[-1] for run in runs], "{:.1f}"),
            spread([growth(run) for run in runs], "{:.2f}"),
            spread([run.likeness[1] for run in runs], "{:.2f}"),
            f"{mean(run.seconds for run in runs):.0f}",
        )
    console.print(table)
    console.print()
    console.print(conditions(record), highlight=False, soft_wrap=True)


def conditions(record: Record) -> str:
    """Say what the figures rest on."""
    recipe, here = record.recipe, record.environment
    counts = sorted({len(record.of(arm)) for arm in record.arms})
    seeds = " to ".join(map(str, counts)) + (" seed" if counts == [1] else " seeds, below them least to largest")
    torch = next((library.version for library in here.libraries if library.name == "torch"), "?")
    return (
        f"Means over {seeds}; {recipe.epochs} epochs, batch {recipe.batch}, rate {recipe.rate:g}, at last a tenth.\n"
        f"{here.cpu.model}, {here.cpu.cores} cores, PyTorch {torch}."
    )


def spread(values: list[float], form: str) -> str:
    """Write a mean, and below it the range where there are several values."""
    text = form.format(mean(values))
    if len(values) == 1:
        return text
    return f"{text}\n{form.format(min(values))}\N{EN DASH}{form.format(max(values))}"


def last_loss(run: Run, epochs: int) -> float:
    """Average the training loss over the steps of the last epoch, in nats."""
    return mean(run.losses[-(len(run.losses) // epochs) :])


def relative_gradients(run: Run, step: int) -> list[float]:
    """Divide the norm of each layer's gradient by that of its weights, before a step."""
    return [gradient / weight for gradient, weight in zip(run.gradients[step], run.weights[step], strict=True)]


def growth(run: Run) -> float:
    """Compute the factor by which the relative gradient grows per layer towards the image, before the first step.

    The geometric mean from the last convolution to the second. The first, 7x7 on the image itself, is another kind.
    """
    _, second, *_, last = relative_gradients(run, 0)
    return float((second / last) ** (1 / (len(run.layers) - 2)))
