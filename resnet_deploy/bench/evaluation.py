"""An evaluation as a journal has it: what it is of, and a step for each batch that every engine has answered.

A batch is made of the same images however often the work was interrupted, since each session begins where the last
whole step ended: kernels may round otherwise at another batch size, and the answers are to be the same to the bit.
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from resnet_deploy.batching import infer
from resnet_deploy.bench.evaluation_records import EvaluationCost
from resnet_deploy.bench.outputs import join_outputs, outputs_of
from resnet_deploy.bench.records import Outputs
from resnet_deploy.environment import Environment, differences

if TYPE_CHECKING:
    from resnet_deploy.bench.ways import Entrant
    from resnet_deploy.datasets import Batch, BatchReader


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What an evaluation is of: what must be the same for it to be gone on with.

    Labels are not part of it, for the answers do not depend on them.

    Attributes:
        version: Of this package.
        created: When it was begun; the one thing that may differ.
        environment: The machine and its libraries.
        weights_sha256: Of the model.
        classes: That the model knows.
        preprocess_sha256: Of the input contract.
        engines: Name, digest and device of each, the first being what the others are compared with.
        threads: Threads given to each engine on the CPU.
        batch: Images per step.
        images: How many there are, those that are damaged included.
        files_sha256: Digest over the name, size and time of change of each image: telling what was altered by reading
            every file would take as long as evaluating them.
    """

    version: str
    created: str
    environment: Environment
    weights_sha256: str
    classes: int
    preprocess_sha256: str
    engines: tuple[tuple[str, str, str], ...]
    threads: int
    batch: int
    images: int
    files_sha256: str

    def difference_from(self, other: "Subject") -> str:
        """Say what differs first, in a few words; empty where nothing does."""
        for what, name in (
            ("the engines or what they run on", "engines"),
            ("the weights", "weights_sha256"),
            ("the input contract", "preprocess_sha256"),
            ("the number of images", "images"),
            ("the names, sizes or times of the images", "files_sha256"),
            ("the batch size", "batch"),
            ("the number of threads", "threads"),
            ("the version of resnet-deploy", "version"),
        ):
            if getattr(self, name) != getattr(other, name):
                return what
        return next(iter(differences(self.environment, other.environment)), "")


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One batch, answered by every engine.

    Attributes:
        session: Number of the session that made it, from 1.
        end: Position in the data set after the last image that was looked at.
        kept: Positions of the images in the batch; others up to ``end`` are damaged.
        digests: SHA-256 of each file since the step before, the damaged too.
        answers: Of each engine, in the order of the subject's.
        seconds: Since the step before.
        waiting: Of these, waiting for decoded images.
        inferring: Of these, within the engines.

    Raises:
        ValueError: If an engine has not one answer for each image.
    """

    session: int
    end: int
    kept: tuple[int, ...]
    digests: tuple[str, ...]
    answers: tuple[Outputs, ...]
    seconds: float
    waiting: float
    inferring: float

    def __post_init__(self) -> None:
        if any(len(outputs.top5) != len(self.kept) for outputs in self.answers):
            raise ValueError(f"not one answer for each of {len(self.kept)} images")

    def require_next(self, before: "Step | None", subject: Subject) -> None:
        """Hold the step against the one before it, None for the first, and against what the evaluation is of.

        Raises:
            ValueError: If a step between them is missing, or there twice, or answers are not those of such engines.
        """
        start, session = (before.end, before.session) if before is not None else (0, 1)
        if not start < self.end <= subject.images or not session <= self.session <= session + 1:
            raise ValueError(f"a step that ends at {self.end} follows one that ends at {start}")
        places = [start - 1, *self.kept, self.end]
        if any(one >= following for one, following in itertools.pairwise(places)):
            raise ValueError(f"images of the step from {start} to {self.end} are elsewhere, or not in order")
        if len(self.digests) != self.end - start:
            raise ValueError(f"{len(self.digests)} digests for {self.end - start} images")
        if len(self.answers) != len(subject.engines):
            raise ValueError("answers of other engines than it is of")
        for number, outputs in enumerate(self.answers):
            errors = (outputs.noise, outputs.signal, outputs.max_difference)
            if any(len(values) != (len(self.kept) if number else 0) for values in errors):
                raise ValueError("not one error of the logits for each image")
            for best in filter(None, outputs.top5):
                _require_classes(best, subject.classes)


def _require_classes(best: tuple[int, ...], classes: int) -> None:
    wanted = min(5, classes)
    if len(set(best)) != len(best) or len(best) != wanted or not 0 <= min(best) <= max(best) < classes:
        raise ValueError(f"the best classes are not {wanted} of {classes}")


def take_steps(
    batches: "Iterable[Batch]", reader: "BatchReader", entrants: "Sequence[Entrant]", start: int, session: int
) -> Iterator[Step]:
    """Answer batch after batch.

    Args:
        batches: What ``reader`` yields, perhaps under a bar of progress.
        reader: Of the images from ``start`` on; it takes digests.
        entrants: The first is what the others are compared with.
        start: Position in the data set that ``reader`` begins at.
        session: Number of the session.
    """
    clock = time.perf_counter
    begun, seen = clock(), 0
    for batch in batches:
        arrived = clock()
        logits = [infer(entrant.runner, batch.images) for entrant in entrants]
        inferred = clock()
        end = int(batch.indices[-1]) + 1
        answers = [outputs_of(mine, logits[0] if number else None) for number, mine in enumerate(logits)]
        digests, ended = tuple(reader.digests[seen:end]), clock()
        yield Step(
            session=session,
            end=start + end,
            kept=tuple((start + batch.indices).tolist()),
            digests=digests,
            answers=tuple(answers),
            seconds=ended - begun,
            waiting=arrived - begun,
            inferring=inferred - arrived,
        )
        begun, seen = ended, end
    if seen < len(reader.dataset):  # the last images are damaged
        waited = clock() - begun
        yield Step(
            session=session,
            end=start + len(reader.dataset),
            kept=(),
            digests=tuple(reader.digests[seen:]),
            answers=(Outputs(top5=()),) * len(entrants),
            seconds=waited,
            waiting=waited,
            inferring=0.0,
        )


@dataclass(frozen=True)
class Collected:
    """Steps put together.

    Attributes:
        kept: Positions of the images that were answered.
        digests: SHA-256 of every file, by position.
        answers: Of each engine.
        cost: What the steps took.
    """

    kept: tuple[int, ...]
    digests: tuple[str, ...]
    answers: tuple[Outputs, ...]
    cost: EvaluationCost


def collect(steps: Iterable[Step]) -> Collected:
    """Put at least one step together."""
    kept: list[int] = []
    digests: list[str] = []
    parts: list[tuple[Outputs, ...]] = []
    costs: list[tuple[int, float, float, float]] = []
    for step in steps:
        kept += step.kept
        digests += step.digests
        parts.append(step.answers)
        costs.append((step.session, step.seconds, step.waiting, step.inferring))
    sessions, seconds, waiting, inferring = zip(*costs, strict=True)
    return Collected(
        kept=tuple(kept),
        digests=tuple(digests),
        answers=tuple(join_outputs(of_engine) for of_engine in zip(*parts, strict=True)),
        cost=EvaluationCost(
            sessions=len(set(sessions)), seconds=sum(seconds), waiting=sum(waiting), inferring=sum(inferring)
        ),
    )
