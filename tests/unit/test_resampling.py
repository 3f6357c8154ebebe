"""resampling.py against OpenCV where it is installed, and against numbers that OpenCV gave where it is not."""

import hashlib

import numpy as np
import pytest

from resnet_deploy import resampling
from resnet_deploy.contract import mlperf_resize
from resnet_deploy.images import resized_size
from resnet_deploy.resampling import Window, resize_area

# (width, height): general reductions, by whole numbers (2, 3, 4, and unequal ones), no change, enlargements, and long
# sides that the truncation leaves at another scale than the short one.
SIZES = (
    *((500, 375), (375, 500), (500, 333), (257, 257), (1280, 960), (3000, 2000), (301, 300), (640, 257), (1501, 300)),
    *((512, 512), (1024, 512), (768, 768), (1024, 1024), (1536, 768), (2560, 256)),
    *((256, 256), (300, 256), (256, 999)),
    *((255, 255), (200, 150), (60, 90), (17, 31), (1, 1), (3, 200)),
)
# SHA-256 over all of them, as ``cv2.resize(..., interpolation=cv2.INTER_AREA)`` has them; computed with OpenCV 4.14.0
# and with 5.0.0, x86-64, which agree.
OPENCV = "5fab97487d7b650f122fe8f298d5987f8cf7f2ed3a66567f720c94a26bed9568"


def noise(width, height):
    return np.random.default_rng(width * 10_000 + height).integers(0, 256, (height, width, 3), np.uint8)


def whole(size):
    return Window(0, 0, *size)


def resized(width, height):
    size = resized_size((width, height), 256)
    return resize_area(noise(width, height), size, whole(size))


def digest_of_all():
    return hashlib.sha256(b"".join(resized(*size).tobytes() for size in SIZES)).hexdigest()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_is_opencvs_to_the_bit(size):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is what this follows")
    expected = cv2.resize(noise(*size), resized_size(size, 256), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(resized(*size), expected)


def test_gives_what_opencv_gave():
    assert digest_of_all() == OPENCV


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("_rounded", lambda values: np.floor(values + 0.5).astype(np.uint8)),  # halves up
        ("_rounded", lambda values: values.astype(np.uint8)),  # cut off
        ("_NEGLIGIBLE", 0.0),
        ("_STEPS", np.float32(1 << 12)),
    ],
)
def test_each_small_deviation_would_be_found(monkeypatch, name, wrong):
    monkeypatch.setattr(resampling, name, wrong)
    assert digest_of_all() != OPENCV


def test_halves_of_the_block_rules_differ():
    block = np.zeros((2, 2, 1), np.uint8)
    block[0] = 1  # a sum of 2 over 4 pixels
    assert resize_area(block, (1, 1), whole((1, 1))).item() == 1
    assert resize_area(np.repeat(block, 2, axis=1), (1, 1), whole((1, 1))).item() == 0  # 4 over 8, to even


def test_sums_of_huge_blocks_do_not_overflow():
    white = np.full((2903, 2903, 3), 255, np.uint8)  # of which the sum is beyond 2^31, and a mean by OpenCV nonsense
    assert resize_area(white, (1, 1), Window(0, 0, 1, 1)).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("size", [(500, 375), (512, 768), (60, 90), (256, 300)], ids=str)
def test_a_window_is_that_part_of_the_whole(size):
    target = resized_size(size, 256)
    window = Window(5, 16, 229, 240)
    part = resize_area(noise(*size), target, window)
    np.testing.assert_array_equal(part, resize_area(noise(*size), target, whole(target))[16:240, 5:229])
    assert part.shape == (224, 224, 3)
    assert part.flags.c_contiguous


def test_mlperf_crops_from_eight_sevenths():
    assert [mlperf_resize(size) for size in (224, 32, 299, 28)] == [256, 36, 341, 32]
