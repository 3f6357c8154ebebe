"""``resnet-deploy inspect``."""

from pathlib import Path
from typing import Any

import click

from resnet_deploy.cli.options import PATH, json_option, refuse_idle
from resnet_deploy.cli.output import print_line
from resnet_deploy.errors import LintError, SpecError


@click.command()
@click.argument("path", type=PATH, metavar="ENGINE|MODEL.onnx")
@click.option("--layers", is_flag=True, help="List layers and, where a compiler says, the kernels made of them.")
@click.option("--scales", is_flag=True, help="List an engine's activations: ranges, scales, zero points, clipping.")
@click.option("--lint", is_flag=True, help="Fail where an engine's kernels are not what its precision should become.")
@click.option("--outliers", is_flag=True, help="List how a model's weights will fare on integers, worst first.")
@click.option(
    "--observed",
    type=PATH,
    metavar="FILE",
    help="With --outliers, list activations too: from what `calibrate` wrote, or an engine's observations.safetensors.",
)
@json_option
def inspect(path: Path, observed: Path | None, as_json: bool, **shown: bool) -> None:
    """Say what an engine or an exported model is, without running it.

    \b
    Examples:
      resnet-deploy inspect engines/resnet50-int8-onnxruntime
      resnet-deploy inspect engines/resnet50-int8-onnxruntime --layers --scales
      resnet-deploy inspect engines/resnet50-fp16-tensorrt-rtx --lint
      resnet-deploy inspect engines/resnet50.onnx --outliers
      resnet-deploy inspect engines/resnet50.onnx --outliers --observed engines/resnet50-observed.safetensors
    """
    from resnet_deploy.cli.terminal import TerminalProgress
    from resnet_deploy.pipeline import inspecting

    progress = TerminalProgress()
    if inspecting.is_engine(path):
        refuse_idle("an engine", "outliers", "observed", hint="name the exported model, or drop it")
        need_graph = shown["layers"] or shown["scales"]
        engine = inspecting.inspect_engine(path, need_graph=need_graph, lint=shown["lint"], progress=progress)
        if as_json:
            click.echo(inspecting.to_json(engine))
        else:
            _describe_engine(engine, shown)
        if engine.findings:
            _fail(engine)
        return
    refuse_idle("an exported model", "scales", "lint", hint="name an engine, or drop it")
    if observed is not None and not shown["outliers"]:
        raise SpecError("--observed has no effect without --outliers", hint="add --outliers, or drop it")
    model = inspecting.inspect_model(path, outliers=shown["outliers"], observed=observed, progress=progress)
    if as_json:
        click.echo(inspecting.to_json(model))
    else:
        _describe_model(model, shown)


def _describe_engine(engine: Any, shown: dict[str, bool]) -> None:
    from resnet_deploy.cli.terminal import stdout_console
    from resnet_deploy.compiled.lint import FLAVOURS
    from resnet_deploy.report import details, kernels

    console, batch = stdout_console(), engine.manifest.spec.batch.opt
    facts = details.manifest_facts(engine.manifest, engine.size_bytes)
    facts.append(("layers", engine.unread or details.layers_in_words(engine.layers)))
    if engine.compiled is not None:
        facts += kernels.kernel_facts(engine.compiled, batch)
    elif engine.manifest.spec.backend in FLAVOURS:
        facts.append(("kernels", f"unread: {engine.not_compiled}"))
    if engine.activations:
        facts.append(("activations", f"{len(engine.activations)} quantized"))
    details.print_facts(engine.path, facts, console)
    if shown["layers"] or (shown["scales"] and engine.activations):
        details.print_layers(engine.layers, console)
    if shown["layers"] and engine.compiled is not None:
        kernels.print_kernels(engine.compiled, batch, console)
    if shown["scales"] and engine.activations:
        details.print_scales([_scale_row(one) for one in engine.activations], console)
    elif shown["scales"]:
        click.echo("no scales: nothing in this engine is quantized")
    for line in kernels.finding_lines(engine.findings or ()):
        print_line(line)
    if engine.findings == ():
        click.echo("lint: every kernel is as expected")


def _fail(engine: Any) -> None:
    count = len(engine.findings)
    raise LintError(
        f"{engine.path}: {count} {'kernel is' if count == 1 else 'findings: kernels are'} not as expected",
        hint="see the lines above; `--layers` lists all kernels",
    )


def _scale_row(activation: Any) -> tuple[str, ...]:
    from resnet_deploy.report import details

    grid = activation.grid
    ranges = details.interval(activation.observed), details.interval(activation.chosen)
    clipped = details.share(activation.clipped)
    return grid.tensor, *ranges, activation.method, clipped, grid.dtype, f"{grid.scale:.6g}", str(grid.zero_point)


def _describe_model(model: Any, shown: dict[str, bool]) -> None:
    from resnet_deploy.cli.terminal import stdout_console
    from resnet_deploy.report import details

    console = stdout_console()
    facts = [
        *details.card_facts(model.card),
        ("file", f"{model.size_bytes / 1e6:.1f} MB, SHA-256 {model.sha256[:12]}"),
        ("graph", f"{model.nodes} nodes"),
        ("layers", details.layers_in_words(model.layers)),
    ]
    details.print_facts(model.path, facts, console)
    if shown["layers"]:
        details.print_layers(model.layers, console)
    if model.rescaled:
        click.echo("what follows is of the network with its channels rescaled, as INT8 has it and as it was observed")
    if shown["outliers"]:
        details.print_spreads(model.spreads, console)
    if model.activations:
        details.print_activation_spreads(model.activations, console)
