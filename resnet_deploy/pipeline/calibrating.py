"""Images, or noise when asked for by name, to the ranges of an exported model's activations."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from resnet_deploy.errors import DataError
from resnet_deploy.pipeline.synthetic import synthetic_images

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resnet_deploy.datasets import BatchReader, ImageDataset
    from resnet_deploy.pipeline.source import Source
    from resnet_deploy.protocols import Array, Progress
    from resnet_deploy.quantize.calibrate import Calibration
    from resnet_deploy.specs import CalibrationSpec, ModelCard, Preprocess

RANDOM: Final = "random"
_RANDOM_IMAGES: Final = 32
_BATCH: Final = 8


def find_calibration_images(
    calib: str | None, spec: "CalibrationSpec | None", preprocess: "Preprocess", *, skip_corrupt: bool
) -> "BatchReader | None":
    """Find the images to calibrate on, as many as the spec asks for; None for noise, and where there is no INT8.

    Raises:
        DataError: If INT8 is asked for and nothing to calibrate on is named, or there is no image.
        FileError: If the folder cannot be read.
    """
    from resnet_deploy.datasets import find_images

    if spec is None or calib == RANDOM:
        return None
    if calib is None:
        raise DataError("INT8 needs calibration images", hint="add --calib DIR with a few hundred real images")
    return read_images(find_images(Path(calib)), spec.max_images, preprocess, skip_corrupt=skip_corrupt)


def read_images(dataset: "ImageDataset", most: int, preprocess: "Preprocess", *, skip_corrupt: bool) -> "BatchReader":
    """Read at most ``most`` images of ``dataset``, spread evenly over it."""
    from resnet_deploy.datasets import BatchReader

    return BatchReader(dataset.subset(most), preprocess, _BATCH, skip_corrupt=skip_corrupt)


def calibrate(
    exported: "Source", spec: "CalibrationSpec", reader: "BatchReader | None", progress: "Progress"
) -> "Calibration":
    """Observe the model's activations and choose their ranges.

    Args:
        exported: The FP32 model.
        spec: The method and its parameters.
        reader: The images; None for noise, which suits no real image.
        progress: Counts the batches.

    Raises:
        DataError: If an image is damaged, or all are.
        ModelError: If an activation is not finite.
    """
    from resnet_deploy.quantize.calibrate import CalibrationSource, calibration_from, observe

    card = exported.card
    batches = _noise(card) if reader is None else _images(reader, progress)
    histograms, count = observe(exported.model, batches)
    source = CalibrationSource(
        dataset=reader.dataset.root.name if reader else RANDOM,
        dataset_sha256=reader.dataset.digest if reader else "",
        images=count,
        skipped=reader.skipped_names if reader else (),
        preprocess_sha256=card.preprocess.digest,
        weights_sha256=card.weights_sha256,
        onnx_sha256=exported.sha256,
    )
    return calibration_from(histograms, spec, source)


def _images(reader: "BatchReader", progress: "Progress") -> "Iterator[Array]":
    for batch in progress.track(reader, "calibrating", len(reader)):
        yield batch.images


def _noise(card: "ModelCard") -> "Iterator[Array]":
    for seed in range(_RANDOM_IMAGES):  # image by image, because one may be large
        yield synthetic_images(card.preprocess, 1, seed=seed)
