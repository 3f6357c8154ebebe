"""``resnet-deploy build``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from resnet_deploy import artifact
from resnet_deploy.cli.options import (
    CALIBRATION_PARAMETERS,
    ENGINES,
    PATH,
    PATH_OR_WORD,
    backend_option,
    calibration_options,
    calibration_spec,
    refuse_idle,
    skip_corrupt_option,
    trt_options,
    trt_spec,
)
from resnet_deploy.cli.output import print_line
from resnet_deploy.errors import FileError, SpecError
from resnet_deploy.specs import (
    OBSERVATIONS_SUFFIX,
    PRECISIONS,
    QUANTIZED,
    BatchRange,
    BuildSpec,
    Precision,
    whole_range,
)

if TYPE_CHECKING:
    from resnet_deploy.bundle import Measured

DEFAULT_MODEL: Final = ENGINES / "resnet50.onnx"


@click.command()
@click.argument("model", type=PATH, required=False)
@click.option("--fp32", is_flag=True, help="Build in FP32.")
@click.option("--fp16", is_flag=True, help="Build in FP16.")
@click.option("--bf16", is_flag=True, help="Build in BF16; TensorRT only.")
@click.option("--int8", is_flag=True, help="Build in INT8; needs --calib.")
@click.option("--fp8", is_flag=True, help="Build in FP8; needs --calib; TensorRT only.")
@backend_option
@click.option(
    "--batch",
    "batches",
    multiple=True,
    default=("1:8:64",),
    show_default=True,
    metavar="MIN:OPT:MAX",
    help="Batch sizes to accept; several times for several TensorRT profiles.",
)
@trt_options
@click.option(
    "--calib",
    type=PATH_OR_WORD,
    metavar="DIR|FILE",
    help="Real images to calibrate INT8 or FP8 on, or what `calibrate` wrote; `random` for noise, to try it out.",
)
@calibration_options
@click.option(
    "--max-drop", type=float, metavar="POINTS", help="Keep layers in floating point until INT8 loses no more."
)
@click.option("--data", type=PATH, metavar="DIR", help="Images to hold --max-drop against; labelled, for top-1.")
@click.option("--labels-file", type=PATH, help="Labels of --data, where the folder does not tell.")
@click.option("--require-speedup", type=float, metavar="X", help="Fail unless it is X times as fast as FP32, here.")
@click.option("--samples", type=PATH, metavar="DIR", help="Images whose answers are kept.  [default: of --calib]")
@skip_corrupt_option
@click.option("-o", "--output", type=PATH, help="The bundle.  [default: <model>-<precision>-<backend>/ beside it]")
def build(model: Path | None, **values: Any) -> None:
    """Build an engine from an exported model.

    The model is engines/resnet50.onnx by default.

    \b
    Examples:
      resnet-deploy build --fp16
      resnet-deploy build --int8 --calib imagenet/train-subset
      resnet-deploy build --int8 --calib imagenet/train-subset --max-drop 0.5 --data imagenet/val
      resnet-deploy build --int8 --calib engines/resnet50-observed.safetensors --calib-method mse
      resnet-deploy build --fp16 --backend tensorrt-rtx --target sm89,sm120 --batch 1 --batch 2:16:64
    """
    from resnet_deploy.cli.terminal import TerminalProgress

    progress = TerminalProgress()
    with progress.task("looking for backends"):
        from resnet_deploy.pipeline.backends import choose_backend
        from resnet_deploy.pipeline.building import BuildInputs
        from resnet_deploy.pipeline.building import build as run_build

        spec = build_spec(values, choose_backend(values.pop("backend")))
    built = run_build(BuildInputs(model or default_model(), **values), spec, progress)
    describe(built)


def build_spec(values: dict[str, Any], backend: str) -> BuildSpec:
    """Make the spec; exactly one precision must be asked for."""
    asked: list[Precision] = [precision for precision in PRECISIONS if values.pop(precision)]
    if len(asked) != 1:
        names = [f"--{precision}" for precision in PRECISIONS]
        hint = f"give one of {', '.join(names[:-1])} and {names[-1]}"
        found = f"{len(asked)} precisions were asked for" if asked else "no precision was asked for"
        raise SpecError(f"{found}, one is needed", hint=hint)
    if asked[0] == "fp32":
        refuse_idle("--fp32", "require_speedup", hint="drop it: FP32 is what the others are held against")
    calibration = calibration_spec(values)
    is_quantized = asked[0] in QUANTIZED
    if not is_quantized and values["calib"]:
        raise SpecError(f"{asked[0]} takes no calibration data", hint="drop --calib, or build with --int8")
    if not is_quantized:
        refuse_idle(f"--{asked[0]}", *CALIBRATION_PARAMETERS, hint="drop it, or build with --int8")
    observed = str(values["calib"]).endswith(OBSERVATIONS_SUFFIX)
    if values["calib"] == "random" or observed:
        corrects = calibration.correct_biases  # to leave the biases as they are is what these do
        idle = ("max_images", *(("correct_biases",) if corrects else ()), *(("calib_device",) if observed else ()))
        refuse_idle(f"--calib {values['calib']}", *idle, hint="drop it, or give --calib a folder of images")
    reads_images = values["samples"] or values["data"] or (values["calib"] not in (None, "random") and not observed)
    if not reads_images:
        refuse_idle("a build that reads no images", "skip_corrupt", hint="drop it, or give --calib or --samples")
    profiles = tuple(map(BatchRange.parse, values.pop("batches")))
    return BuildSpec(
        backend=backend,
        precision=asked[0],
        batch=whole_range(profiles),
        profiles=profiles if len(profiles) > 1 else (),
        trt=trt_spec(values),
        calibration=calibration if is_quantized else None,
        max_drop=values.pop("max_drop"),
    )


def default_model() -> Path:
    """Return where `export` writes by default, if it did."""
    if not artifact.is_file(DEFAULT_MODEL):
        others = ", ".join(str(path) for path in sorted(ENGINES.glob("*.onnx")))
        raise FileError(
            f"{DEFAULT_MODEL} does not exist",
            hint=f"name a model: {others}" if others else "export one first with `resnet-deploy export`",
        )
    return DEFAULT_MODEL


def describe(built: Any) -> None:
    """Print what was built, or that it was there."""
    bundle, manifest = built.bundle, built.bundle.manifest
    measured = manifest.measured
    size = bundle.engine_path.stat().st_size / 1e6
    state = "unchanged, nothing to build (cache hit)" if built.cache_hit else f"{size:.1f} MB"
    print_line(f"{bundle.path}/: {state}")
    click.echo(f"  {_measured_in_words(measured, manifest.spec.precision)}")
    if measured.latency_s is not None:
        pace = "" if measured.speedup is None else f", {measured.speedup:.2f} times as fast as FP32"
        call = f"{measured.latency_s * 1e3:.2f} ms a call at batch {manifest.spec.batch.min}"
        click.echo(f"  {call}{pace} (indication; see bench)")
    for note in manifest.notes:
        print_line(f"  {note}")


def _measured_in_words(measured: "Measured", precision: Precision) -> str:
    """Say how far the engine is from the exported model, and where that says nothing of its accuracy."""
    by = "the engine" if measured.by == "engine" else "its graph, simulated on this CPU,"
    distance = "equal to the last bit" if measured.max_difference == 0 else f"SQNR {measured.sqnr_db:.1f} dB"
    shared = f"{measured.agreement:.1%} of {measured.images} {measured.inputs}"
    caveat = ""
    if precision in QUANTIZED and measured.inputs != "images":
        caveat = " (no measure of accuracy: name other real images with --samples, or see bench)"
    return f"{by} agrees with the exported FP32 model on {shared}, {distance}{caveat}"
