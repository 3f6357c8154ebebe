"""The record of the experiment: everything measured, raw, as JSON; finished runs are kept in it and not made again."""

from pathlib import Path

import msgspec

from resnet_deploy import environment
from resnet_deploy.artifact import read_bytes, write_bytes
from resnet_deploy.environment import Environment
from resnet_deploy.errors import FileError, SpecError

SCHEMA = 1


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How every arm is trained: stochastic gradient descent, the rate divided by ten for the last third of the steps.

    Attributes:
        epochs: Passes over the training images, each in another order, the same for all arms of a seed.
        batch: Images in a step.
        rate: The rate of learning at first; of 0.001, 0.002, 0.005 and 0.01 the one that plain-34 does best at.
        momentum, weight_decay: As in the paper.
    """

    epochs: int = 6
    batch: int = 64
    rate: float = 0.002
    momentum: float = 0.9
    weight_decay: float = 1e-4


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One arm trained once.

    Attributes:
        arm: Name of the architecture.
        seed: Decided the first weights and the order of the images.
        layers: Names of the convolutions, from the image to the classifier.
        losses: Cross-entropy of each step's batch, in nats, before the step.
        errors: Share of each step's batch that was answered wrong, before the step.
        gradients: For each step, the norm of the gradient of each layer's weights.
        weights: For each step, the norm of each layer's weights, before the step.
        held_out: Share of the held-out images answered wrong, after each epoch.
        training_error: Share of the training images answered wrong, after the last epoch.
        likeness: Mean cosine of input gradients along a walk between two images, by distance in steps; before training.
        seconds: How long it took.
    """

    arm: str
    seed: int
    layers: tuple[str, ...]
    losses: tuple[float, ...]
    errors: tuple[float, ...]
    gradients: tuple[tuple[float, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    held_out: tuple[float, ...]
    training_error: float
    likeness: tuple[float, ...]
    seconds: float


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A whole experiment: the recipe, the machine, and the runs so far."""

    schema: int = SCHEMA
    recipe: Recipe
    environment: Environment
    runs: tuple[Run, ...] = ()

    def find(self, arm: str, seed: int) -> Run | None:
        """Return the run of an arm and a seed, if it was made."""
        return next((run for run in self.runs if (run.arm, run.seed) == (arm, seed)), None)

    def of(self, arm: str) -> tuple[Run, ...]:
        """Return the runs of an arm, in the order of their seeds."""
        return tuple(sorted((run for run in self.runs if run.arm == arm), key=lambda run: run.seed))

    @property
    def arms(self) -> tuple[str, ...]:
        """Name the arms that have runs: by depth, plain before residual."""
        return tuple(sorted({run.arm for run in self.runs}, key=lambda arm: (arm[-2:], arm)))

    def with_run(self, run: Run) -> "Record":
        """Add a run."""
        return msgspec.structs.replace(self, runs=(*self.runs, run))


def open_record(path: Path, recipe: Recipe) -> Record:
    """Read what was measured so far, or begin.

    Raises:
        FileError: If the file cannot be read, or is no record.
        SpecError: If its runs would not be comparable with new ones: of another recipe or another machine.
    """
    here = environment.collect()
    if not path.exists():
        return Record(recipe=recipe, environment=here)
    record = read_record(path)
    hint = "give another --out, or remove it"
    if record.recipe != recipe:
        raise SpecError(f"{path} is of another recipe: {record.recipe}", hint=hint)
    if different := environment.differences(record.environment, here):
        raise SpecError(f"{path} was begun elsewhere: {'; '.join(different)}", hint=hint)
    return record


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        FileError: If it cannot be read, or is no record of this schema.
    """
    try:
        record = msgspec.json.decode(read_bytes(path), type=Record)
    except msgspec.DecodeError as error:
        raise FileError(f"{path} is no record of this experiment: {error}", hint="give another --out") from error
    if record.schema != SCHEMA:
        raise FileError(f"{path} has schema {record.schema}, not {SCHEMA}", hint="give another --out")
    return record


def write_record(path: Path, record: Record) -> None:
    """Write a record, whole or not at all."""
    write_bytes(path, msgspec.json.encode(record) + b"\n")
