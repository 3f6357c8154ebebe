"""``resnet-deploy merge``."""

from pathlib import Path

import click

from resnet_deploy.cli.calibrate import describe
from resnet_deploy.cli.options import PATH


@click.command()
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FILE...")
@click.option("-o", "--output", type=PATH, required=True, help="The file to write.")
def merge(files: tuple[Path, ...], output: Path) -> None:
    """Put together what `calibrate` observed of parts of a data set.

    \b
    Example:
      resnet-deploy merge engines/resnet50-observed-*.safetensors -o engines/resnet50-observed.safetensors
    """
    from resnet_deploy.pipeline.observing import merge_files

    describe(merge_files(files, output), output)
