"""``resnet-deploy prebuild``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from resnet_deploy import environment
from resnet_deploy.cli.build import default_model
from resnet_deploy.cli.completion import builders, several_of
from resnet_deploy.cli.options import (
    CALIBRATION_PARAMETERS,
    ENGINES,
    PATH,
    PATH_OR_WORD,
    calibration_options,
    calibration_spec,
    refuse_idle,
    skip_corrupt_option,
)
from resnet_deploy.cli.output import print_line
from resnet_deploy.errors import SpecError
from resnet_deploy.specs import PRECISIONS, QUANTIZED, BatchRange, BuildSpec, CalibrationSpec
from resnet_deploy.trt_options import TENSORRT_RTX, TrtOptions, parse_targets

if TYPE_CHECKING:
    from resnet_deploy.fleet import FleetEngine
    from resnet_deploy.pipeline.prebuilding import Prebuilt

FLEET: Final = ENGINES / "fleet"


@click.command()
@click.argument("model", type=PATH, required=False)
@click.option(
    "--precisions",
    default="fp16",
    shell_complete=several_of(PRECISIONS),
    show_default=True,
    metavar="NAME,...",
    help="The preferred first.",
)
@click.option(
    "--backends",
    default="tensorrt-rtx,onnxruntime",
    shell_complete=several_of(builders()),
    show_default=True,
    metavar="NAME,...",
)
@click.option("--targets", metavar="SM,...", help="GPU generations; an engine for each (TensorRT-RTX).")
@click.option("--batch", default="1:8:64", show_default=True, metavar="MIN:OPT:MAX", help="Batch sizes to accept.")
@click.option(
    "--calib", type=PATH_OR_WORD, metavar="DIR|FILE", help="What to calibrate INT8 and FP8 on, as in `build`."
)
@calibration_options
@click.option("--samples", type=PATH, metavar="DIR", help="Images whose answers are kept.  [default: of --calib]")
@skip_corrupt_option
@click.option("--jobs", type=int, help="Processes to build in.  [default: one for two cores]")
@click.option("-o", "--output", type=PATH, default=FLEET, show_default=True, help="Folder of the engines.")
def prebuild(model: Path | None, output: Path, **values: Any) -> None:
    """Build the engines of a fleet of machines, with one index.

    One for each backend, precision and GPU generation. An application loads the folder, and gets the first engine in
    it that fits its machine.

    \b
    Examples:
      resnet-deploy prebuild --targets sm86,sm89,sm120
      resnet-deploy prebuild --precisions int8,fp16 --backends onnxruntime --calib imagenet/train-subset
    """
    from resnet_deploy.cli.terminal import TerminalProgress
    from resnet_deploy.pipeline.building import BuildInputs
    from resnet_deploy.pipeline.prebuilding import prebuild as run_prebuild
    from resnet_deploy.pipeline.prebuilding import require_whole

    specs = fleet_specs(values)
    inputs = BuildInputs(
        model or default_model(),
        **{name: values[name] for name in ("calib", "samples", "skip_corrupt", "calib_device")},
    )
    jobs = values["jobs"] if values["jobs"] is not None else max(1, environment.compute_threads() // 2)
    prebuilt = run_prebuild(inputs, specs, output, jobs, TerminalProgress())
    describe(prebuilt, output)
    require_whole(prebuilt)


def fleet_specs(values: dict[str, Any]) -> list[BuildSpec]:
    """Make the specs: for each backend, in order, each precision, and each target where it takes targets."""
    from resnet_deploy.pipeline.backends import choose_backend
    from resnet_deploy.pipeline.prebuilding import one_for_each_target

    precisions, backends = ([one.strip() for one in values[key].split(",")] for key in ("precisions", "backends"))
    unknown = [name for name in precisions if name not in PRECISIONS]
    if unknown:
        raise SpecError(f"no such precision: {unknown[0]!r}", hint=f"choose from: {', '.join(PRECISIONS)}")
    targets = parse_targets(values["targets"]) if values["targets"] is not None else ()
    if targets and TENSORRT_RTX not in backends:
        raise SpecError("--targets has no effect without tensorrt-rtx", hint=f"drop it, or add {TENSORRT_RTX}")
    quantized = [name for name in precisions if name in QUANTIZED]
    if not quantized:
        hint = "drop it, or add int8 to --precisions"
        refuse_idle("engines that are not quantized", "calib", *CALIBRATION_PARAMETERS, hint=hint)
    elif not values["calib"]:
        raise SpecError(f"{quantized[0].upper()} needs calibration images", hint="add --calib DIR")
    if not values["calib"] and not values["samples"]:
        refuse_idle("engines built without images", "skip_corrupt", hint="drop it, or give --calib or --samples")
    calibration: CalibrationSpec = calibration_spec(values)
    specs = []
    for backend in map(choose_backend, backends):
        for precision in precisions:
            spec = BuildSpec(
                backend=backend,
                precision=precision,
                batch=BatchRange.parse(values["batch"]),
                trt=TrtOptions(targets=targets if backend == TENSORRT_RTX else ()),
                calibration=calibration if precision in QUANTIZED else None,
            )
            specs += one_for_each_target(spec)
    return specs


def describe(prebuilt: "Prebuilt", folder: Path) -> None:
    """Print what was built, the preferred first, and what was not."""
    engines = prebuilt.fleet.engines if prebuilt.fleet is not None else ()
    if engines:
        count = "1 engine" if len(engines) == 1 else f"{len(engines)} engines"
        print_line(f"{folder}/index.json: {count}, the first that fits a machine is its own")
    for engine in engines:
        print_line(f"  {engine.folder}/: {_in_words(engine)}")
    for failure in prebuilt.failures:
        print_line(f"  {failure.name}: not built: {failure.message}")


def _in_words(engine: "FleetEngine") -> str:
    measured = engine.measured
    return f"{engine.size_bytes / 1e6:.1f} MB, agreement {measured.agreement:.1%}, SQNR {measured.sqnr_db:.1f} dB"
