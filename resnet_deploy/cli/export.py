"""``resnet-deploy export``."""

from pathlib import Path
from typing import Any

import click

from resnet_deploy.cli.options import ENGINES, PATH, export_options, export_spec
from resnet_deploy.cli.output import print_line


@click.command()
@export_options
@click.option("-o", "--output", type=PATH, help="The ONNX file.  [default: engines/<arch>.onnx]")
def export(output: Path | None, **values: Any) -> None:
    """Export a PyTorch ResNet to ONNX, checked against PyTorch.

    \b
    Examples:
      resnet-deploy export                                   ResNet-50 with ImageNet weights
      resnet-deploy export --arch resnet18 --weights mine.pth --labels classes.txt
      resnet-deploy export --weights none --num-classes 10   an untrained network
    """
    from resnet_deploy.cli.terminal import TerminalProgress
    from resnet_deploy.pipeline.exporting import export as run_export

    spec = export_spec(values)
    describe(run_export(spec, output or ENGINES / f"{spec.architecture}.onnx", TerminalProgress()))


def describe(exported: Any) -> None:
    """Print what was exported, and how far it is from PyTorch."""
    from resnet_deploy.export import proof_summary  # needs PyTorch, without which nothing was exported

    contract = exported.card.preprocess
    print_line(f"{exported.path}: {exported.size_bytes / 1e6:.1f} MB, {exported.card.num_classes} classes")
    click.echo(f"  input {contract.dtype} {contract.layout} {'x'.join(map(str, contract.shape))}, any batch size")
    click.echo(f"  {proof_summary(exported.check)}")
    print_line(f"{exported.reference_path}: the PyTorch weights, for `resnet-deploy bench`")
