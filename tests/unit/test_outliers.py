"""Weights and activations on integer grids; the numbers of small tensors are worked by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from resnet_deploy.quantize.observers import Histogram
from resnet_deploy.quantize.outliers import (
    SOUND_DB,
    activation_spread,
    channel_magnitudes,
    median_channel_sqnr_db,
    weight_spread,
    weight_sqnr_db,
)

# Under one scale, 127 levels are steps of 1: the quarter becomes 0. Under its own, the second channel is exact.
WEIGHTS = np.array([[127.0, 0.25], [1.0, 0.0]], np.float32)
POWER = 127**2 + 0.25**2 + 1
EXACT = 1e-9  # double precision, and a logarithm


@pytest.mark.parametrize(
    ("bits", "per_channel", "noise"),
    [
        (8, False, 0.25**2),
        (8, True, 0.25**2),
        (7, False, 0.25**2 + 1),  # 63 levels are steps of 2.016: the 1 becomes 0 too
        (7, True, 0.25**2),
    ],
)
def test_sqnr_of_weights(bits, per_channel, noise):
    found = weight_sqnr_db(WEIGHTS, bits=bits, per_channel=per_channel)
    assert found == pytest.approx(10 * math.log10(POWER / noise), abs=EXACT)


def test_rounding_goes_to_the_nearest_and_both_ways():
    """A twin: cutting off instead of rounding would leave 0.7 and -0.7 as noise, not 0.3."""
    weights = np.array([[127.0, 0.7, -0.7]], np.float32)
    noise = 2 * (1 - float(np.float32(0.7))) ** 2
    power = 127**2 + 2 * float(np.float32(0.7)) ** 2
    assert weight_sqnr_db(weights, bits=8, per_channel=True) == pytest.approx(10 * math.log10(power / noise), abs=EXACT)


def test_weights_on_the_grid_lose_nothing():
    assert weight_sqnr_db(np.array([[127.0, -3.0]], np.float32), bits=8, per_channel=True) == math.inf
    assert weight_sqnr_db(np.zeros((2, 3), np.float32), bits=8, per_channel=False) == math.inf


def test_channels_of_a_convolution_are_its_first_dimension():
    kernel = np.zeros((2, 3, 3, 3), np.float32)
    kernel[0, 2, 1, 1], kernel[1, 0, 0, 0] = -5, 2
    np.testing.assert_array_equal(channel_magnitudes(kernel), [5, 2])


def test_spread_of_channels():
    spread = weight_spread("fc", np.diag([100.0, 20.0, 10.0, 1.0, 0.0]).astype(np.float32))
    assert (spread.layer, spread.channels, spread.empty) == ("fc", 5, 1)
    # Of the four that are used: the median lies between 20 and 10; 100 to 1 is two decades; the last two get 12.7
    # levels and 1.27, the second 25.4.
    assert spread.max_over_median == pytest.approx(100 / 15, abs=EXACT)
    assert spread.decades == pytest.approx(2, abs=EXACT)
    assert spread.wasting == 0.5


def test_spread_of_even_channels_is_none():
    spread = weight_spread("fc", np.eye(4, dtype=np.float32))
    assert (spread.max_over_median, spread.decades, spread.wasting) == (1, 0, 0)
    assert weight_spread("fc", np.zeros((2, 2), np.float32)).empty == 2


NOISE = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)


@pytest.mark.parametrize(
    ("weights", "verdict"),
    [
        (NOISE, "sound on any grid"),
        # One channel a hundred times the others: a scale per tensor leaves them about one level each.
        (NOISE * np.where(np.arange(64) == 0, 100, 1)[:, None].astype(np.float32) / 10, "a scale per channel"),
        # One weight of 4,096 in every channel fifty times the others: little of the power, and all of the range.
        (np.concatenate([NOISE.ravel()[1:], [50]]).astype(np.float32)[None], "outliers within channels"),
    ],
)
def test_verdicts(weights, verdict):
    assert verdict in weight_spread("conv1", weights).verdict


def test_channels_of_fewer_than_16_levels_waste_the_grid():
    """Of the 127 that a scale per tensor leaves the largest: 17, 16 and 15."""
    spread = weight_spread("fc", np.diag([127.0, 17.0, 16.0, 15.0]).astype(np.float32))
    assert spread.wasting == 0.25


@pytest.mark.parametrize(
    ("per_tensor", "per_channel", "verdict"),
    [
        # 8 bits and 7.
        ((40, 34), (40, 34), "sound on any grid"),
        ((28, 22), (40, 34), "sound; on 7 bits with a scale per channel"),
        ((20, 14), (40, 34), "needs a scale per channel"),
        ((20, 14), (28, 22), "needs 8 bits and a scale per channel"),
        ((20, 14), (20, 14), "outliers within channels: loses accuracy on any INT8 grid"),
    ],
)
def test_what_figures_allow(per_tensor, per_channel, verdict):
    spread = replace(
        weight_spread("fc", NOISE),
        per_tensor_db=per_tensor[0],
        per_tensor_7_db=per_tensor[1],
        per_channel_db=per_channel[0],
        per_channel_7_db=per_channel[1],
    )
    assert spread.verdict == verdict


def test_empty_channels_are_not_the_median():
    """A channel of zeros loses nothing, whatever the grid; the one of four that is used loses what it loses."""
    weights = np.zeros((4, 2), np.float32)
    weights[2] = [127, 0.25]
    found = median_channel_sqnr_db(weights, bits=8, per_channel=True)
    assert found == pytest.approx(10 * math.log10((127**2 + 0.25**2) / 0.25**2), abs=EXACT)


def test_a_verdict_rests_on_its_figures():
    even, one_large = weight_spread("a", NOISE), weight_spread("b", np.concatenate([NOISE, 30 * NOISE[:1]]))
    assert min(even.per_tensor_7_db, even.per_channel_7_db) > SOUND_DB
    assert one_large.per_channel_db == pytest.approx(even.per_channel_db, abs=0.5)  # one channel more of 65
    assert one_large.per_tensor_db < even.per_tensor_db - 20  # the grid is 30 times as coarse: 29 dB


def test_a_loud_channel_does_not_hide_what_the_others_lose():
    weights = np.concatenate([np.full((3, 4), 0.3), [[127.0, 127, 127, 127]]]).astype(np.float32)
    assert weight_sqnr_db(weights, bits=8, per_channel=False) > 40
    # The others all become zero: as much noise as there was signal.
    assert median_channel_sqnr_db(weights, bits=8, per_channel=False) == pytest.approx(0, abs=EXACT)


# --- activations


def spread_of(*parts):
    histogram = Histogram()
    for part in parts:
        histogram.update(np.asarray(part, np.float32))
    return activation_spread("relu", histogram)


def test_an_even_activation_is_sound_under_its_whole_range():
    found = spread_of(np.linspace(0, 1, 100_001))
    assert (found.low, found.high, found.verdict) == (0, 1, "sound")
    assert found.max_over_bulk == pytest.approx(1 / 0.999, abs=1 / 2048)
    # Mean square 1/3 over the step's square / 12, as bins of 1/4096 see it.
    assert found.expected_db["max"] == pytest.approx(10 * math.log10(4 * 255**2), abs=0.1)


@pytest.mark.parametrize("largest", [300.0, -300.0])
def test_few_values_that_dominate_a_range_are_named(largest):
    bulk = np.random.default_rng(0).normal(size=200_000)
    plain, stretched = spread_of(bulk), spread_of(bulk, [largest])
    assert plain.verdict == "sound"
    assert stretched.verdict.startswith("dominated by few values")
    assert plain.max_over_bulk < 2
    assert stretched.max_over_bulk > 50
    # From -5 to 300 rather than 5, the grid is 30 times as coarse, 30 dB; a range without the one value is as it was.
    assert stretched.bulk_db["max"] == pytest.approx(plain.bulk_db["max"] - 30, abs=2)
    assert stretched.bulk_db["percentile"] == pytest.approx(plain.bulk_db["percentile"], abs=1)
    # Of all values, what is dropped is most of the power.
    assert stretched.expected_db["percentile"] < stretched.expected_db["max"]


@pytest.mark.parametrize(
    ("bulk_db", "verdict"),
    [
        ({"max": 25.0, "mse": 10.0}, "sound"),
        ({"max": 24.0, "mse": 25.0, "entropy": 20.0}, "dominated by few values: mse spares the others"),
        ({"max": 24.0, "mse": 25.0, "entropy": 26.0}, "dominated by few values: mse or entropy spares the others"),
        ({"max": 24.0, "mse": 24.0}, "coarse in any range: what reads it may need floating point"),
    ],
)
def test_what_decibels_of_the_bulk_say(bulk_db, verdict):
    assert replace(spread_of(np.linspace(0, 1, 101)), bulk_db=bulk_db).verdict == verdict


def test_where_no_range_helps_it_is_said():
    # One value in 1,500 is a hundred times the others: no method drops so many.
    rng = np.random.default_rng(0)
    values = rng.uniform(-1, 1, 100_000)
    values[::1500] *= 100
    found = spread_of(values)
    assert max(found.bulk_db.values()) < SOUND_DB
    assert found.verdict.startswith("coarse in any range")


@pytest.mark.parametrize("largest", [3e3, 1e4, 1e5, 1e30])
@pytest.mark.parametrize("bulk", [np.random.default_rng(0).normal(size=200_000), np.zeros(200_000)], ids=["", "zeros"])
def test_where_the_histogram_cannot_tell_the_others_from_zero_it_says_so(bulk, largest):
    """They share the bin of zero with zeros, and zeros would be sound."""
    found = spread_of(bulk, [largest])
    assert set(found.bulk_db.values()) == {-math.inf}
    assert found.verdict.startswith("all but a few values are next to nothing beside the largest")
    assert found.max_over_bulk > 250


def test_a_tensor_of_zeros_is_sound():
    found = spread_of(np.zeros(10))
    assert (found.verdict, found.max_over_bulk) == ("sound", 1.0)
