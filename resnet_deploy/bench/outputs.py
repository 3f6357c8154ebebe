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


def outputs_of(logits: "Array", reference: "Array | None") -> Outputs:
    """Reduce the logits of a batch, (N, classes), to what is kept of them, compared with the reference's."""
    finite = [bool(np.isfinite(row).all()) for row in logits]
    ranked = best_classes(logits).tolist()
    top5 = tuple(tuple(best) if sound else () for best, sound in zip(ranked, finite, strict=True))
    if reference is None:
        return Outputs(top5=top5)
    difference = compare_logits(reference, logits)
    return Outputs(
        top5=top5,
        noise=tuple(difference.noise.tolist()),
        signal=tuple(difference.signal.tolist()),
        max_difference=tuple(difference.max_difference.tolist()),
    )


def join_outputs(parts: "Iterable[Outputs]") -> Outputs:
    """Put the outputs of consecutive batches together."""
    listed: dict[str, list[object]] = {name: [] for name in Outputs.__struct_fields__}
    for part in parts:
        for name, values in listed.items():
            values.extend(getattr(part, name))
    return Outputs(**{name: tuple(values) for name, values in listed.items()})  # type: ignore[arg-type]


def collect_outputs(entrants: "Sequence[Entrant]", batches: "Iterable[Array]", reference: str) -> dict[str, Outputs]:
    """Run every entrant on every batch.

    Args:
        entrants: With distinct names; the reference, where there is one, among them.
        batches: Contract tensors of any batch size; at least one image in all.
        reference: Name of the entrant whose logits the others are compared with; empty for none.

    Returns:
        Answers by name, per image in the order of ``batches``.
    """
    parts: dict[str, list[Outputs]] = {entrant.name: [] for entrant in entrants}
    for batch in batches:
        logits = {entrant.name: infer(entrant.runner, batch) for entrant in entrants}
        for name, answers in parts.items():
            answers.append(outputs_of(logits[name], None if name == reference else logits.get(reference)))
    return {name: join_outputs(answers) for name, answers in parts.items()}
