"""``resnet-deploy compare``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_deploy.cli.options import PATH, json_option, refuse_idle
from resnet_deploy.cli.output import print_json
from resnet_deploy.errors import RegressionError, SpecError

if TYPE_CHECKING:
    from resnet_deploy.bench.comparison import Comparison


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
@click.option(
    "--require-certainty",
    is_flag=True,
    help="Fail, too, where the runs could not have shown a slowdown as large as --tolerance.",
)
@click.option("--anyway", is_flag=True, help="Compare runs of unlike machines, libraries, models or images too.")
@json_option
def compare(old: Path, new: Path, as_json: bool, require_certainty: bool, **values: Any) -> None:
    """Say what got better or worse between two runs of `bench`.

    On a regression it ends with exit code 1.

    \b
    Examples:
      resnet-deploy compare OLD.json NEW.json
      resnet-deploy compare OLD.json NEW.json --engine resnet50-int8-openvino --tolerance 5
      resnet-deploy compare OLD.json NEW.json --engine resnet50-int8-onnxruntime=resnet50-int8-openvino
      resnet-deploy compare OLD.json NEW.json --tolerance 5 --require-certainty
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
    if require_certainty and spec.tolerance == 0:
        raise SpecError(
            "--require-certainty with a tolerance of 0 %: no run can rule out every slowdown",
            hint="give a --tolerance such as 5",
        )
    comparison = compare_records(read_record(old), read_record(new), spec)
    if all(one.answers is None or one.answers.verdict is None for one in comparison.engines):
        hint = "drop it, or give both runs of `bench` the same labelled images with --data"
        refuse_idle("runs that did not answer the same labelled images", "accuracy_tolerance", hint=hint)
    if as_json:
        found = msgspec.to_builtins(comparison)
        found |= {"regressions": comparison.regressions, "uncertain": comparison.uncertain}
        print_json(found)
    else:
        print_comparison(comparison, stdout_console())
    _fail_on_what_was_found(comparison, require_certainty=require_certainty)


def _fail_on_what_was_found(comparison: "Comparison", *, require_certainty: bool) -> None:
    found, hints = list(comparison.regressions), []
    if comparison.slower:
        hints.append("--tolerance says what slowdown is put up with")
    if comparison.answer_worse:
        hints.append("--accuracy-tolerance says what loss of top-1 is put up with")
    if comparison.missing:
        hints.append("--engine names those to compare, if not all of the old run are to run")
    if require_certainty and comparison.uncertain:
        names, tolerance = ", ".join(comparison.uncertain), comparison.tolerance * 100
        found.append(f"{names}: too uncertain to tell a slowdown of {tolerance:g} %")
        hints.append("`bench` with more --rounds or on a quieter machine, or a greater --tolerance, is more certain")
    if found:
        raise RegressionError("; ".join(found), hint=f"see above; {'; '.join(hints)}")
