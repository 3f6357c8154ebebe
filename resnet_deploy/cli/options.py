"""Options that several commands share, and parsers of their values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from resnet_deploy.cli.completion import ARCHITECTURES, builders, one_of
from resnet_deploy.contract import CONTRACTS, MLPERF_MEAN, MLPERF_STD
from resnet_deploy.errors import SpecError
from resnet_deploy.specs import CALIBRATION_DEVICES, CALIBRATION_METHODS, MAX_THREADS, CalibrationSpec, ExportSpec
from resnet_deploy.trt_options import HARDWARE_COMPATIBILITY, TrtOptions, parse_bytes, parse_targets


class _PathType(click.Path):
    """A path that is not empty: pathlib takes an empty one, such as an unset variable of the shell, for `.`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            name = param.opts[0] if isinstance(param, click.Option) else param.human_readable_name if param else "path"
            raise SpecError(f"{name} is empty", hint="give a path; is a variable of the shell unset?")
        return super().convert(value, param, ctx)


ENGINES: Final = Path("engines")
PATH: Final = _PathType(path_type=Path)
PATH_OR_WORD: Final = _PathType(path_type=str)
THREADS: Final = click.IntRange(0, MAX_THREADS)
ONE_PER_CORE: Final = "[default: one per physical core, within a container's quota]"  # environment.compute_threads


backend_option: Final = click.option(
    "--backend",
    default="auto",
    shell_complete=one_of(("auto", *builders())),
    show_default=True,
    help="auto, or one that `doctor` lists.",
)
json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")


def numbers(kind: type[int] | type[float], count: int | None = None) -> Callable[..., Any]:
    """Make the callback of an option that takes comma-separated numbers, such as ``1,8,32``."""

    def parse(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
        if value is None:
            return None
        try:
            parsed = tuple(kind(part) for part in value.split(","))
        except ValueError:
            raise click.BadParameter(f"{value!r} is not a list of numbers such as 1,8,32", ctx, param) from None
        if count is not None and len(parsed) != count:
            raise click.BadParameter(f"{value!r} has {len(parsed)} numbers, {count} are needed", ctx, param)
        return parsed

    return parse


def names(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Read comma-separated names, such as ``host,device``; none where the option is not given."""
    return tuple(part.strip() for part in value.split(",")) if value is not None else ()


def export_options(function: Any) -> Any:
    """Add the options that say what to export."""
    for option in reversed(
        (
            click.option(
                "--arch",
                default="resnet50",
                shell_complete=one_of(ARCHITECTURES),
                show_default=True,
                help="resnet18 to resnet152; plain18, plain34 without shortcuts.",
            ),
            click.option(
                "--weights",
                type=PATH_OR_WORD,
                default="imagenet",
                show_default=True,
                metavar="imagenet|imagenet-v1|none|PATH",
                help="Trained weights to download, none for an untrained network, or a .pth or .safetensors file.",
            ),
            click.option("--num-classes", type=int, help="Classes of an untrained network; read from checkpoints."),
            click.option(
                "--labels",
                type=PATH_OR_WORD,
                metavar="imagenet|FILE",
                help="Class names, one per line, or those of ImageNet.  [default: what belongs to the weights]",
            ),
            click.option(
                "--preprocess",
                "contract",
                type=click.Choice(CONTRACTS),
                help="Whose rule turns images into inputs: sets resize, interpolation, mean and std together.",
            ),
            click.option("--image-size", type=int, default=224, show_default=True, help="Side of the network input."),
            click.option("--resize", type=int, help="Shorter side before the crop.  [default: what fits the weights]"),
            click.option(
                "--interpolation",
                type=click.Choice(["nearest", "bilinear", "bicubic"]),
                default="bilinear",
                show_default=True,
                help="Filter of the resize.",
            ),
            click.option(
                "--mean", callback=numbers(float, 3), help="Of the normalisation, R,G,B in 0..1.  [ImageNet's]"
            ),
            click.option(
                "--std", callback=numbers(float, 3), help="Of the normalisation, R,G,B in 0..1.  [ImageNet's]"
            ),
            click.option(
                "--input",
                "dtype",
                type=click.Choice(["uint8", "float32"]),
                default="uint8",
                show_default=True,
                help="uint8 NHWC pixels with the normalisation in the graph, or the classic float32 NCHW tensor.",
            ),
        )
    ):
        function = option(function)
    return function


def export_spec(values: dict[str, Any]) -> ExportSpec:
    """Make the spec from the values of ``export_options``, taking them out of ``values``."""
    contract = values.pop("contract")
    if contract is not None:
        hint = "drop it, or leave --preprocess out and give each by itself"
        refuse_idle(f"--preprocess {contract}", "resize", "interpolation", "mean", "std", hint=hint)
    if contract == "mlperf":
        values |= {"interpolation": "area", "mean": MLPERF_MEAN, "std": MLPERF_STD}
    given = {"architecture": values.pop("arch"), "labels": _labels(values.pop("labels"))}
    for name in ("weights", "num_classes", "image_size", "resize", "interpolation", "dtype"):
        given[name] = values.pop(name)
    for name in ("mean", "std"):
        value = values.pop(name)
        if value is not None:
            given[name] = value
    return ExportSpec(**given)


def _labels(given: str | None) -> tuple[str, ...]:
    if given is None:
        return ()
    if given == "imagenet":
        from resnet_deploy.imagenet import imagenet_classes

        return tuple(name for _, name in imagenet_classes())
    from resnet_deploy.pipeline.exporting import read_labels

    return read_labels(Path(given))


def trt_options(function: Any) -> Any:
    """Add the options that say how TensorRT is to compile."""
    for option in reversed(
        (
            click.option(
                "--target",
                "targets",
                metavar="SM,...",
                help="GPU generations to compile for, such as sm86,sm89,sm120 (tensorrt-rtx).",
            ),
            click.option(
                "--workspace",
                metavar="SIZE",
                help="Most scratch memory, such as 4G (tensorrt, -rtx).",
            ),
            click.option("--opt-level", type=int, metavar="0..5", help="Effort of the compiler (tensorrt, -rtx)."),
            click.option(
                "--timing-cache",
                type=PATH,
                metavar="FILE",
                help="Kernel timings to start from and add to (tensorrt).",
            ),
            click.option(
                "--hardware-compat",
                type=click.Choice(HARDWARE_COMPATIBILITY),
                default="none",
                show_default=True,
                help="Run on other GPUs than this one: any from Ampere on, or of its compute capability (tensorrt).",
            ),
            click.option("--version-compatible", is_flag=True, help="Run on later versions too (tensorrt)."),
            click.option("--strip-weights", is_flag=True, help="Leave the weights out of the plan (tensorrt)."),
            click.option("--refittable", is_flag=True, help="Let weights be exchanged in the engine (tensorrt)."),
        )
    ):
        function = option(function)
    return function


def trt_spec(values: dict[str, Any]) -> TrtOptions:
    """Make the spec from the values of ``trt_options``, taking them out of ``values``."""
    targets, workspace, timing_cache = (values.pop(name) for name in ("targets", "workspace", "timing_cache"))
    return TrtOptions(
        targets=parse_targets(targets) if targets is not None else (),
        workspace_bytes=parse_bytes(workspace) if workspace is not None else None,
        optimization_level=values.pop("opt_level"),
        timing_cache=str(timing_cache or ""),
        hardware_compatibility=values.pop("hardware_compat"),
        **{name: values.pop(name) for name in ("version_compatible", "strip_weights", "refittable")},
    )


def skip_corrupt_option(function: Any) -> Any:
    """Add ``--skip-corrupt``."""
    return click.option("--skip-corrupt", is_flag=True, help="Leave damaged images out, and say which.")(function)


def calibration_images_option(function: Any) -> Any:
    """Add ``--calib-images``."""
    return click.option(
        "--calib-images",
        "max_images",
        type=int,
        default=CalibrationSpec().max_images,
        show_default=True,
        help="Calibrate on at most this many images, spread evenly over DIR.",
    )(function)


def equalize_option(function: Any) -> Any:
    """Add ``--equalize/--no-equalize``."""
    return click.option(
        "--equalize/--no-equalize",
        default=CalibrationSpec().equalize,
        show_default=True,
        help="Rescale channels that are out of balance before INT8; the network computes the same.",
    )(function)


def calibration_device_option(function: Any) -> Any:
    """Add ``--calib-device``."""
    return click.option(
        "--calib-device",
        "calib_device",
        type=click.Choice(CALIBRATION_DEVICES),
        default="auto",
        show_default=True,
        help="Where images are run to calibrate: auto takes the GPU where PyTorch sees one.",
    )(function)


_CALIBRATION_FIELDS: Final = ("method", "percentile", "max_images", "equalize", "correct_biases")
CALIBRATION_PARAMETERS: Final = (*_CALIBRATION_FIELDS, "calib_device")


def calibration_options(function: Any) -> Any:
    """Add the options that say how INT8 ranges are chosen."""
    defaults = CalibrationSpec()
    for option in reversed(
        (
            click.option(
                "--calib-method",
                "method",
                type=click.Choice(CALIBRATION_METHODS),
                default=defaults.method,
                show_default=True,
                help="How activation ranges are chosen.",
            ),
            click.option(
                "--calib-percentile",
                "percentile",
                type=float,
                default=defaults.percentile,
                show_default=True,
                help="Share of values kept by --calib-method percentile.",
            ),
            calibration_images_option,
            calibration_device_option,
            equalize_option,
            click.option(
                "--bias-correction/--no-bias-correction",
                "correct_biases",
                default=defaults.correct_biases,
                show_default=True,
                help="Take out of each channel the mean error that INT8 brings, as 32 images of DIR show it.",
            ),
        )
    ):
        function = option(function)
    return function


def calibration_spec(values: dict[str, Any]) -> CalibrationSpec:
    """Make the spec from the values of ``calibration_options``, taking all but the device out of ``values``.

    Raises:
        SpecError: If a value is out of range, or a percentile is given to a method that has none.
    """
    spec = CalibrationSpec(
        **{name: values.pop(name) for name in _CALIBRATION_FIELDS},
    )
    if spec.method != "percentile":
        refuse_idle(f"--calib-method {spec.method}", "percentile", hint="drop it, or use --calib-method percentile")
    return spec


def refuse_idle(beside: str, *names: str, hint: str) -> None:
    """Refuse parameters of the running command that were given and would have no effect ``beside`` others.

    Raises:
        SpecError: Naming the first of them.
    """
    context = click.get_current_context()
    for param in context.command.params:
        if param.name not in names or context.params[param.name] == ():  # click 8.2 takes no arguments for given ones
            continue
        if context.get_parameter_source(param.name) is not ParameterSource.DEFAULT:
            typed = param.opts if context.params[param.name] or not param.secondary_opts else param.secondary_opts
            raise SpecError(f"{typed[0]} has no effect with {beside}", hint=hint)
