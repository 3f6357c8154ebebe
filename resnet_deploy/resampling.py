"""OpenCV's ``INTER_AREA`` resize of 8-bit images, to the bit, in NumPy.

What OpenCV documents is the average over the area that an output pixel covers. What it computes, and what MLPerf's
preprocessing therefore rests on, are three rules, followed here as they stand in modules/imgproc/src/resize.cpp of
releases 4 and 5 for x86 (they are the same, and tests hold this module against an installed OpenCV):

* Reduced by whole numbers, the same or not in both directions: the sum over the block, in integers; for 2x2 plus 2 and
  shifted right by 2, so that halves go up; otherwise times 1/area in single precision, halves to the even neighbour.
* Reduced otherwise: first along the rows, then along the columns, each tap's weight times its value added up from the
  left, and from the top, in single precision without fused multiply-add; rounded once, halves to the even neighbour. A
  weight is computed in double precision and rounded to single; a part of a pixel below a thousandth is left out, with
  the others' weights unchanged.
* Enlarged: between two neighbours, with weights in steps of 1/2048 and products shifted as 16-bit arithmetic wants it.

All three are sums over few pixels and independent of each other, so that only the wanted part is computed.
"""

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from resnet_deploy.protocols import Array

Pixels = NDArray[np.uint8]

_NEGLIGIBLE: Final = 1e-3  # of a source pixel
_STEPS: Final = np.float32(1 << 11)  # that OpenCV's fixed-point weights have
_EPSILON: Final = float(np.finfo(np.float64).eps)


class Window(NamedTuple):
    """The part of a resized image that is wanted, in its pixels; the ends are excluded."""

    left: int
    top: int
    right: int
    bottom: int


class _Taps(NamedTuple):
    """What each output pixel is made of along one direction: source pixels from ``first`` on, and their weights."""

    first: NDArray[np.int64]  # (outputs,)
    weights: NDArray[Any]  # (outputs, taps)


def resize_area(pixels: Pixels, size: tuple[int, int], window: Window) -> Pixels:
    """Resize an image and return the part of the result that lies in ``window``.

    Args:
        pixels: Shape (height, width, channels).
        size: (width, height) of the result. Either both are larger than the image's, or neither is.
        window: Within the result.

    Returns:
        A new contiguous array of shape (height of the window, width of the window, channels).
    """
    height, width = pixels.shape[:2]
    left, top, right, bottom = window
    scale_x, scale_y = _scale(width, size[0]), _scale(height, size[1])
    if (width, height) == size:
        return pixels[top:bottom, left:right].copy()
    if scale_x < 1 or scale_y < 1:
        return _enlarged(
            pixels, _neighbours(width, size[0], (left, right)), _neighbours(height, size[1], (top, bottom))
        )
    whole_x, whole_y = round(scale_x), round(scale_y)
    if abs(scale_x - whole_x) < _EPSILON and abs(scale_y - whole_y) < _EPSILON:
        blocks = pixels[top * whole_y : bottom * whole_y, left * whole_x : right * whole_x]
        return _block_means(blocks, whole_x, whole_y)
    columns, rows = _shares(width, size[0], (left, right)), _shares(height, size[1], (top, bottom))
    needed = slice(int(rows.first[0]), int(rows.first[-1]) + rows.weights.shape[1])
    narrowed = _weighted_sum(pixels[needed], columns, axis=1)
    resized = _weighted_sum(narrowed, rows._replace(first=rows.first - needed.start), axis=0)
    return _rounded(resized)


def _scale(source: int, target: int) -> float:
    """Source pixels for one of the target's; OpenCV inverts twice, and so rounds twice."""
    return 1.0 / (target / source)


def _block_means(pixels: Pixels, across: int, down: int) -> Pixels:
    height, width, channels = pixels.shape
    blocks = pixels.reshape(height // down, down, width // across, across, channels)
    # OpenCV's sums are of 32 bits, and overflow; no mean of so large blocks could be compared with it.
    sums = blocks.sum(axis=(1, 3), dtype=np.int32 if 255 * across * down < 1 << 31 else np.int64)
    if (across, down) == (2, 2):
        means: Pixels = ((sums + 2) >> 2).astype(np.uint8)
        return means
    return _rounded(sums.astype(np.float32) * (np.float32(1) / np.float32(across * down)))


def _shares(source: int, target: int, wanted: tuple[int, int]) -> _Taps:
    """Weights of the source pixels that each of the wanted outputs covers, wholly or in part."""
    scale = _scale(source, target)
    low = np.arange(*wanted) * scale
    high = low + scale
    cell = np.minimum(scale, source - low)
    end = np.minimum(np.floor(high), source - 1)  # the last pixel, of which a part may be covered
    begin = np.minimum(np.ceil(low), end)  # the first that is covered wholly
    has_left, has_right = begin - low > _NEGLIGIBLE, high - end > _NEGLIGIBLE
    first = begin - has_left
    position = first[:, None] + np.arange(int((end - first).max()) + 1)
    left, right = (begin - low) / cell, np.minimum(np.minimum(high - end, 1), cell) / cell
    weights = np.where(
        position < begin[:, None],
        left[:, None],
        np.where(position < end[:, None], (1 / cell)[:, None], np.where(position == end[:, None], right[:, None], 0)),
    )
    weights[(position == end[:, None]) & ~has_right[:, None]] = 0
    return _Taps(first.astype(np.int64), weights.astype(np.float32))


def _weighted_sum(values: "Array", taps: _Taps, axis: int) -> "Array":
    """Add up each output's taps in their order; a weight of 0 adds nothing, to the bit."""
    shape = [1] * values.ndim
    shape[axis] = len(taps.first)
    total: Any = None
    for number in range(taps.weights.shape[1]):
        # Where there are fewer taps than for another output, the index may lie beyond the edge, and the weight is 0.
        part = values.take(taps.first + number, axis=axis, mode="clip") * taps.weights[:, number].reshape(shape)
        total = part if total is None else np.add(total, part, out=total)
    summed: Array = total
    return summed


def _neighbours(source: int, target: int, wanted: tuple[int, int]) -> _Taps:
    """Weights, in steps of 1/2048, of the two pixels that each of the wanted outputs lies between."""
    inverse = target / source
    output = np.arange(*wanted)
    first = np.floor(output * _scale(source, target))
    share = ((output + 1) - (first + 1) * inverse).astype(np.float32)
    share = np.where(share <= 0, np.float32(0), share - np.floor(share))
    share[first >= source - 1] = 0
    first = np.minimum(first, source - 1)
    weights = np.rint(np.stack([1 - share, share], axis=1) * _STEPS)
    return _Taps(first.astype(np.int64), weights.astype(np.int32))


def _enlarged(pixels: Pixels, columns: _Taps, rows: _Taps) -> Pixels:
    widened: NDArray[np.int32] = _weighted_sum(pixels.astype(np.int32), columns, axis=1).astype(np.int32, copy=False)
    upper, lower = (
        ((widened.take(rows.first + number, axis=0, mode="clip") >> 4) * rows.weights[:, number, None, None]) >> 16
        for number in (0, 1)
    )
    mixed: Pixels = ((upper + lower + 2) >> 2).astype(np.uint8)
    return mixed


def _rounded(values: "Array") -> Pixels:
    """Round to the nearest, halves to the even neighbour; means of 8-bit values, and so within their range."""
    rounded: Pixels = np.rint(values).astype(np.uint8)
    return rounded
