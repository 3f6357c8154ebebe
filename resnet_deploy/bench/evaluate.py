"""Answers of every engine on a data set, each batch decoded once and shown to all."""

from typing import TYPE_CHECKING

import numpy as np

from resnet_deploy.batching import infer
from resnet_deploy.bench.records import Outputs
from resnet_deploy.verify import best_classes, compare_logits

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from resnet_deploy.bench.ways import Entrant
    from resnet_deploy.protocols import Array


class _Tally:
    """Collects one engine's answers."""

    def __init__(self) -> None:
        self.top5: list[tuple[int, ...]] = []
        self.noise: list[float] = []
        self.signal: list[float] = []
        self.max_difference: list[float] = []

    def add(self, logits: "Array", reference: "Array | None") -> None:
        finite = [bool(np.isfinite(row).all()) for row in logits]
        ranked = best_classes(logits).tolist()
        self.top5 += [tuple(best) if sound else () for best, sound in zip(ranked, finite, strict=True)]
        if reference is not None:
            difference = compare_logits(reference, logits)
            self.noise += difference.noise.tolist()
            self.signal += difference.signal.tolist()
            self.max_difference += difference.max_difference.tolist()

    def outputs(self) -> Outputs:
        return Outputs(
            top5=tuple(self.top5),
            noise=tuple(self.noise),
            signal=tuple(self.signal),
            max_difference=tuple(self.max_difference),
        )


def evaluate(entrants: "Sequence[Entrant]", batches: "Iterable[Array]", reference: str) -> dict[str, Outputs]:
    """Run every entrant on every batch.

    Args:
        entrants: With distinct names; the reference, where there is one, among them.
        batches: Contract tensors of any batch size; at least one image in all.
        reference: Name of the entrant whose logits the others are compared with; empty for none.

    Returns:
        Answers by name, per image in the order of ``batches``.
    """
    tallies = {entrant.name: _Tally() for entrant in entrants}
    for batch in batches:
        logits = {entrant.name: infer(entrant.runner, np.ascontiguousarray(batch)) for entrant in entrants}
        expected = logits.get(reference)
        for name, tally in tallies.items():
            tally.add(logits[name], None if name == reference else expected)
    return {name: tally.outputs() for name, tally in tallies.items()}
