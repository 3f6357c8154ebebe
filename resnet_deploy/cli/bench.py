"""``resnet-deploy bench``."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from resnet_deploy.bench_spec import SCOPES, BenchSpec
from resnet_deploy.cli.completion import several_of
from resnet_deploy.cli.options import (
    ENGINES,
    ONE_PER_CORE,
    PATH,
    PATH_OR_WORD,
    THREADS,
    json_option,
    names,
    numbers,
    refuse_idle,
    skip_corrupt_option,
)
from resnet_deploy.cli.output import print_json, print_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from resnet_deploy.bench.records import BenchRecord

RESULTS: Final = Path("benchmarks/results")
_DEFAULTS: Final = BenchSpec()
_GRAPHS: Final = {"on": (True,), "off": (False,), "both": (True, False)}


def timing_options(function: Any) -> Any:
    """Add the options that say how engines are timed."""
    for option in reversed(
        (
            click.option("--batches", callback=numbers(int), default="1,8,32", show_default=True, help="Batch sizes."),
            click.option(
                "--seconds",
                type=float,
                default=_DEFAULTS.seconds,
                show_default=True,
                help="Time per engine and way of calling it.",
            ),
            click.option(
                "--rounds", type=int, default=_DEFAULTS.rounds, show_default=True, help="Turns that each engine gets."
            ),
            click.option("--seed", type=int, default=_DEFAULTS.seed, show_default=True, help="Of the order of turns."),
            click.option("--threads", type=THREADS, default=0, help=f"CPU threads per engine.  {ONE_PER_CORE}"),
        )
    ):
        function = option(function)
    return function


def way_options(function: Any) -> Any:
    """Add the options that say in which ways engines are called."""
    for option in reversed(
        (
            click.option(
                "--scopes",
                callback=names,
                shell_complete=several_of(SCOPES),
                default="host",
                show_default=True,
                metavar="NAME,...",
                help=f"What is timed: {', '.join(SCOPES)} (from image files in memory to labels).",
            ),
            click.option(
                "--concurrency",
                callback=numbers(int),
                default="1",
                show_default=True,
                metavar="N,...",
                help="Callers at once, each with an engine of its own; they share --threads.",
            ),
            click.option(
                "--rate",
                "rates",
                callback=numbers(float),
                metavar="HZ,...",
                help="Calls per second to keep up with, five or more to a turn, measured beside calling again at once.",
            ),
            click.option(
                "--graphs",
                type=click.Choice(list(_GRAPHS)),
                default="on",
                show_default=True,
                help="CUDA graphs, where engines have them.",
            ),
        )
    ):
        function = option(function)
    return function


def bench_spec(values: dict[str, Any]) -> BenchSpec:
    """Make the spec from the values of ``timing_options``, and of ``way_options`` if there, taking them out."""
    given = {name: values.pop(name) for name in ("batches", "seconds", "rounds", "seed")}
    if "graphs" in values:
        given |= {name: values.pop(name) for name in ("scopes", "concurrency")}
        given |= {"rates": values.pop("rates") or (), "graphs": _GRAPHS[values.pop("graphs")]}
    return BenchSpec(**given)


@click.command()
@click.argument("engines", nargs=-1, type=PATH)
@click.option(
    "--data", type=PATH, metavar="DIR", help="Images to answer: folder per class, or flat with a labels file."
)
@click.option("--labels-file", type=PATH, metavar="FILE", help="Labels of the images in --data.")
@skip_corrupt_option
@timing_options
@way_options
@click.option(
    "--layers/--no-layers",
    default=False,
    show_default=True,
    help="Ask each backend's profiler what each layer takes, after the timing.",
)
@click.option(
    "--reference", type=PATH, metavar="FILE", help="The PyTorch weights.  [default: those beside the engines]"
)
@click.option("--no-pytorch", is_flag=True, help="Leave the PyTorch reference out.")
@click.option(
    "--peers",
    callback=names,
    metavar="all|NAME,...",
    help="What runs the model elsewhere, in the same turns, such as torch-compile,openvino-nncf.",
)
@click.option(
    "--peer-calib",
    type=PATH_OR_WORD,
    metavar="DIR|random",
    help="Images that peers quantize on: give them those of the engines.",
)
@click.option("--suite", type=PATH, metavar="FILE", help="Do what a TOML file says: export, build and compare.")
@click.option("--work", type=PATH, metavar="DIR", help="Where a suite's model and engines go.  [default: the cache]")
@click.option("-o", "--output", type=PATH, default=RESULTS, show_default=True, help="Folder for record and report.")
@click.option("--no-html", is_flag=True, help="Write no HTML report.")
@json_option
def bench(suite: Path | None, output: Path, no_html: bool, as_json: bool, **values: Any) -> None:
    """Compare PyTorch and engines of one model, side by side.

    The engines are all in engines/ by default.

    \b
    Examples:
      resnet-deploy bench --data imagenet/val
      resnet-deploy bench engines/resnet50-int8-onnxruntime --batches 1,4 --seconds 10
      resnet-deploy bench --data imagenet/val --scopes host,device,end_to_end --concurrency 1,2
      resnet-deploy bench --peers all --peer-calib imagenet/train-subset
      resnet-deploy bench --suite benchmarks/cpu.toml
    """
    from resnet_deploy import artifact

    if not no_html:
        require_html(", or add --no-html")
    measure = _suite(suite, values) if suite is not None else _comparison(values)
    # The folder first: where there is no writing, nobody should wait for measurements to learn it.
    with artifact.writable_folder(output):
        present(measure(), output, html=not no_html, as_json=as_json)


def _comparison(values: dict[str, Any]) -> "Callable[[], BenchRecord]":
    """Prepare what the options say."""
    from resnet_deploy.cli.terminal import TerminalProgress
    from resnet_deploy.pipeline.benchmarking import bench as run_bench
    from resnet_deploy.pipeline.lineup import BenchInputs
    from resnet_deploy.pipeline.matching import find_engines

    refuse_idle("engines that are there already", "work", hint="drop it, or add --suite FILE")
    spec, threads = bench_spec(values), values.pop("threads")
    del values["work"]
    engines = values.pop("engines") or find_engines(ENGINES)
    inputs = BenchInputs(engines=engines, pytorch=not values.pop("no_pytorch"), **values)
    return partial(run_bench, inputs, spec, threads=threads, progress=TerminalProgress())


def _suite(path: Path, values: dict[str, Any]) -> "Callable[[], BenchRecord]":
    """Prepare what a file says, which must be all that is said."""
    from resnet_deploy.cli.terminal import TerminalProgress
    from resnet_deploy.environment import cache_folder
    from resnet_deploy.pipeline.suites import read_suite, run_suite, suite_label

    refuse_idle(f"--suite {path}", *(name for name in values if name != "work"), hint="say it in the file")
    suite, label = read_suite(path), suite_label(path)
    folder = values["work"] or cache_folder() / "suites" / path.stem
    return partial(run_suite, suite, label, folder, TerminalProgress())


def require_html(otherwise: str = "") -> None:
    """Refuse before a long run, rather than after it, when the report cannot be drawn; say what to do ``otherwise``."""
    try:
        import resnet_deploy.report.html  # noqa: F401
    except ImportError as error:
        from resnet_deploy.errors import BackendError

        raise BackendError(
            f"the HTML report needs {error.name}, which is not installed",
            hint=f'install it with `pip install "resnet-deploy[bench]"`{otherwise}',
        ) from error


def present(record: "BenchRecord", folder: Path, *, html: bool, as_json: bool = False) -> None:
    """Save the record and its report, then print the figures: whatever fails, the others are had."""
    from resnet_deploy.cli.terminal import stdout_console
    from resnet_deploy.pipeline.benchmarking import save
    from resnet_deploy.report.data import bench_data
    from resnet_deploy.report.table import print_table

    written: dict[str, str] = {}
    try:
        path = save(record, folder)
        written["raw samples"] = str(path)
        if html:
            write_html(record, path.with_suffix(".html"))
            written["report"] = str(path.with_suffix(".html"))
    finally:
        if as_json:
            print_json({**bench_data(record), "record": written.get("raw samples"), "page": written.get("report")})
        else:
            print_table(record, stdout_console())
            for what, where in written.items():
                print_line(f"{what}: {where}")


def write_html(record: "BenchRecord", path: Path) -> None:
    """Draw the report of a record."""
    from resnet_deploy import artifact
    from resnet_deploy.report.html import render_html

    artifact.write_bytes(path, render_html(record).encode())
