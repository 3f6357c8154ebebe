"""Frozen, validated descriptions of what is asked for; no arrays, no input or output.

Each spec refuses a value that makes no sense when it is made, so that the stages need not check again.
"""

from collections.abc import Sequence
from typing import Final, Literal, get_args

import msgspec

from resnet_deploy.contract import IMAGENET_MEAN as IMAGENET_MEAN
from resnet_deploy.contract import IMAGENET_STD as IMAGENET_STD
from resnet_deploy.contract import INTERPOLATIONS as INTERPOLATIONS
from resnet_deploy.contract import MAX_IMAGE_SIZE as MAX_IMAGE_SIZE
from resnet_deploy.contract import MAX_RESIZE as MAX_RESIZE
from resnet_deploy.contract import InputDtype, Interpolation, mlperf_resize
from resnet_deploy.contract import Preprocess as Preprocess
from resnet_deploy.contract import require_at_most as require_at_most
from resnet_deploy.contract import require_choice as require_choice
from resnet_deploy.errors import SpecError
from resnet_deploy.trt_options import TENSORRT, TENSORRT_RTX, TrtOptions

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
RangeMethod = Literal["max", "percentile", "entropy", "mse"]
CalibrationMethod = Literal["max", "percentile", "entropy", "mse", "auto"]
ComputeDevice = Literal["cpu", "cuda"]
CalibrationDevice = Literal["auto", ComputeDevice]

PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
QUANTIZED: Final[tuple[Precision, ...]] = ("int8", "fp8")  # those that are calibrated
RANGE_METHODS: Final[tuple[RangeMethod, ...]] = get_args(RangeMethod)
CALIBRATION_METHODS: Final[tuple[CalibrationMethod, ...]] = get_args(CalibrationMethod)
# They weigh clipping against the even steps of 8-bit integers, which FP8 does not have.
INTEGER_METHODS: Final[tuple[RangeMethod, ...]] = ("entropy", "mse")
CALIBRATION_DEVICES: Final[tuple[CalibrationDevice, ...]] = get_args(CalibrationDevice)

# ONNX files end at 2 GiB; the classifier of a ResNet-50 takes 0.8 of that. ImageNet-21k has 21,841 classes.
MAX_CLASSES: Final = 100_000
# At 224 pixels, the first convolution then writes 3 GiB.
MAX_BATCH: Final = 1024
# More than the cores of any one machine; what a thread costs, it costs before it has anything to do.
MAX_THREADS: Final = 1024

OBSERVATIONS_SUFFIX: Final = ".safetensors"  # by which a file of observations is told from a folder of images

INPUT_NAME: Final = "images"
OUTPUT_NAME: Final = "logits"


def require_classes(count: int) -> None:
    """Hold a number of classes against what a network and its ONNX file can have.

    Raises:
        SpecError: If there is none, or there are more than ``MAX_CLASSES``.
    """
    if count < 1:
        raise SpecError(f"{count} classes", hint="give a positive number of classes")
    require_at_most("number of classes", count, MAX_CLASSES)


class ModelCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an exported model is; travels in the ONNX file and in every bundle made from it.

    Attributes:
        architecture: Name in ``models.ARCHITECTURES``, such as ``resnet50``.
        num_classes: Width of the logits.
        weights: Where the weights came from: ``imagenet``, ``imagenet-v1``, ``none``, or the checkpoint's file name.
        weights_sha256: SHA-256 over the parameters and buffers (names, dtypes, shapes and bytes).
        initializers_sha256: SHA-256 over the constants of the exported graph (names, dtypes, shapes and bytes), into
            which ``export`` turned the weights; empty until it has.
        labels: One name per class, in the order of the logits; empty when unknown.
        folders: Data-set folder name of each class (synsets for ImageNet), same order; empty when unknown.
        preprocess: The input contract.

    Raises:
        SpecError: If there are no classes or too many, or labels or folders are not one for each.
    """

    architecture: str
    num_classes: int
    weights: str
    weights_sha256: str
    initializers_sha256: str = ""
    labels: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    preprocess: Preprocess

    def __post_init__(self) -> None:
        require_classes(self.num_classes)
        for field, names in (("labels", self.labels), ("folders", self.folders)):
            if names and len(names) != self.num_classes:
                raise SpecError(
                    f"{len(names)} {field} for a model of {self.num_classes} classes",
                    hint="give one label per line, in the order of the logits",
                )

    def label(self, index: int) -> str:
        """Name class ``index``, falling back to its number."""
        return self.labels[index] if self.labels else f"class {index}"


class ExportSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to export.

    Attributes:
        architecture: Name in ``models.ARCHITECTURES``.
        weights: ``imagenet``, ``imagenet-v1``, ``none``, or the path of a checkpoint.
        num_classes: Classes of an untrained network, at most ``MAX_CLASSES``; read from the checkpoint otherwise.
        image_size: Side of the network input, in pixels.
        resize: Shorter side before the crop; None takes what belongs to the weights, in proportion to ``image_size``.
        interpolation: Filter of the resize; ``area`` for MLPerf's contract, with its ``mean`` and ``std``.
        mean, std: Of the normalisation, per channel R G B, for values scaled to 0..1.
        dtype: Of the network input.
        labels: One name per class; empty takes what belongs to the weights.

    Raises:
        SpecError: As ``Preprocess`` and ``require_classes``, so that nothing is downloaded for a request that cannot
            be met.
    """

    architecture: str = "resnet50"
    weights: str = "imagenet"
    num_classes: int | None = None
    image_size: int = 224
    resize: int | None = None
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    dtype: InputDtype = "uint8"
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_at_most("image size", self.image_size, MAX_IMAGE_SIZE)  # before it is multiplied
        self.preprocess(256)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if max(values) > 1:
                hint = "values are scaled to 0..1 before the normalisation: divide by 255"
                raise SpecError(f"{name} {values} has a value above 1", hint=hint)
        if self.num_classes is not None:
            require_classes(self.num_classes)

    def preprocess(self, usual_resize: int) -> Preprocess:
        """Make the input contract, where the weights were trained with ``usual_resize`` for a crop of 224."""
        usual = max(self.image_size, round(self.image_size * usual_resize / 224))
        if self.interpolation == "area":
            usual = mlperf_resize(self.image_size)
        return Preprocess(
            image_size=self.image_size,
            resize=usual if self.resize is None else self.resize,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            dtype=self.dtype,
            layout="NHWC" if self.dtype == "uint8" else "NCHW",
        )


class BatchRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Batch sizes an engine accepts, and the one it is tuned for.

    Raises:
        SpecError: Unless 1 <= min <= opt <= max <= ``MAX_BATCH``.
    """

    min: int = 1
    opt: int = 8
    max: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise SpecError(
                f"batch range {self.min}:{self.opt}:{self.max} is not ordered",
                hint="give min:opt:max with 1 <= min <= opt <= max, such as 1:8:64",
            )
        require_at_most("batch size", self.max, MAX_BATCH)

    @classmethod
    def parse(cls, text: str) -> "BatchRange":
        """Read ``min:opt:max``, or one number for a fixed batch.

        Raises:
            SpecError: If the text has another form.
        """
        try:
            parts = [int(part) for part in text.split(":")]
        except ValueError:
            parts = []
        if len(parts) == 1:
            parts *= 3
        if len(parts) != 3:
            raise SpecError(f"batch range {text!r} is not min:opt:max", hint="write it like 1:8:64, or 8 for a fixed 8")
        return cls(*parts)

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


def whole_range(profiles: Sequence[BatchRange]) -> BatchRange:
    """Join profiles to the range that they cover, tuned for what the first is tuned for.

    Raises:
        SpecError: If they leave out a batch size in between.
    """
    if len(set(profiles)) < len(profiles):
        raise SpecError("a profile is given twice", hint="give each --batch once")
    first, *others = sorted(profiles, key=lambda one: one.min)
    covered = first.max
    for profile in others:
        if profile.min > covered + 1:
            sizes = str(covered + 1) if profile.min == covered + 2 else f"{covered + 1} to {profile.min - 1}"
            raise SpecError(f"the profiles leave out a batch of {sizes}", hint="let ranges touch, such as 1 and 2:8:64")
        covered = max(covered, profile.max)
    return BatchRange(first.min, profiles[0].opt, covered)


class CalibrationSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How activation ranges are chosen from what was observed.

    Attributes:
        method: ``max`` keeps the whole range; ``percentile`` clips the rarest values; ``entropy`` minimises the KL
            divergence between the distribution and its quantized form, ``mse`` the mean squared error; ``auto`` takes,
            for each tensor, what does least harm to the layers that read it. The default follows the whole range of a
            well-behaved tensor and still drops the few values that would stretch it.
        percentile: Share of values kept by ``percentile``, in percent.
        max_images: Calibrate on at most this many images, spread evenly over the data set.
        equalize: Rescale channels first, where those of a tensor differ by orders of magnitude.
        correct_biases: Take the mean error of each channel out of it, as measured on a few of the images.

    Raises:
        SpecError: If there is no such method, or a number is out of range.
    """

    method: CalibrationMethod = "percentile"
    percentile: float = 99.999
    max_images: int = 512
    equalize: bool = True
    correct_biases: bool = True

    def __post_init__(self) -> None:
        require_choice("calibration method", self.method, CALIBRATION_METHODS)
        if not 50.0 < self.percentile <= 100.0:
            raise SpecError(f"percentile {self.percentile} is not in (50, 100]", hint="use a value such as 99.999")
        if self.max_images < 1:
            raise SpecError(f"{self.max_images} calibration images", hint="calibrate on at least one image")


class BuildSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine is to be.

    Attributes:
        backend: A row of the table of backends.
        precision: Precision of the convolutions and of the classifier.
        batch: Batch sizes the engine accepts.
        profiles: Parts of that range that the engine is tuned for one by one; empty for the range as a whole.
        trt: How TensorRT is to compile it.
        calibration: How the ranges of INT8 and FP8 are chosen; absent for the other precisions.
        max_drop: Points of accuracy that INT8 may lose: layers keep their precision until it does; absent for no limit.

    Raises:
        SpecError: If there is no such precision, INT8 or FP8 lacks a calibration or another precision has one, FP8 is
            to be calibrated for integers, there is a limit without INT8 or that is no number of points, the profiles
            leave sizes out, or the backend lacks an option.
    """

    backend: str
    precision: Precision
    batch: BatchRange = BatchRange()
    profiles: tuple[BatchRange, ...] = ()
    trt: TrtOptions = TrtOptions()
    calibration: CalibrationSpec | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        self.trt.require_backend(self.backend)
        if self.profiles and self.backend not in (TENSORRT, TENSORRT_RTX):
            raise SpecError(f"{self.backend} has no profiles", hint="give --batch once")
        if self.profiles and whole_range(self.profiles) != self.batch:
            raise SpecError(f"the profiles do not make up {self.batch}", hint="leave `batch` to `whole_range`")
        require_choice("precision", self.precision, PRECISIONS)
        _require_calibration(self.precision, self.calibration)
        if self.max_drop is not None and self.precision != "int8":
            raise SpecError(f"{self.precision} takes no limit of accuracy", hint="drop --max-drop, or use --int8")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise SpecError(f"a drop of {self.max_drop} points", hint="give --max-drop in points, such as 0.5")


def _require_calibration(precision: Precision, calibration: CalibrationSpec | None) -> None:
    if precision not in QUANTIZED:
        if calibration is not None:
            raise SpecError(f"{precision} takes no calibration data", hint="drop --calib, or build with --int8")
        return
    if calibration is None:
        reason = f"{precision.upper()} needs calibration data"
        raise SpecError(reason, hint="add --calib DIR with a few hundred real images")
    if precision == "fp8" and calibration.method in INTEGER_METHODS:
        raise SpecError(
            f"{calibration.method} chooses ranges for the even steps of integers, which FP8 does not have",
            hint="use --calib-method max, percentile or auto, or build with --int8",
        )
