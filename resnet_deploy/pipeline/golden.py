"""Golden vectors: a few inputs and the answers expected of an engine, and how far these are from the FP32 model's."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from resnet_deploy.batching import infer
from resnet_deploy.bundle import Measured
from resnet_deploy.errors import AccuracyError, DataError
from resnet_deploy.pipeline.calibrating import Material, read_images
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.specs import INPUT_NAME, OUTPUT_NAME, BuildSpec, ModelCard, Preprocess
from resnet_deploy.verify import compare_logits

if TYPE_CHECKING:
    from resnet_deploy.datasets import BatchReader
    from resnet_deploy.protocols import Array, Runner

IMAGES: Final = 8
_MOST_DECIBELS: Final = 200.0  # either way: equal outputs have no noise, and JSON has no infinity


@dataclass(frozen=True)
class Answers:
    """Inputs and logits, of the engine itself where it could run.

    Attributes:
        images: The inputs.
        logits: What they gave.
        by_engine: Whether the engine gave them, and not its graph on the CPU.
        notes: How that graph was run, where not as it is written.
    """

    images: "Array"
    logits: "Array"
    by_engine: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Samples:
    """A few inputs whose answers a bundle keeps.

    Attributes:
        reader: The images; None for synthetic ones.
        kind: ``images``, ``calibration images`` where the engine's ranges were chosen on them, or ``synthetic images``.
    """

    reader: "BatchReader | None"
    kind: str

    @property
    def digest(self) -> str:
        """Digest of the images; empty for synthetic ones."""
        return self.reader.dataset.digest if self.reader is not None else ""


def find_samples(folder: Path | None, material: Material, preprocess: Preprocess, *, skip_corrupt: bool) -> Samples:
    """Find a few images in ``folder``, or decide to make some where there is none.

    Images that the engine is calibrated on are taken only where there are no others: on them, the fewer they are the
    better every engine looks.

    Raises:
        DataError: If there is no image.
        FileError: If the folder cannot be read.
    """
    from resnet_deploy.datasets import ImageDataset, find_images

    if folder is None:
        return Samples(None, "synthetic images")
    images = find_images(folder)
    seen = material.seen_in(images)
    others = tuple(path for path in images.paths if path not in seen)
    chosen = ImageDataset(images.root, others) if others else images
    reader = read_images(chosen, IMAGES, preprocess, skip_corrupt=skip_corrupt)
    return Samples(reader, "images" if others else "calibration images")


def answer(runner: "Runner | None", lowered: bytes, spec: BuildSpec, card: ModelCard, samples: Samples) -> Answers:
    """Run a few images through the engine, or, where it cannot run here, through its graph on the CPU.

    Args:
        runner: Of the engine; None where it cannot run here.
        lowered: The graph that the engine was made from.
        spec: What the engine was to be.
        card: The model.
        samples: The images.

    Raises:
        AccuracyError: If a logit is not finite.
        BuildError: If ONNX Runtime refuses to run the engine or the graph.
        DataError: If an image is damaged, or all are.
    """
    from resnet_deploy.ort_session import open_session, translate_refusals
    from resnet_deploy.simulation import simulated

    notes: tuple[str, ...] = ()
    images = _images(samples.reader, card)
    if runner is not None:
        logits = infer(runner, images)
    else:
        graph, notes = simulated(lowered, name="the lowered graph")
        session = open_session(graph, as_written=True)
        with translate_refusals():
            (logits,) = session.run([OUTPUT_NAME], {INPUT_NAME: images})
    if not np.isfinite(logits).all():
        raise AccuracyError(
            f"the {spec.precision} engine gives logits that are not finite",
            hint="the model's activations do not fit this precision; build with --fp32",
        )
    return Answers(images, logits, by_engine=runner is not None, notes=notes)


def write(path: Path, answers: Answers) -> None:
    """Write inputs and logits as a NumPy archive with the arrays ``images`` and ``logits``."""
    np.savez(path, images=answers.images, logits=answers.logits)


def compare(answers: Answers, exported: bytes, kind: str) -> Measured:
    """Compare the answers with those of the FP32 model in ``exported``; ``kind`` is that of the samples."""
    from resnet_deploy.ort_session import open_session, translate_refusals

    session = open_session(exported)
    with translate_refusals():
        (expected,) = session.run([OUTPUT_NAME], {INPUT_NAME: answers.images})
    difference = compare_logits(expected, answers.logits)
    return Measured(
        by="engine" if answers.by_engine else "simulation",
        inputs=kind,
        images=len(answers.images),
        agreement=difference.agreement,
        sqnr_db=max(-_MOST_DECIBELS, min(difference.sqnr_db, _MOST_DECIBELS)),
        max_difference=float(difference.max_difference.max()),
    )


def _images(samples: "BatchReader | None", card: ModelCard) -> "Array":
    if samples is None:
        return synthetic_images(card.preprocess, IMAGES, seed=1)
    batches = [batch.images for batch in samples]
    if not batches:
        raise DataError(f"{samples.dataset.root}: every image is damaged", hint="give sound images")
    return np.concatenate(batches)
