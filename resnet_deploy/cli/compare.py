"""``resnet-deploy compare``."""

from pathlib import Path
from typing import Any

import click

from resnet_deploy.cli.options import PATH
from resnet_deploy.errors import RegressionError


@click.command()
@click.argument("old", type=PATH, metavar="OLD.json")
@click.argument("new", type=PATH, metavar="NEW.json")
@click.option(
    "--engine",
    "engines",
    multiple=True,
    metavar="NAME|OLD=NEW",
    help="Compare this engine alone, or two under different names; repeatable.  [default: every engine of OLD]",
)
@click.option(
    "--relative-to",
    "control",
    metavar="NAME|none",
    help="An engine that is the same in both runs: what slowed it down as well is not held against the others.  "
    "[default: the reference, where both runs have the same]",
)
@click.option(
    "--tolerance", type=float, default=2.0, show_default=True, metavar="PERCENT", help="Slowdown that is put up with."
)
@click.option(
    "--accuracy-tolerance",
    type=float,
    default=0.0,
    show_default=True,
    metavar="POINTS",
    help="Loss of top-1 that is put up with.",
)
@click.option("--anyway", is_flag=True, help="Compare runs of unlike machines, libraries, models or images too.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def compare(old: Path, new: Path, as_json: bool, **values: Any) -> None:
    """Say what got better or worse between two runs of `bench`, and fail on a regression.

    \b
    Examples:
      resnet-deploy compare OLD.json NEW.json
      resnet-deploy compare OLD.json NEW.json --engine resnet50-int8-openvino --tolerance 5
      resnet-deploy compare OLD.json NEW.json --engine resnet50-int8-onnxruntime=resnet50-int8-openvino
    """
    import msgspec

    from resnet_deploy.bench.compare import CompareSpec, names_of
    from resnet_deploy.bench.compare import compare as compare_records
    from resnet_deploy.bench.records import read_record
    from resnet_deploy.cli.terminal import stdout_console
    from resnet_deploy.report.comparison import print_comparison

    spec = CompareSpec(
        engines=names_of(values["engines"]),
        control=values["control"] or "",
        tolerance=values["tolerance"] / 100,
        accuracy_tolerance=values["accuracy_tolerance"] / 100,
        anyway=values["anyway"],
    )
    comparison = compare_records(read_record(old), read_record(new), spec)
    if as_json:
        found = msgspec.to_builtins(comparison) | {"regressions": comparison.regressions}
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    else:
        print_comparison(comparison, stdout_console())
    if comparison.regressions:
        raise RegressionError("; ".join(comparison.regressions), hint="see above; --tolerance says what is put up with")
