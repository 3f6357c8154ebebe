"""``resnet-deploy run``."""

from pathlib import Path
from typing import Any, Final

import click

from resnet_deploy.cli.bench import bench_spec, present, require_html, timing_options
from resnet_deploy.cli.build import describe
from resnet_deploy.cli.export import describe as describe_export
from resnet_deploy.cli.options import (
    ENGINES,
    PATH,
    PATH_OR_WORD,
    backend_option,
    calibration_options,
    calibration_spec,
    export_options,
    export_spec,
    skip_corrupt_option,
)
from resnet_deploy.specs import BatchRange, BuildSpec, Precision

_BUILT: Final[tuple[Precision, ...]] = ("fp32", "fp16", "int8")  # what every backend has


@click.command()
@export_options
@backend_option
@click.option("--batch", default="1:8:64", show_default=True, metavar="MIN:OPT:MAX", help="Batch sizes to accept.")
@click.option("--calib", type=PATH_OR_WORD, required=True, metavar="DIR", help="Real images to calibrate INT8 on.")
@calibration_options
@click.option("--data", type=PATH, required=True, metavar="DIR", help="Labelled images to compare the engines on.")
@skip_corrupt_option
@timing_options
@click.option("-o", "--output", type=PATH, default=ENGINES, show_default=True, help="Folder for everything.")
def run(output: Path, calib: str, data: Path, **values: Any) -> None:
    """Do it all: export, build FP32, FP16 and INT8, compare, report.

    \b
    Example:
      resnet-deploy run --weights mine.pth --calib data/train --data data/val -o out
    """
    from resnet_deploy.cli.terminal import TerminalProgress
    from resnet_deploy.datasets import find_images
    from resnet_deploy.pipeline.backends import choose_backend
    from resnet_deploy.pipeline.benchmarking import bench as run_bench
    from resnet_deploy.pipeline.building import BuildInputs
    from resnet_deploy.pipeline.building import build as run_build
    from resnet_deploy.pipeline.exporting import export as run_export
    from resnet_deploy.pipeline.lineup import BenchInputs

    require_html()
    for folder in (Path(calib), data):
        find_images(folder)  # refuses before the long part
    progress = TerminalProgress()
    export_what, calibration, timing = export_spec(values), calibration_spec(values), bench_spec(values)
    backend, batch = choose_backend(values["backend"]), BatchRange.parse(values["batch"])
    model = output / f"{export_what.architecture}.onnx"
    describe_export(run_export(export_what, model, progress))
    bundles = []
    for precision in _BUILT:
        is_int8 = precision == "int8"
        spec = BuildSpec(
            backend=backend, precision=precision, batch=batch, calibration=calibration if is_int8 else None
        )
        inputs = BuildInputs(
            model,
            calib=calib if is_int8 else None,
            samples=Path(calib),
            skip_corrupt=values["skip_corrupt"],
            calib_device=values["calib_device"],
        )
        built = run_build(inputs, spec, progress)
        describe(built)
        bundles.append(built.bundle.path)
    compared = BenchInputs(engines=tuple(bundles), data=data, skip_corrupt=values["skip_corrupt"])
    record = run_bench(compared, timing, threads=values["threads"], progress=progress)
    present(record, output, html=True)
