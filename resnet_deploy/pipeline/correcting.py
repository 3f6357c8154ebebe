"""A few of the calibration images, to what INT8 must add to its biases."""

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from resnet_deploy.pipeline import lowering

if TYPE_CHECKING:
    from resnet_deploy.pipeline.calibrating import Material
    from resnet_deploy.pipeline.lowering import Recipe
    from resnet_deploy.protocols import Progress

_IMAGES: Final = 32  # a few give most of what there is to gain; twice as many give no more decibels


def correct(recipe: "Recipe", material: "Material", progress: "Progress") -> tuple["Recipe", str]:
    """Measure the mean error of every layer on integers and give ``recipe`` what takes it out; say what was done.

    It is measured once, with everything on integers that may be. A layer that is later left in floating point loses
    its correction with its error; what the others are given is mostly their own.

    Raises:
        DataError: If an image is damaged, or all are.
    """
    from resnet_deploy.quantize.bias import measure_corrections

    reader = material.reader
    if reader is None:
        return recipe, "biases are not corrected: that takes images to measure their error on (--calib DIR)"
    few = replace(reader, dataset=reader.dataset.subset(_IMAGES), batch_size=1)
    images = [np.ascontiguousarray(batch.images) for batch in few]
    if not images:
        return recipe, "biases are not corrected: the images to measure their error on are damaged"
    with progress.task("correcting biases"):
        lowered = lowering.lower(recipe)
        corrections = measure_corrections(recipe.model, lowered.model, images)
    found = {name: shift for name, shift in corrections.items() if name in lowered.quantized}
    count = "1 image" if len(images) == 1 else f"{len(images)} images"
    return replace(recipe, corrections=found), f"biases corrected by the mean error of their layers on {count}"
