"""``resnet-deploy loadgen``."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from resnet_deploy.bench.loadgen_spec import COALESCING, OFFICIAL_LATENCY_S, SCENARIOS, LoadgenSpec, PeakSpec
from resnet_deploy.cli.bench import RESULTS
from resnet_deploy.cli.options import ENGINES, ONE_PER_CORE, PATH, THREADS, json_option, refuse_idle
from resnet_deploy.cli.output import print_line
from resnet_deploy.errors import LoadgenError, RulesError, SpecError

if TYPE_CHECKING:
    from resnet_deploy.pipeline.loadgen import Finished, LoadgenInputs, Run

_DEFAULTS: Final = LoadgenSpec()
_UNITS: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_OFFICIAL_LATENCY: Final = f"{OFFICIAL_LATENCY_S * 1e3:g}ms"


def _duration(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Parse a duration such as ``15ms``, to seconds."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)(s|ms|us)", value)
    if not match:
        raise click.BadParameter(f"{value!r} is not a duration such as 15ms", ctx, param)
    return float(match[1]) * _UNITS[match[2]]


@click.command()
@click.argument("engines", nargs=-1, type=PATH)
@click.option(
    "--scenario",
    "scenarios",
    type=click.Choice(SCENARIOS),
    multiple=True,
    default=_DEFAULTS.scenarios,
    show_default=True,
    help="May be repeated.",
)
@click.option(
    "--seconds", type=float, default=_DEFAULTS.seconds, show_default=True, help="Least duration of a test or probe."
)
@click.option("--qps", type=float, help="Queries per second that arrive (server).")
@click.option(
    "--latency-bound",
    callback=_duration,
    default=_OFFICIAL_LATENCY,
    show_default=True,
    help="Bound on the 99th percentile (server).",
)
@click.option("--batch", type=int, help="Most images to run together (offline, server).  [default: the engine's best]")
@click.option("--threads", type=THREADS, default=0, help=f"CPU threads per engine.  {ONE_PER_CORE}")
@click.option("--data", type=PATH, metavar="DIR", help="Images to ask about.  [default: synthetic ones]")
@click.option("--labels-file", type=PATH, metavar="FILE", help="Labels of the images in --data.")
@click.option(
    "--mlperf-rules", is_flag=True, help="MLPerf's durations, counts, bounds and accuracy; fail where they are not met."
)
@click.option(
    "--reference-accuracy",
    type=float,
    metavar="PERCENT",
    help="Of the model in FP32 on DIR.  [default: that of an FP32 engine, or MLPerf's]",
)
@click.option("--find-max-qps", is_flag=True, help="Search the highest rate that holds (server).")
@click.option(
    "--p99",
    callback=_duration,
    default=_OFFICIAL_LATENCY,
    show_default=True,
    help="With --find-max-qps: bound on the 99th percentile.",
)
@click.option("-o", "--output", type=PATH, default=RESULTS, show_default=True, help="Folder for record and logs.")
@json_option
def loadgen(engines: tuple[Path, ...], output: Path, as_json: bool, find_max_qps: bool, **values: Any) -> None:
    """Test engines with MLCommons' LoadGen, in MLPerf's scenarios.

    \b
    Examples:
      resnet-deploy loadgen engines/resnet50-int8-onnxruntime
      resnet-deploy loadgen --scenario server --qps 200 --latency-bound 15ms
      resnet-deploy loadgen --find-max-qps --p99 15ms
      resnet-deploy loadgen --mlperf-rules --data imagenet/val
    """
    from resnet_deploy import artifact, environment
    from resnet_deploy.cli.terminal import TerminalProgress
    from resnet_deploy.pipeline.loadgen import LoadgenInputs, Run
    from resnet_deploy.pipeline.matching import find_engines

    search = _search(values) if find_max_qps else None
    spec = None if find_max_qps else _spec(values)
    _refuse_idle_images(values)
    inputs = LoadgenInputs(
        engines=engines or find_engines(ENGINES),
        **{name: values[name] for name in ("data", "labels_file", "reference_accuracy")},
    )
    run = Run(output, values["threads"] or environment.compute_threads(), TerminalProgress())
    # The folder first: where there is no writing, nobody should wait for measurements to learn it.
    with artifact.writable_folder(output):
        finished = _run(inputs, spec, search, run)
        _present(finished, as_json=as_json)
    _fail_where_due(finished)


def _spec(values: dict[str, Any]) -> LoadgenSpec:
    """Make the spec of the scenarios that were asked for."""
    scenarios = values["scenarios"]
    refuse_idle("scenarios alone", "p99", hint="add --find-max-qps, or drop it")
    if "server" not in scenarios:
        refuse_idle(", ".join(scenarios), "qps", "latency_bound", hint="add --scenario server, or drop it")
    if not set(scenarios) & set(COALESCING):
        refuse_idle(", ".join(scenarios), "batch", hint="add --scenario offline, or drop it")
    if values["mlperf_rules"]:
        refuse_idle("--mlperf-rules", "seconds", "latency_bound", hint="the rules say what it is: drop it")
    else:
        refuse_idle(
            "performance runs alone", "labels_file", "reference_accuracy", hint="add --mlperf-rules, or drop it"
        )
    return LoadgenSpec(
        scenarios=scenarios,
        seconds=values["seconds"],
        qps=values["qps"],
        latency_s=values["latency_bound"],
        batch=values["batch"],
        mlperf_rules=values["mlperf_rules"],
    )


def _search(values: dict[str, Any]) -> PeakSpec:
    """Make the spec of a search."""
    others = ("scenarios", "qps", "latency_bound", "mlperf_rules", "labels_file", "reference_accuracy")
    refuse_idle(
        "--find-max-qps", *others, hint="it tries rates in the server scenario, and its bound is --p99: drop it"
    )
    return PeakSpec(latency_s=values["p99"], seconds=values["seconds"], batch=values["batch"])


def _refuse_idle_images(values: dict[str, Any]) -> None:
    if values["data"] is None and values["labels_file"] is not None:
        raise SpecError("--labels-file has no effect without --data", hint="add --data DIR, or drop it")


def _run(inputs: "LoadgenInputs", spec: LoadgenSpec | None, search: PeakSpec | None, run: "Run") -> "Finished":
    from resnet_deploy.pipeline.loadgen import find_peaks, run_scenarios

    if search is not None:
        return find_peaks(inputs, search, run)
    assert spec is not None
    return run_scenarios(inputs, spec, run)


def _present(finished: "Finished", *, as_json: bool) -> None:
    """Print what was written already."""
    from resnet_deploy.bench.record_files import encode
    from resnet_deploy.cli.terminal import stdout_console
    from resnet_deploy.report.loadgen_table import print_loadgen

    if as_json:
        click.echo(encode(finished.record).decode(), nl=False)
        return
    try:
        print_loadgen(finished.record, stdout_console())
    finally:
        print_line(f"record: {finished.path}")
        print_line(f"LoadGen's logs: {finished.path.with_suffix('')}/")


def _fail_where_due(finished: "Finished") -> None:
    """End with an error where rules were not met, or no rate was found."""
    unmet = [verdict for verdict in finished.record.verdicts if verdict.unmet]
    if unmet:
        raise RulesError(
            f"MLPerf's rules are not met in {len(unmet)} of {len(finished.record.verdicts)} tests",
            hint=f"the record says which ones: {finished.path}",
        )
    for peak in finished.record.peaks:
        if peak.rate is None:
            raise LoadgenError(
                f"{peak.engine}: no rate was found that keeps p99 within {peak.latency_s * 1e3:g} ms: {peak.reason}",
                hint="allow more with --p99, or try another engine",
            )
