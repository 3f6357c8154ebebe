"""``resnet-deploy verify``."""

from pathlib import Path
from typing import Any

import click

from resnet_deploy.cli.options import ONE_PER_CORE, PATH, THREADS, json_option, refuse_idle, skip_corrupt_option
from resnet_deploy.cli.output import print_json


@click.command()
@click.argument("engine", type=PATH)
@click.option("--data", type=PATH, metavar="DIR", help="Images to answer.  [default: the few kept in the bundle]")
@click.option("--labels-file", type=PATH, metavar="FILE", help="Labels of the images in --data.")
@click.option("--images", type=int, default=256, show_default=True, help="Take at most this many, spread over DIR.")
@skip_corrupt_option
@click.option("--model", type=PATH, metavar="FILE", help="The exported model.  [default: the one beside the engine]")
@click.option("--reference", type=PATH, metavar="FILE", help="The PyTorch weights.  [default: those beside the engine]")
@click.option("--no-pytorch", is_flag=True, help="Leave PyTorch out: the exported model is the reference.")
@click.option("--min-sqnr", type=float, metavar="DB", help="Fail where a rung's logits keep less.")
@click.option("--max-drop", type=float, metavar="POINTS", help="Fail where a rung loses more top-1.")
@click.option("--threads", type=THREADS, default=0, help=f"CPU threads.  {ONE_PER_CORE}")
@json_option
def verify(engine: Path, no_pytorch: bool, as_json: bool, threads: int, **values: Any) -> None:
    """Find where an engine departs from its PyTorch model.

    Form by form: PyTorch, the exported graph, the lowered one, the engine. Then layer by layer.

    \b
    Examples:
      resnet-deploy verify engines/resnet50-int8-onnxruntime
      resnet-deploy verify engines/resnet50-int8-onnxruntime --data imagenet/val --max-drop 1
    """
    from resnet_deploy.cli.terminal import TerminalProgress, stdout_console
    from resnet_deploy.parity import Limits
    from resnet_deploy.pipeline.verifying import VerifyInputs
    from resnet_deploy.pipeline.verifying import verify as run_verify
    from resnet_deploy.report.data import ladder_data
    from resnet_deploy.report.ladder import print_ladder

    if values["data"] is None:
        refuse_idle("the images in the bundle", "images", hint="add --data DIR, or drop it")
    limits = Limits(values.pop("min_sqnr"), values.pop("max_drop"))
    inputs = VerifyInputs(engine, pytorch=not no_pytorch, limits=limits, **values)
    ladder = run_verify(inputs, threads=threads, progress=TerminalProgress())
    if as_json:
        print_json(ladder_data(ladder))
    else:
        print_ladder(ladder, stdout_console())
    limits.require(ladder)
