"""The one way from a picture to the network's input tensor.

The rule is that of the contract. Torchvision's, to the bit, is its evaluation transform on Pillow images: resize the
shorter side, crop the centre, and for the ``float32`` contract scale to 0..1 and normalise. The published accuracies
were measured with it, and with Pillow as it was until release 12; 13 resizes tall images by another order of steps,
which is not followed here. MLPerf's, to the bit, is ``pre_process_vgg`` on what ``cv2.imread`` delivers: OpenCV's area
resize, another rounding of the crop, and means subtracted from 0..255. Another decoder or resize moves pixels: without
antialiasing, ResNet-18 loses 0.8 points of top-1 (68.934 % for 69.752 %,
https://github.com/shift-happens-benchmark/icml-2022/pull/62).

Pillow releases the interpreter lock while it decodes and resizes, so all of this runs well in threads.
"""

import io
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from resnet_deploy.artifact import file_error
from resnet_deploy.contract import Interpolation, Preprocess
from resnet_deploy.errors import DataError
from resnet_deploy.regular_files import open_regular
from resnet_deploy.resampling import Window, resize_area

if TYPE_CHECKING:
    from resnet_deploy.protocols import Array

Source = Path | Image.Image | NDArray[np.uint8]

_FILTERS: Final[dict[Interpolation, Image.Resampling]] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
# Files are found in folders by these names, and read by their bytes whatever the name.
IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
# Not all that Pillow knows: left to itself, it has Ghostscript run what a PostScript file says.
FORMATS: Final = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000")
_PREFIX_BYTES: Final = 16  # by which Pillow tells formats apart
_DAMAGED_HINT: Final = "replace the file"
_TOO_LARGE_HINT: Final = "shrink the image first"


def decode(path: Path, data: bytes | None = None) -> Image.Image:
    """Read one image file as 8-bit RGB; the first frame, where it has several.

    The EXIF orientation is not applied here: torchvision's ``ImageFolder`` does not apply it either, and the network
    was trained and scored on what that delivers. MLPerf's rule has it applied by ``preprocess_image``.

    Args:
        path: The file.
        data: Its content, where that has been read already.

    Raises:
        FileError: If the file is missing or cannot be read.
        DataError: If it is not an image of one of ``FORMATS``, is damaged or cut short, or is larger than
            Pillow's limit against decompression bombs (``PIL.Image.MAX_IMAGE_PIXELS``, which Pillow itself only warns
            about up to twice).
        MemoryError: If there is not enough for its pixels. Where a codec's library lacks memory for its own use, Pillow
            says no more than that the data are broken, and so does the DataError.
    """
    try:
        with open_regular(path) if data is None else io.BytesIO(data) as file, _open(file) as image:
            _refuse_oversize(image.size)
            return rgb_from_image(image)
    except DataError as error:
        raise _named(error, path) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: {_one_line(error)}", hint=_TOO_LARGE_HINT) from error
    except OSError as error:
        if error.errno is None:  # Pillow's own "truncated" and "broken" errors carry no number
            raise _damage_error(path, error) from error
        raise file_error(path, error) from error
    except MemoryError:  # which no file is to blame for
        raise
    except Exception as error:  # Pillow's decoders raise SyntaxError, ValueError, struct.error, ... on damaged bytes
        raise _damage_error(path, error) from error


def preprocess_image(image: Image.Image, spec: Preprocess) -> "Array":
    """Turn one image into the tensor that ``spec`` describes.

    The long side is truncated in both rules. The crop's offset goes to the nearest integer in torchvision's, and to
    the even one of two; in MLPerf's it is truncated. MLPerf's turns the image by its EXIF orientation first, for
    ``cv2.imread`` does. From CMYK, which OpenCV converts by a formula of its own, pixels differ from it by up to 2.

    Args:
        image: Of any mode; what is not RGB is converted first.
        spec: The input contract.

    Returns:
        A new contiguous array of shape ``spec.shape`` and dtype ``spec.dtype``.

    Raises:
        DataError: If the image has no pixels, cannot be had as RGB, or is so elongated that resizing its shorter side
            would exhaust the memory.
    """
    if min(image.size) < 1:
        raise DataError("the image has no pixels", hint=_DAMAGED_HINT)
    is_area = spec.interpolation == "area"
    if is_area:
        image = _upright(image)
    width, height = resized_size(image.size, spec.resize)
    if _is_too_large((width, height)):
        raise DataError(f"too elongated: it would be resized to {width}x{height} pixels", hint="crop the image first")
    picture = image if image.mode == "RGB" else rgb_from_image(image)  # which would copy it
    side = spec.image_size
    if is_area:
        left, top = (width - side) // 2, (height - side) // 2
        pixels = resize_area(np.asarray(picture), (width, height), Window(left, top, left + side, top + side))
    else:
        left, top = crop_offset(width, side), crop_offset(height, side)
        resized = _resized(picture, (width, height), spec.interpolation)
        pixels = np.array(resized.crop((left, top, left + side, top + side)), dtype=np.uint8)
    return pixels if spec.dtype == "uint8" else _normalized(pixels, spec)


def batch_from_images(images: Sequence[Source], spec: Preprocess) -> "Array":
    """Preprocess files, Pillow images or RGB arrays into one batch, in the calling thread.

    Args:
        images: Paths, Pillow images, or uint8 arrays of shape (H, W, 3) in RGB order; mixed as they come.
        spec: The input contract.

    Returns:
        Array of shape (N, *spec.shape) and dtype ``spec.dtype``; owned by the caller.

    Raises:
        FileError: If a file is missing or cannot be read.
        DataError: If an image is damaged or cannot be preprocessed.
    """
    batch = np.empty((len(images), *spec.shape), dtype=spec.dtype)
    for row, source in zip(batch, images, strict=True):
        row[...] = tensor_from_source(source, spec)
    return batch


def tensor_from_source(source: Source, spec: Preprocess, data: bytes | None = None) -> "Array":
    """Preprocess one file, Pillow image or RGB array, shape ``spec.shape``; an error about a file names it.

    Args:
        source: The image.
        spec: The input contract.
        data: The content of the file, where that has been read already.

    Raises:
        FileError: If a file is missing or cannot be read.
        DataError: If the image is damaged or cannot be preprocessed.
    """
    if isinstance(source, Path):
        image = decode(source, data)
        try:
            return preprocess_image(image, spec)
        except DataError as error:
            raise _named(error, source) from error
    if isinstance(source, Image.Image):
        return preprocess_image(source, spec)
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
        raise DataError(
            f"an array of shape {source.shape} and dtype {source.dtype} is not an image",
            hint="give uint8 arrays of shape (height, width, 3) in RGB order",
        )
    return preprocess_image(Image.fromarray(source), spec)


def rgb_from_image(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB as Pillow's ``convert("RGB")`` does, but scale 16-bit greyscale instead of clipping it.

    Transparency is dropped, not blended. Of 16-bit values the high byte is kept, which is what Pillow does with 16-bit
    colour; its conversion of 16-bit greyscale clips at 255 and leaves a nearly white image.

    Raises:
        DataError: If the mode has no conversion, or its values have no known range.
    """
    image.load()
    # Until release 11, Pillow opened 16-bit PNG as "I"; all releases so far open 16-bit PGM as "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        wide = np.asarray(image)
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError(f"pixels of mode {image.mode} have no known range", hint="save the image with 8 bits first")
    if image.mode == "P" and "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]  # dropped anyway, but convert() would warn about it for every image
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise DataError(f"pixels of mode {image.mode} cannot be had as RGB", hint="save the image as RGB") from error


def resized_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Return (width, height) after a resize of the shorter side to ``shorter``; the other side is truncated."""
    width, height = size
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def crop_offset(length: int, side: int) -> int:
    """Return where torchvision's centre crop of ``side`` begins; a half goes to the even neighbour."""
    return round((length - side) / 2)


def _open(file: BinaryIO) -> Image.Image:
    """Open an image of one of ``FORMATS``, as far as this Pillow has them; an error does not name the file."""
    Image.init()
    try:
        return Image.open(file, formats=[one for one in FORMATS if one in Image.OPEN])
    except UnidentifiedImageError as error:
        file.seek(0)
        if other := _other_format(file.read(_PREFIX_BYTES)):
            hint = "save the image as PNG or JPEG first"
            raise DataError(f"looks like {other}, a format that is not read", hint=hint) from error
        raise DataError("not an image", hint=_DAMAGED_HINT) from error


def _other_format(prefix: bytes) -> str:
    """Name what Pillow takes the first bytes of a file for, whose parser is not run; empty for none."""
    for name, (_, accepts) in Image.OPEN.items():
        with suppress(SyntaxError, IndexError, TypeError, struct.error):  # of too few bytes, as in Image.open
            if name not in FORMATS and accepts and accepts(prefix) is True:
                return name
    return ""


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image by its EXIF orientation, which is not looked at before."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:  # SyntaxError, struct.error, ... as in decode
        raise DataError(f"damaged EXIF data ({_one_line(error)})", hint=_DAMAGED_HINT) from error


def _resized(picture: Image.Image, size: tuple[int, int], interpolation: Interpolation) -> Image.Image:
    """Resize along the rows, then along the columns; values are rounded in between, and so the order matters.

    One call does both in this order until Pillow 12. Release 13 begins with the columns where an image loses more than
    twice as much of its height as of its width, which are those more than twice as tall as wide.
    """
    step = _FILTERS[interpolation]
    if interpolation != "nearest":  # which rounds nothing
        picture = picture.resize((size[0], picture.height), step)
    return picture.resize(size, step)


def _normalized(pixels: NDArray[np.uint8], spec: Preprocess) -> NDArray[np.float32]:
    """Normalise HWC uint8 and lay out as CHW; float32 throughout, in the order of operations of the rule."""
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    if spec.interpolation == "area":
        planes -= np.array([255 * mean for mean in spec.mean], np.float32).reshape(3, 1, 1)
        return planes
    planes /= np.float32(255)
    planes -= np.array(spec.mean, np.float32).reshape(3, 1, 1)
    planes /= np.array(spec.std, np.float32).reshape(3, 1, 1)
    return planes


def _is_too_large(size: tuple[int, int]) -> bool:
    """Whether an image of this size exceeds Pillow's limit, where one is set."""
    return Image.MAX_IMAGE_PIXELS is not None and size[0] * size[1] > Image.MAX_IMAGE_PIXELS


def _refuse_oversize(size: tuple[int, int]) -> None:
    if _is_too_large(size):
        message = f"{size[0]}x{size[1]} pixels are more than the limit of {Image.MAX_IMAGE_PIXELS}"
        raise DataError(message, hint=_TOO_LARGE_HINT)


def _damage_error(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: damaged image ({_one_line(error)})", hint=_DAMAGED_HINT)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _named(error: DataError, path: Path) -> DataError:
    return DataError(f"{path}: {error.message}", hint=error.hint)
