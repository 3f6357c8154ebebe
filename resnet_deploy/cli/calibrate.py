"""``resnet-deploy calibrate``."""

from pathlib import Path
from typing import Any

import click

from resnet_deploy.cli.build import default_model
from resnet_deploy.cli.options import (
    PATH,
    calibration_device_option,
    calibration_images_option,
    equalize_option,
    skip_corrupt_option,
)
from resnet_deploy.cli.output import print_line


@click.command()
@click.argument("model", type=PATH, required=False)
@click.option("--calib", type=PATH, required=True, metavar="DIR", help="Real images.")
@calibration_images_option
@calibration_device_option
@equalize_option
@click.option("--shard", default="1/1", show_default=True, metavar="I/N", help="Run only part I of N of the images.")
@skip_corrupt_option
@click.option("-o", "--output", type=PATH, help="The file.  [default: <model>-observed.safetensors beside the model]")
def calibrate(model: Path | None, shard: str, **values: Any) -> None:
    """Observe a model's activations, for `build --int8 --calib FILE`.

    The parts of a data set may be observed on several machines; `resnet-deploy merge` makes of them exactly what one
    run over the whole gives.

    \b
    Examples:
      resnet-deploy calibrate --calib imagenet/train-subset
      resnet-deploy calibrate --calib imagenet/train --calib-images 50000 --shard 2/8
    """
    from resnet_deploy.cli.terminal import TerminalProgress
    from resnet_deploy.pipeline.observing import ObserveInputs, Shard, observe_images

    inputs = ObserveInputs(model or default_model(), shard=Shard.parse(shard), **values)
    describe(*observe_images(inputs, TerminalProgress()))


def describe(observations: Any, path: Path) -> None:
    """Print what was observed."""
    skipped = f", {len(observations.skipped)} damaged ones left out" if observations.skipped else ""
    by = "" if observations.device == "cpu" else ", run by PyTorch on the GPU"
    print_line(f"{path}: {len(observations.histograms)} tensors over {observations.count} images{skipped}{by}")
