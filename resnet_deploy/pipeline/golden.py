"""Golden vectors: a few inputs and the answers expected of an engine, and how far these are from the FP32 model's."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from resnet_deploy import environment
from resnet_deploy.batching import infer, run_once
from resnet_deploy.bundle import Measured
from resnet_deploy.errors import AccuracyError
from resnet_deploy.pipeline.lowering import synthetic_images
from resnet_deploy.specs import INPUT_NAME, OUTPUT_NAME, BuildSpec, ModelCard
from resnet_deploy.verify import compare_logits

if TYPE_CHECKING:
    from resnet_deploy.datasets import ImageDataset
    from resnet_deploy.protocols import Array, Runner

IMAGES: Final = 8
_LATENCY_CALLS: Final = 20
_MOST_DECIBELS: Final = 200.0  # either way: equal outputs have no noise, and JSON has no infinity


@dataclass(frozen=True)
class Answers:
    """Inputs, the engine's logits, and its latency where the engine itself ran."""

    images: "Array"
    logits: "Array"
    latency_s: float | None


def answer(engine: Path, lowered: bytes, spec: BuildSpec, card: ModelCard, samples: "ImageDataset | None") -> Answers:
    """Run a few images through the engine, or, where it cannot run here, through its graph on the CPU.

    Raises:
        AccuracyError: If a logit is not finite.
    """
    from resnet_deploy.ort_session import open_session
    from resnet_deploy.runners.ort import OrtRunner

    images = _images(samples, card)
    latency_s = None
    if spec.backend == "onnxruntime":
        runner = OrtRunner(engine, card, spec.batch, threads=environment.compute_threads())
        logits, latency_s = infer(runner, images), _median_latency(runner, images)
        runner.close()
    else:
        (logits,) = open_session(lowered, as_written=True).run([OUTPUT_NAME], {INPUT_NAME: images})
    if not np.isfinite(logits).all():
        raise AccuracyError(
            f"the {spec.precision} engine gives logits that are not finite",
            hint="the model's activations do not fit this precision; build with --fp32",
        )
    return Answers(images, logits, latency_s)


def write(path: Path, answers: Answers) -> None:
    """Write inputs and logits as a NumPy archive with the arrays ``images`` and ``logits``."""
    np.savez(path, images=answers.images, logits=answers.logits)


def compare(answers: Answers, exported: bytes, *, real: bool) -> Measured:
    """Compare the answers with those of the FP32 model in ``exported``; ``real`` tells photographs from noise."""
    from resnet_deploy.ort_session import open_session

    (expected,) = open_session(exported).run([OUTPUT_NAME], {INPUT_NAME: answers.images})
    difference = compare_logits(expected, answers.logits)
    return Measured(
        by="engine" if answers.latency_s is not None else "simulation",
        inputs="images" if real else "synthetic",
        images=len(answers.images),
        agreement=difference.agreement,
        sqnr_db=max(-_MOST_DECIBELS, min(difference.sqnr_db, _MOST_DECIBELS)),
        max_difference=float(difference.max_difference.max()),
        latency_s=answers.latency_s,
    )


def _images(samples: "ImageDataset | None", card: ModelCard) -> "Array":
    if samples is None:
        return synthetic_images(card.preprocess, IMAGES, seed=1)
    from resnet_deploy.images import batch_from_images

    return batch_from_images(samples.paths, card.preprocess)


def _median_latency(runner: "Runner", images: "Array") -> float:
    """Median seconds of a few calls at the engine's smallest batch: an indication, not a benchmark."""
    batch = np.resize(images, (runner.batch.min, *images.shape[1:]))
    taken = []
    for _ in range(_LATENCY_CALLS):
        start = time.perf_counter()
        run_once(runner, batch)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
