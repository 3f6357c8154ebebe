"""``resnet-deploy evaluate``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_deploy.cli.options import ENGINES, ONE_PER_CORE, PATH, THREADS, json_option, skip_corrupt_option
from resnet_deploy.cli.output import print_json, print_line

if TYPE_CHECKING:
    from resnet_deploy.bench.evaluation_records import EvaluationRecord

RESULTS = Path("benchmarks/results")


@click.command()
@click.argument("engines", nargs=-1, type=PATH)
@click.option(
    "--data",
    type=PATH,
    required=True,
    metavar="DIR",
    help="Images to answer: folder per class, or flat with a labels file.",
)
@click.option("--labels-file", type=PATH, metavar="FILE", help="Labels of the images in --data.")
@skip_corrupt_option
@click.option("--batch", type=int, default=32, show_default=True, help="Images decoded and answered at once.")
@click.option("--threads", type=THREADS, default=0, help=f"CPU threads per engine.  {ONE_PER_CORE}")
@click.option(
    "--decode-workers",
    "workers",
    type=THREADS,
    default=0,
    help="Threads that decode.  [default: one per physical core, at most 16]",
)
@click.option("--with-pytorch", "pytorch", is_flag=True, help="Evaluate PyTorch first, and compare with it.")
@click.option(
    "--reference", type=PATH, metavar="FILE", help="The PyTorch weights.  [default: those beside the engines]"
)
@click.option("--decode-times", "decoding", is_flag=True, help="Time decoding and engines, alone and together, too.")
@click.option("-o", "--output", type=PATH, default=RESULTS, show_default=True, help="Folder for the record.")
@click.option(
    "--resume/--restart",
    default=True,
    show_default=True,
    help="Go on with what an interrupted evaluation left in -o, if anything, or drop it.",
)
@json_option
def evaluate(engines: tuple[Path, ...], output: Path, resume: bool, as_json: bool, **values: Any) -> None:
    """Count the right answers of engines on a whole data set.

    The engines are of one model; all in engines/ by default. Every image is decoded once and shown to all. What is
    done is kept in -o as it goes, so that the same command goes on where an interrupted one ended.

    \b
    Examples:
      resnet-deploy evaluate --data imagenet/val
      resnet-deploy evaluate engines/resnet50-fp32-tensorrt engines/resnet50-int8-tensorrt --data imagenet/val
    """
    from resnet_deploy import artifact
    from resnet_deploy.cli.terminal import TerminalProgress
    from resnet_deploy.errors import SpecError
    from resnet_deploy.pipeline.evaluating import EvaluationSpec
    from resnet_deploy.pipeline.evaluating import evaluate as run_evaluate
    from resnet_deploy.pipeline.lineup import BenchInputs
    from resnet_deploy.pipeline.matching import find_engines

    if values["reference"] is not None and not values["pytorch"]:
        raise SpecError("--reference has no effect without --with-pytorch", hint="add --with-pytorch, or drop it")
    spec = EvaluationSpec(**{name: values.pop(name) for name in ("batch", "threads", "workers", "decoding")})
    inputs = BenchInputs(engines=engines or find_engines(ENGINES), **values)
    with artifact.writable_folder(output):
        try:
            record = run_evaluate(inputs, spec, output, TerminalProgress(), restart=not resume)
        except (KeyboardInterrupt, SystemExit):  # the latter is what SIGTERM becomes
            click.echo("the same command goes on from here", err=True)
            raise
    present(record, output, as_json=as_json)


def present(record: "EvaluationRecord", folder: Path, *, as_json: bool) -> None:
    """Print the figures, and where the record lies."""
    from resnet_deploy.cli.terminal import stdout_console
    from resnet_deploy.pipeline.evaluating import record_path
    from resnet_deploy.report.data import evaluation_data
    from resnet_deploy.report.evaluation_table import print_evaluation

    path = record_path(record, folder)
    if as_json:
        print_json({**evaluation_data(record), "record": str(path)})
        return
    print_evaluation(record, stdout_console())
    print_line(f"answers: {path}")
