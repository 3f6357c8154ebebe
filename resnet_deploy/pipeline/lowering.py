"""The exported FP32 graph, lowered to a precision in the form that the target runs fastest."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from resnet_deploy.errors import BackendError
from resnet_deploy.specs import BuildSpec, ModelCard, Preprocess

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from resnet_deploy.datasets import ImageDataset
    from resnet_deploy.environment import Cpu
    from resnet_deploy.protocols import Array, Progress
    from resnet_deploy.quantize.calibrate import Calibration, CalibrationSource

RANDOM_IMAGES = 32


@dataclass(frozen=True)
class Lowered:
    """A graph ready for its builder.

    Attributes:
        model: The graph.
        int8_dot_product: Whether its weights use the full 8 bits on a CPU, which then must have a dot product for them.
        notes: What was done, and what a reader of figures should know.
    """

    model: "ir.Model"
    int8_dot_product: bool
    notes: tuple[str, ...]


def lower(model: "ir.Model", spec: BuildSpec, calibration: "Calibration | None", cpu: "Cpu") -> Lowered:
    """Lower ``model`` as ``spec`` asks.

    Raises:
        BackendError: If the backend has no INT8 form.
        ModelError: If a weight does not fit FP16, or the calibration is of another model.
    """
    from resnet_deploy.precision import lower_to_float16
    from resnet_deploy.quantize.qdq import FORMS, insert_qdq

    notes: list[str] = []
    full_range = False
    if spec.precision == "int8":
        assert calibration is not None
        if spec.backend not in FORMS:
            raise BackendError(f"{spec.backend} has no INT8 form", hint=f"choose one of: {', '.join(FORMS)}")
        form = FORMS[spec.backend]
        if form.activation == "uint8":
            full_range = cpu.has_vnni
            if not full_range:
                form = replace(form, weight_bits=7)
                notes.append("this CPU has no INT8 dot product: weights are 7-bit, so that its kernels do not saturate")
        if not calibration.source.dataset_sha256:
            notes.append("calibrated on noise: the ranges suit no real image; do not deploy")
        model, report = insert_qdq(model, calibration, form)
        notes.append(f"{len(report.quantized)} layers and {len(report.activations)} activations quantized")
        notes += [f"{name} stays in floating point: {reason}" for name, reason in report.left_in_float.items()]
    if spec.precision == "fp16" or (spec.precision == "int8" and form.scale_dtype == "float16"):
        model, halved = lower_to_float16(model)
        lost = sum(halved.flushed.values())
        if lost:
            notes.append(f"{lost} weights in {len(halved.flushed)} tensors were too small for FP16 and became 0")
    return Lowered(model, full_range, tuple(notes))


def calibrate(
    model: "ir.Model", spec: BuildSpec, source: "CalibrationSource", batches: "Iterator[Array]"
) -> "Calibration":
    """Observe the model's activations on ``batches`` and choose ranges."""
    import msgspec

    from resnet_deploy.quantize.calibrate import calibration_from, observe

    assert spec.calibration is not None
    histograms, count = observe(model, batches)
    return calibration_from(histograms, spec.calibration, msgspec.structs.replace(source, images=count))


def dataset_batches(
    dataset: "ImageDataset", preprocess: Preprocess, progress: "Progress", what: str
) -> "Iterator[Array]":
    """Yield the images of ``dataset`` as contract tensors, a few at a time."""
    from resnet_deploy.datasets import BatchReader

    reader = BatchReader(dataset, preprocess, 8)
    for batch in progress.track(reader, what, len(reader)):
        yield batch.images


def random_batches(card: ModelCard) -> "Iterator[Array]":
    """Yield noise, image by image: for trying the INT8 path out, never for accuracy."""
    for seed in range(RANDOM_IMAGES):
        yield synthetic_images(card.preprocess, 1, seed=seed)


def synthetic_images(preprocess: Preprocess, count: int, *, seed: int = 0) -> "Array":
    """Make contract tensors from smooth colour noise, (count, *preprocess.shape).

    Neighbouring pixels resemble each other as in photographs: independent ones would average out to grey in the first
    layers and leave nothing to compare. The pictures have the size of the crop, so that none is larger than what
    becomes of it, however large the resize.
    """
    import msgspec
    from PIL import Image

    from resnet_deploy.images import preprocess_image

    generator = np.random.default_rng(seed)
    side = preprocess.image_size
    contract = msgspec.structs.replace(preprocess, resize=side)
    batch = np.empty((count, *contract.shape), contract.dtype)
    for row, pixels in zip(batch, generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8), strict=True):
        picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        row[...] = preprocess_image(picture, contract)
    return batch
