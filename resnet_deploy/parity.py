"""How far the successive forms of one model agree: rungs are whole networks, steps are layers; numbers, then limits.

A step diverges when it alone loses more than its number format accounts for by ``MARGIN_DB``, or leaves less than
``FLOOR_DB``. Sound steps of ResNets at 32 pixels, in every form, were measured to lose up to 11 dB beyond their
format: a layer whose results cancel out loses more than its weights do, and a range that drops outliers
clips. A scale that is eight times too large, or too small, shows.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from resnet_deploy.errors import AccuracyError, SpecError
from resnet_deploy.verify import best_classes, compare_logits, sqnr_db

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from resnet_deploy.protocols import Array

MARGIN_DB: Final = 15.0
FLOOR_DB: Final = 10.0
_WHAT: Final = {"weights": "its weights", "grid": "the 8-bit grid of its result", "arithmetic": "its arithmetic"}


@dataclass(frozen=True)
class Step:
    """What one step of a lowered graph loses, over all images.

    Attributes:
        layer: Name of the tensor that it makes, as in the FP32 graph.
        kind: ``weights`` for a convolution or the classifier, ``grid`` for an activation onto its integers,
            ``arithmetic`` for everything else.
        alone_db: SQNR of its result against FP32 on the same inputs; infinite if equal.
        so_far_db: SQNR of its result against the FP32 graph run from the image on.
        expected_db: SQNR that its number format accounts for.
        clipped: Share of values beyond the ends of the grid; 0 where there is none.
    """

    layer: str
    kind: str
    alone_db: float
    so_far_db: float
    expected_db: float
    clipped: float = 0.0

    @property
    def diverges(self) -> bool:
        """Whether it loses more than its format accounts for."""
        return self.alone_db < max(self.expected_db - MARGIN_DB, FLOOR_DB)

    def __str__(self) -> str:
        clips = f", clipping {self.clipped:.2%} of the values" if self.clipped else ""
        verb = "leave" if self.kind == "weights" else "leaves"
        figures = f"{self.alone_db:.1f} dB of {self.expected_db:.1f} to be expected"
        return f"{self.layer}: {_WHAT[self.kind]} alone {verb} {figures}{clips}"


def first_divergence(steps: Iterable[Step]) -> Step | None:
    """Return the first step, in order of execution, that diverges."""
    return next((step for step in steps if step.diverges), None)


@dataclass(frozen=True)
class Rung:
    """One form of the model, and how its answers compare.

    Attributes:
        name: Which form it is.
        top1: Share of images whose best class is their label; None without labels.
        agreement: Share of images with the best class of the first rung.
        sqnr_db: SQNR of its logits against the first rung; None for the first itself.
        step_db: SQNR of its logits against the rung above.
        not_run: Why there are no figures; empty where there are.
    """

    name: str
    top1: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    step_db: float | None = None
    not_run: str = ""


class Tally:
    """Sums of one rung's answers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.images = self.labelled = self.correct = 0
        self.agreeing = 0.0
        self._first, self._above = [0.0, 0.0], [0.0, 0.0]  # signal and noise

    def add(self, logits: "Array", first: "Array", above: "Array", labels: "NDArray[np.int64] | None") -> None:
        """Add one batch: this rung's logits, those of the first rung and of the one above, (N, classes) each."""
        self.images += len(logits)
        if labels is not None:
            self.labelled += len(labels)
            self.correct += int((best_classes(logits, 1)[:, 0] == labels).sum())
        difference = compare_logits(first, logits)
        self.agreeing += difference.agreement * len(logits)
        for sums, one in ((self._first, difference), (self._above, compare_logits(above, logits))):
            sums[0] += float(one.signal.sum())
            sums[1] += float(one.noise.sum())

    def rung(self, *, is_first: bool) -> Rung:
        """Turn the sums into figures."""
        top1 = self.correct / self.labelled if self.labelled else None
        if is_first:
            return Rung(self.name, top1)
        return Rung(self.name, top1, self.agreeing / self.images, sqnr_db(*self._first), sqnr_db(*self._above))


@dataclass(frozen=True)
class Ladder:
    """All forms of one model, and the layers of the lowered one.

    Attributes:
        engine: The bundle, as it was named.
        title: Model, precision and backend.
        inputs: What the images are.
        caveats: What a reader of the figures must know, one line each.
        rungs: From the reference down to the engine; the first has run.
        steps: Of the lowered graph, in order of execution.
        step_images: How many images the steps were measured on.
    """

    engine: str
    title: str
    inputs: str
    caveats: tuple[str, ...]
    rungs: tuple[Rung, ...]
    steps: tuple[Step, ...]
    step_images: int

    @property
    def diverging(self) -> Step | None:
        """The first step that diverges."""
        return first_divergence(self.steps)

    @property
    def costliest(self) -> Step:
        """The step that alone leaves least."""
        return min(self.steps, key=lambda step: step.alone_db)

    @property
    def lowest(self) -> Step:
        """The step with the least SQNR so far."""
        return min(self.steps, key=lambda step: step.so_far_db)


@dataclass(frozen=True)
class Limits:
    """What a ladder is held to, where anything.

    Attributes:
        min_sqnr_db: Least SQNR of each rung's logits against the first.
        max_drop: Most points of top-1 that a rung may lie below the first.

    Raises:
        SpecError: If one is not a number, or the drop is negative.
    """

    min_sqnr_db: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.min_sqnr_db is not None and not math.isfinite(self.min_sqnr_db):
            raise SpecError(f"--min-sqnr {self.min_sqnr_db}", hint="give decibels, such as 25")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise SpecError(f"--max-drop {self.max_drop}", hint="give points of top-1 between 0 and 100, such as 0.5")

    def require(self, ladder: Ladder) -> None:
        """Hold every rung that ran to the limits.

        Raises:
            AccuracyError: Naming the first rung that misses one, and the layer.
        """
        first, *others = ladder.rungs
        for rung in others:
            if self.min_sqnr_db is not None and rung.sqnr_db is not None and rung.sqnr_db < self.min_sqnr_db:
                reason = f"SQNR {rung.sqnr_db:.1f} dB against {first.name}, less than --min-sqnr {self.min_sqnr_db:g}"
                raise AccuracyError(f"{rung.name}: {reason}", hint=_where(ladder))
            if self.max_drop is not None and first.top1 is not None and rung.top1 is not None:
                drop = (first.top1 - rung.top1) * 100
                if drop > self.max_drop + 1e-9:  # a limit of 0.1 is no exact binary fraction, nor is a share
                    reason = f"top-1 is {drop:.2f} points below {first.name}, more than --max-drop {self.max_drop:g}"
                    raise AccuracyError(f"{rung.name}: {reason}", hint=_where(ladder))


def _where(ladder: Ladder) -> str:
    if ladder.diverging is not None:
        return f"the first layer to diverge is {ladder.diverging}"
    return f"no layer diverges; the largest loss of one is {ladder.costliest}"
