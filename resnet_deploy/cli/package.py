"""``resnet-deploy package``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_deploy.cli.options import PATH, THREADS, numbers
from resnet_deploy.cli.output import print_json, print_line

if TYPE_CHECKING:
    from resnet_deploy.pipeline.packaging import Packaged


@click.command()
@click.argument("engine", type=PATH)
@click.option("--triton", "repository", type=PATH, required=True, metavar="DIR", help="The model repository.")
@click.option("--name", help="Of the model, by which clients ask for it.  [default: the bundle's]")
@click.option("--version", type=int, metavar="N", help="Number of the version.  [default: the next]")
@click.option(
    "--max-delay",
    "max_delay_us",
    type=int,
    default=0,
    show_default=True,
    metavar="MICROSECONDS",
    help="How long a request may wait for others to be run with it.",
)
@click.option(
    "--instances", type=int, default=1, show_default=True, help="Copies of the engine; on GPUs, on each of them."
)
@click.option(
    "--gpus", callback=numbers(int), metavar="N,...", help="GPUs to serve on.  [default: all of the server's]"
)
@click.option(
    "--threads", type=THREADS, default=0, help="CPU threads of each instance.  [default: what the server chooses]"
)
@click.option("--cuda-graphs", is_flag=True, help="Capture CUDA graphs of the batch sizes it is tuned for (tensorrt).")
@click.option("--json", "as_json", is_flag=True, help="Print what was packaged as JSON.")
def package(engine: Path, repository: Path, as_json: bool, **values: Any) -> None:
    """Add an engine to a model repository for Triton, or make one.

    \b
    Examples:
      resnet-deploy package engines/resnet50-int8-onnxruntime --triton models
      resnet-deploy package engines/resnet50-fp16-tensorrt --triton models --name resnet50 --max-delay 500
    """
    from resnet_deploy.bundle import open_bundle
    from resnet_deploy.cli.terminal import TerminalProgress
    from resnet_deploy.integrations.triton.hosts import Serving
    from resnet_deploy.pipeline.packaging import package_for_triton

    version, name, gpus = (values.pop(key) for key in ("version", "name", "gpus"))
    given = open_bundle(engine).manifest.name if name is None else name
    serving = Serving(name=given, gpus=gpus or (), **values)
    with TerminalProgress().task("packaging"):
        packaged = package_for_triton(engine, repository, serving, version)
    if as_json:
        print_json(packaged)
    else:
        describe(packaged)


def describe(packaged: "Packaged") -> None:
    """Print what the repository holds now, and what a server must be."""
    for model in packaged.models:
        print_line(f"{packaged.repository}/{model.name}/: version {model.version}, {model.state}")
    for note in packaged.notes:
        print_line(f"  {note}")
