"""The input contract: the one way from an image to the network's input, named after whose rule it is.

Two rules are in use for ResNets, and differ by tenths of a point of top-1:

* ``torchvision``: its evaluation transform on Pillow images, which its weights were scored with.
* ``mlperf``: the reference preprocessing of MLPerf Inference's ResNet-50 (``pre_process_vgg`` in mlcommons/inference,
  vision/classification_and_detection/python/dataset.py), which its 76.46 % were scored with. MLPerf's PyTorch models
  take torchvision's (``pre_process_imagenet_pytorch``).

``images`` carries them out.
"""

import hashlib
import math
from typing import Final, Literal, get_args

import msgspec

from resnet_deploy.errors import SpecError

Contract = Literal["torchvision", "mlperf"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "area"]
InputDtype = Literal["uint8", "float32"]
Layout = Literal["NHWC", "NCHW"]

CONTRACTS: Final[tuple[Contract, ...]] = get_args(Contract)
INTERPOLATIONS: Final[tuple[Interpolation, ...]] = get_args(Interpolation)

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
# MLPerf subtracts 123.68, 116.78 and 103.94 from pixels of 0..255 and divides by nothing. In single precision, 255
# times each of these six is the number of MLPerf's, to the bit: also in the graph, which multiplies after rounding.
MLPERF_MEAN: Final = (123.68 / 255, 116.78 / 255, 103.94 / 255)
MLPERF_STD: Final = (1 / 255, 1 / 255, 1 / 255)

# Bounds beyond which a request is a slip of the keyboard, and would end in exhausted memory long after it was made.
# The first convolution writes 64 channels at half the resolution: at 2048 pixels a quarter of a GiB for each image.
MAX_IMAGE_SIZE: Final = 2048
# A square of this side is the largest power of two within Pillow's limit against decompression bombs (89 megapixels),
# which is also what a resized image is held to.
MAX_RESIZE: Final = 8192


def require_at_most(what: str, value: int, most: int) -> None:
    """Hold a number against its bound; what is wrong with too small a one differs from place to place."""
    if value > most:
        raise SpecError(f"{what} {value} is too large", hint=f"give at most {most}")


def require_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a name that type checking would have: specs are also made from JSON and by callers without it."""
    if value not in choices:
        raise SpecError(f"unknown {what} {value!r}", hint=f"choose one of: {', '.join(choices)}")


def mlperf_resize(image_size: int) -> int:
    """Return the shorter side, in pixels, that MLPerf crops ``image_size`` from: 256 for 224."""
    return int(100 * image_size / 87.5)


class Preprocess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The input contract: the one way from an image to the network's input tensor.

    Attributes:
        image_size: Side of the centre crop and of the network input, in pixels; at most ``MAX_IMAGE_SIZE``.
        resize: The shorter side of the image after resizing, in pixels; ``image_size`` to ``MAX_RESIZE``.
        interpolation: Filter of the resize, with antialiasing as Pillow does it; ``area`` is OpenCV's, and with it the
            rest of MLPerf's rule.
        mean: Per channel, R G B, of values scaled to 0..1; subtracted.
        std: Per channel, R G B, of values scaled to 0..1; divided by.
        color: Channel order of the tensor.
        dtype: ``uint8`` leaves the normalisation to the graph; ``float32`` tensors arrive normalised.
        layout: ``NHWC`` for ``uint8``, as decoders deliver; ``NCHW`` for ``float32``, the classic PyTorch tensor.

    Raises:
        SpecError: If a value is out of range, dtype and layout do not belong together, or ``area`` comes without
            MLPerf's mean and std.
    """

    image_size: int = 224
    resize: int = 256
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    color: Literal["RGB"] = "RGB"
    dtype: InputDtype = "uint8"
    layout: Layout = "NHWC"

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise SpecError(f"image size {self.image_size} is not positive", hint="use a size such as 224")
        require_at_most("image size", self.image_size, MAX_IMAGE_SIZE)
        require_at_most("resize", self.resize, MAX_RESIZE)
        if self.resize < self.image_size:
            raise SpecError(
                f"resize {self.resize} is smaller than the crop {self.image_size}",
                hint="give --resize a value of at least --image-size",
            )
        require_choice("interpolation", self.interpolation, INTERPOLATIONS)
        if not all(0 < value < math.inf for value in self.std):
            raise SpecError(f"std {self.std} has a value that is not positive", hint="give three positive numbers")
        if not all(map(math.isfinite, self.mean)):
            raise SpecError(f"mean {self.mean} has a value that is not finite", hint="give three numbers in 0..1")
        if (self.dtype, self.layout) not in (("uint8", "NHWC"), ("float32", "NCHW")):
            raise SpecError(
                f"dtype {self.dtype} does not go with layout {self.layout}", hint="use uint8 NHWC or float32 NCHW"
            )

        if self.interpolation == "area" and (self.mean, self.std) != (MLPERF_MEAN, MLPERF_STD):
            raise SpecError("area goes with MLPerf's mean and std alone", hint="use --preprocess mlperf")

    @property
    def name(self) -> Contract | Literal["custom"]:
        """Whose contract it is, at whatever size; ``custom`` for torchvision's rule with other numbers."""
        if self.interpolation == "area":
            return "mlperf"
        is_usual = (self.interpolation, self.mean, self.std) == ("bilinear", IMAGENET_MEAN, IMAGENET_STD)
        return "torchvision" if is_usual else "custom"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image as the network takes it, without the batch dimension."""
        side = self.image_size
        return (side, side, 3) if self.layout == "NHWC" else (3, side, side)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON form, as lower-case hex."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()
