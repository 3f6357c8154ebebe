"""``resnet-deploy predict``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_deploy.cli.options import ENGINES, ONE_PER_CORE, PATH, THREADS
from resnet_deploy.errors import FileError

if TYPE_CHECKING:
    from resnet_deploy.engine import Prediction


@click.command()
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option("--engine", type=PATH, help="The bundle.  [default: the one in engines/]")
@click.option("--top", type=int, default=5, show_default=True, help="Classes to name per image.")
@click.option("--threads", type=THREADS, default=0, help=f"CPU threads.  {ONE_PER_CORE}")
def predict(images: tuple[Path, ...], engine: Path | None, top: int, threads: int) -> None:
    """Classify images with an engine: the best classes and their probabilities.

    \b
    Example:
      resnet-deploy predict cat.jpg dog.jpg --engine engines/resnet50-fp16-onnxruntime
    """
    from resnet_deploy.engine import load

    with load(engine or only_engine(), threads=threads) as loaded:
        size = loaded.manifest.spec.batch.max
        for start in range(0, len(images), size):  # answers as they come, however many images there are
            some = images[start : start + size]
            for path, best in zip(some, loaded.classify(some, top), strict=True):
                describe(path, best)


def describe(path: Path, best: "list[Prediction]") -> None:
    """Print the best classes of one image."""
    click.echo(str(path))
    for prediction in best:
        click.echo(f"  {prediction.probability:7.2%}  {prediction.label}")


def only_engine() -> Path:
    """Return the bundle in engines/, if there is just one."""
    from resnet_deploy.bundle import find_bundles

    found = list(find_bundles(ENGINES))
    if len(found) != 1:
        names = ", ".join(str(path) for path in found)
        raise FileError(
            f"{len(found)} engines in {ENGINES}/",
            hint=f"name one with --engine: {names}" if found else "build one with `resnet-deploy build --fp16`",
        )
    return found[0]
