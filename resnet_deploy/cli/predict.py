"""``resnet-deploy predict``."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from resnet_deploy.cli.options import ENGINES, ONE_PER_CORE, PATH, PATH_OR_WORD, THREADS, json_option, refuse_idle
from resnet_deploy.cli.output import print_json, print_line
from resnet_deploy.errors import FileError, SpecError
from resnet_deploy.names import readable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resnet_deploy.engine import Prediction
    from resnet_deploy.pipeline.scoring import ScoringWay
    from resnet_deploy.pipeline.scoring_output import ScoringRecord

_OF_SCORING: Final = ("shard_size", "logits", "workers", "with_ray", "ray_address")


@click.command()
@click.argument("images", nargs=-1, required=True, type=PATH_OR_WORD)
@click.option("--engine", type=PATH, help="The bundle.  [default: the one in engines/]")
@click.option("--top", type=int, default=5, show_default=True, help="Classes to name per image.")
@click.option(
    "--threads",
    type=THREADS,
    default=0,
    help=f"CPU threads of each engine.  {ONE_PER_CORE}; --workers share them",
)
@click.option(
    "--out", type=PATH_OR_WORD, metavar="DIR", help="Score all images below one folder into Parquet files here."
)
@click.option("--shard-size", type=int, default=4096, show_default=True, help="Images per file in --out.")
@click.option("--logits", is_flag=True, help="Keep all logits in --out, too.")
@click.option(
    "--workers",
    type=THREADS,
    default=0,
    help="Engines at work.  [default: a GPU each, or a core, up to 4; beyond 16 cores one for 4]",
)
@click.option("--ray", "with_ray", is_flag=True, help="Work on a Ray cluster, or on one that is started here.")
@click.option("--ray-address", metavar="ADDRESS", help="The cluster.  [default: RAY_ADDRESS, or a new one here]")
@json_option
def predict(images: tuple[str, ...], engine: Path | None, out: str | None, as_json: bool, **values: Any) -> None:
    """Classify images with an engine.

    Of a few images the best classes are printed, with their probabilities. Of all below a folder they are written to
    --out, one row for each image, in a file for every --shard-size of them; images that cannot be read are listed in
    --out/_errors. The same command goes on where an interrupted one ended.

    \b
    Examples:
      resnet-deploy predict cat.jpg dog.jpg --engine engines/resnet50-fp16-onnxruntime
      resnet-deploy predict photos/ --out scores/ --workers 4
      resnet-deploy predict s3://bucket/photos --out s3://bucket/scores --ray
    """
    if out is None:
        refuse_idle("answers that are printed", *_OF_SCORING, hint="add --out DIR to score a folder")
        classified = classify(tuple(map(Path, images)), engine or only_engine(), values["top"], values["threads"])
        if as_json:
            print_json([{"path": readable(str(path)), "classes": best} for path, best in classified])
            return
        for path, best in classified:
            describe(path, best)
        return
    if len(images) != 1:
        raise SpecError(f"{len(images)} places to score into one --out", hint="give one folder; links may be in it")
    if not values["with_ray"]:
        refuse_idle("worker processes", "ray_address", hint="add --ray")
    record = score_folder(images[0], engine or only_engine(), out, values)
    if as_json:
        print_json(record)
    else:
        present(record, out)


def classify(
    images: tuple[Path, ...], engine: Path, top: int, threads: int
) -> "Iterator[tuple[Path, list[Prediction]]]":
    """Yield each image with its best classes, as they come, however many images there are."""
    from resnet_deploy.artifact import is_folder
    from resnet_deploy.engine import load

    for path in images:
        if is_folder(path):
            raise FileError(f"{path} is a folder", hint="add --out DIR to score all images below it")
    with load(engine, threads=threads) as loaded:
        size = loaded.manifest.spec.batch.max
        for start in range(0, len(images), size):
            some = images[start : start + size]
            yield from zip(some, loaded.classify(some, top), strict=True)


def describe(path: Path, best: "list[Prediction]") -> None:
    """Print the best classes of one image."""
    print_line(readable(path))
    for prediction in best:
        print_line(f"  {prediction.probability:7.2%}  {prediction.label}")


def score_folder(source: str, engine: Path, out: str, values: dict[str, Any]) -> "ScoringRecord":
    """Score all images below a folder."""
    from resnet_deploy.cli.terminal import TerminalProgress
    from resnet_deploy.pipeline.scoring import ScoringPlaces, score
    from resnet_deploy.pipeline.scoring_plan import ScoringSpec

    spec = ScoringSpec(**{name: values[name] for name in ("shard_size", "top", "logits", "workers", "threads")})
    try:
        with way(values) as chosen:
            return score(ScoringPlaces(engine, source, out), spec, chosen, TerminalProgress())
    except (KeyboardInterrupt, SystemExit):  # the latter is what SIGTERM becomes
        click.echo("the same command goes on from here", err=True)
        raise


@contextlib.contextmanager
def way(values: dict[str, Any]) -> "Iterator[ScoringWay]":
    """Choose who works: processes of this machine, or a cluster, which is connected to until the block ends."""
    if values["with_ray"]:
        from resnet_deploy.pipeline.scoring_ray import ray_way

        with ray_way(values["ray_address"]) as cluster:
            yield cluster
    else:
        from resnet_deploy.pipeline.scoring import ScoringWay

        yield ScoringWay()


def present(record: "ScoringRecord", out: str) -> None:
    """Print how many images have a row, how fast, and where."""
    session = record.sessions[-1]
    new = session.scored + session.bad
    now = f"{new:,} of them now, at {session.rate:,.1f} images/s" if new else "nothing was left to do"
    print_line(f"{record.scored:,} images scored, {record.bad:,} bad; {now}: {out}")
    if record.bad:
        print_line(f"what is wrong with the bad ones: {out.rstrip('/')}/_errors")


def only_engine() -> Path:
    """Return the bundle in engines/, if there is just one."""
    from resnet_deploy.bundle import find_bundles

    found = list(find_bundles(ENGINES))
    if len(found) != 1:
        names = ", ".join(str(path) for path in found)
        raise FileError(
            f"{len(found) or 'no'} engines in {ENGINES}/",
            hint=f"name one with --engine: {names}" if found else "build one with `resnet-deploy build --fp16`",
        )
    return found[0]
