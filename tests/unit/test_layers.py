"""What is read from a graph's integers, by hand."""

import numpy as np
import pytest

from resnet_deploy.quantize.float8 import FLOAT8
from resnet_deploy.quantize.layers import Layer, clipped_shares, used_bits
from resnet_deploy.quantize.observers import Histogram
from resnet_deploy.quantize.ranges import Range


@pytest.mark.parametrize(("integers", "bits"), [([63, -63], 7), ([64, 0], 8), ([0, -64], 8), ([-128, 0], 8)])
def test_bits_that_are_used(integers, bits):
    assert used_bits(np.array(integers, np.int8)) == bits


def test_fp8_uses_all_of_its_bits():
    assert used_bits(np.array([1, -60], FLOAT8)) == 8


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Layer("a", "Conv", (2,), "float16", 16), "float16"),
        (Layer("a", "Conv", (2,), "int8", 8, 1, 1, 1), "int8, per tensor"),
        (Layer("a", "Conv", (2,), "int8", 7, 2, 1, 2), "int8, 7 bits used, per channel"),
    ],
)
def test_precision_in_words(layer, words):
    assert layer.precision == words


@pytest.mark.parametrize(
    ("low", "high", "clipped"),
    [
        (-4.0, 8.0, 0),  # the very extremes: nothing is beyond them
        (-4.0, 7.0, 1),
        (-4.0, 1.5, 2),
        (-3.0, 8.0, 1),
        (-0.5, 0.75, 5),
        (0.0, 8.0, 2),
        # A value at an end lies in the bin that begins there, which counts as beyond.
        (-4.0, 2.0, 2),
        (-1.0, 8.0, 2),
    ],
)
def test_share_beyond_a_range(low, high, clipped):
    histogram = Histogram()
    histogram.update(np.array([-4, -1, 0, 0.5, 1, 2, 8, 0], np.float32))
    # Every value and every end lies on an edge of the bins, which are 16 / 4096 wide.
    assert clipped_shares({"a": histogram}, {"a": Range(low, high), "unseen": Range(0, 1)}) == {"a": clipped / 8}
