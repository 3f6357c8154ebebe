"""Calibration methods against hand-worked cases, sorted values, and a second implementation of the divergence."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_deploy.quantize import ranges
from resnet_deploy.quantize.observers import Histogram
from resnet_deploy.quantize.ranges import Range, choose_range, choose_ranges, entropy_range, mse_range, percentile_range
from resnet_deploy.specs import RANGE_METHODS, CalibrationSpec

unhurried = settings(deadline=None)  # other work may share the machine

LEVELS = 128

values_of_any_sign = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=200).map(
    lambda values: np.array(values, np.float32)
)


def observed(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.update(np.asarray(values, np.float32))
    return histogram


def gaussian(count: int = 20_000) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(count, dtype=np.float32)


# --- all methods


@pytest.mark.parametrize("method", RANGE_METHODS)
@unhurried
@given(values=values_of_any_sign)
def test_every_range_contains_zero_and_nothing_unseen(method, values):
    chosen = choose_range(observed(values), method, 99.9)
    assert chosen.low <= 0 <= chosen.high
    assert chosen.low >= min(0, values.min())
    assert chosen.high <= max(0, values.max())
    assert chosen.magnitude == max(-chosen.low, chosen.high)


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_tensor_of_zeros_has_an_empty_range(method, zero):
    assert choose_range(observed(np.full(100, zero)), method, 99.999) == Range(0, 0)


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_a_constant_is_kept(method):
    assert choose_range(observed(np.full(100, 0.75)), method, 99.0) == Range(0, 0.75)
    assert choose_range(observed(np.full(100, -0.75)), method, 99.0) == Range(-0.75, 0)


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_after_relu_a_range_starts_at_zero(method):
    chosen = choose_range(observed(gaussian().clip(0)), method, 99.9)
    assert chosen.low == 0
    assert chosen.high > 2


def test_all_methods_are_chosen_at_once():
    histogram, spec = observed(np.append(gaussian(), 1000)), CalibrationSpec(method="max", percentile=99.0)
    chosen = choose_ranges(histogram, spec)
    assert chosen == {method: choose_range(histogram, method, 99.0) for method in RANGE_METHODS}
    assert len(set(chosen.values())) == 3  # a single outlier of 20,000 is what mse keeps, as max does


# --- max


@unhurried
@given(values=values_of_any_sign)
def test_max_is_the_exact_range_and_zero(values):
    chosen = choose_range(observed(values), "max", 99.0)
    assert chosen == Range(min(0, float(values.min())), max(0, float(values.max())))


# --- percentile

# Magnitudes 1..1000: the range is 1024, a bin 1/4, and the bin of n ends at n + 1/4.
THOUSAND = np.arange(1, 1001)


@pytest.mark.parametrize(
    ("percentile", "high"), [(100.0, 1000.0), (99.95, 1000.0), (99.9, 999.25), (99.0, 990.25), (55.0, 550.25)]
)
def test_percentile_of_a_thousand(percentile, high):
    assert percentile_range(observed(THOUSAND), percentile) == Range(0, high)


def test_percentile_by_numpy():
    high = percentile_range(observed(THOUSAND), 99.9).high
    assert high - np.quantile(THOUSAND, 0.999, method="inverted_cdf") == 0.25  # one bin


def test_percentile_goes_by_magnitude():
    values = np.concatenate([np.arange(1, 991), [-2000.0] * 10])  # 1 % are far below zero
    assert percentile_range(observed(values), 99.0) == Range(-990.5, 990.0)
    assert percentile_range(observed(values), 99.1) == Range(-2000.0, 990.0)


@pytest.mark.parametrize("count", [100, 1000, 100_000, 1_000_000])
@pytest.mark.parametrize("percentile", ["99.9", "99.99", "99.999", "55.0", "100.0"])
def test_percentile_keeps_the_share_as_it_is_written(count, percentile):
    # So many zeros as may just be kept without the outliers, and one zero fewer.
    needed = math.ceil(Fraction(percentile) * count / 100)
    for zeros, drops in ((needed, True), (needed - 1, False)):
        histogram = observed(np.repeat(np.float32([0, 1000]), [zeros, count - zeros]))
        dropped = percentile_range(histogram, float(percentile)).high < 1
        assert dropped == (drops or count == zeros)


@unhurried
@given(values=values_of_any_sign, hundredths=st.integers(5001, 10_000))
def test_percentile_is_at_most_a_bin_above_the_exact_one(values, hundredths):
    histogram = observed(values)
    rank = math.ceil(Fraction(hundredths, 10_000) * len(values))
    exact = float(np.sort(np.abs(values))[rank - 1])
    found = percentile_range(histogram, hundredths / 100)
    assert exact <= found.magnitude <= exact + histogram.width
    assert histogram.width <= max(float(np.abs(values).max()), 2.0**-60) / 2048


@unhurried
@given(values=values_of_any_sign)
def test_percentile_100_keeps_everything(values):
    histogram = observed(values)
    assert percentile_range(histogram, 100.0) == choose_range(histogram, "max", 100.0)


# --- entropy


def test_entropy_clips_an_outlier_that_max_keeps():
    histogram = observed(np.append(gaussian(), 1000))
    assert choose_range(histogram, "max", 99.0).high == 1000
    chosen = entropy_range(histogram)
    # The threshold that one outlier of 20,000 leaves: at 128 levels of one bin each, nothing else is lost.
    assert chosen.high == LEVELS * histogram.width == 32
    assert chosen.low == gaussian().min()


def test_entropy_clips_a_negative_outlier_too():
    chosen = entropy_range(observed(np.append(gaussian(), -1000)))
    assert chosen == Range(-32, float(gaussian().max()))


def test_entropy_leaves_a_gaussian_most_of_its_range():
    chosen = entropy_range(observed(gaussian()))
    assert 3 < chosen.magnitude <= np.abs(gaussian()).max()


def test_entropy_keeps_a_uniform_distribution():
    # There is no tail: clipping anywhere piles up mass that no level stands for.
    values = np.random.default_rng(0).uniform(0, 6, 20_000)
    assert entropy_range(observed(values)).high > 5.9


def test_entropy_ignores_how_many_zeros_there_are():
    values = np.abs(gaussian())
    assert entropy_range(observed(values)) == entropy_range(observed(np.append(values, np.zeros(100_000))))


def test_entropy_keeps_what_fewer_bins_than_levels_hold():
    values = np.linspace(-1, 1, 100) * LEVELS * Histogram().width  # in the histogram's smallest range
    assert entropy_range(observed(values)) == choose_range(observed(values), "max", 99.0)


def reference_divergence(counts: list[float], bins: int) -> float:
    """KL(P || Q) by loops over levels, as Migacz's slides describe it."""
    p = [*counts[: bins - 1], counts[bins - 1] + sum(counts[bins:])]
    q = [0.0] * bins
    for level in range(LEVELS):
        start, stop = -(-level * bins // LEVELS), -(-(level + 1) * bins // LEVELS)
        members = [index for index in range(start, stop) if counts[index]]
        for index in members:
            q[index] = sum(counts[start:stop]) / len(members)
    p_sum, q_sum = math.fsum(p), math.fsum(q)
    return math.fsum(
        a / p_sum * math.log(a / p_sum / max(b / q_sum if q_sum else 0, 1e-12)) for a, b in zip(p, q, strict=True) if a
    )


@pytest.fixture(scope="module")
def skewed() -> Histogram:
    generator = np.random.default_rng(1)
    return observed(np.concatenate([generator.exponential(1, 20_000), generator.uniform(10, 60, 20)]))


def test_divergence_agrees_with_a_second_implementation(skewed):
    counts = skewed.magnitudes().astype(np.float64)
    counts[0] = 0
    last = int(np.flatnonzero(counts)[-1]) + 1
    for bins in (128, 129, 144, 255, 256, 1000, last):
        (found,) = ranges._divergences(counts, np.array([bins]))
        assert found == pytest.approx(reference_divergence(list(counts), bins), rel=1e-9)
        # The twin: without the clipped values in P, or over one bin more, it is another number.
        unclipped = np.append(counts[:bins], np.zeros(len(counts) - bins))
        assert found != pytest.approx(reference_divergence(list(unclipped), bins), rel=1e-9) or bins == last
        assert found != pytest.approx(reference_divergence(list(counts), bins + 1), rel=1e-9)


def test_entropy_takes_the_smallest_divergence(skewed):
    counts = [0.0, *map(float, skewed.magnitudes()[1:])]
    last = max(index for index, count in enumerate(counts) if count) + 1
    candidates = [*range(LEVELS, last, 16), last]
    divergences = [reference_divergence(counts, bins) for bins in candidates]
    best = candidates[divergences.index(min(divergences))]
    assert entropy_range(skewed) == Range(0, best * skewed.width)
    assert LEVELS < best < last  # neither end: the minimum was searched for


def test_a_threshold_with_nothing_inside_costs_the_most():
    counts = np.zeros(4096)
    counts[2000] = 7
    # All mass in P's last bin, where Q has none: ln(1 / 1e-12).
    assert ranges._divergences(counts, np.array([128, 2001])) == pytest.approx([math.log(1e12), 0])


# --- mse


def squared_error(values: np.ndarray, threshold: float) -> float:
    """Of symmetric INT8 on the values themselves, not on their histogram."""
    scale = threshold / 127
    quantized = np.clip(np.rint(values / scale), -127, 127) * scale
    return float(((values - quantized) ** 2).sum())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01])
def test_mse_is_the_least_that_any_threshold_leaves(share):
    generator = np.random.default_rng(2)
    body, tail = generator.standard_normal(20_000), generator.uniform(5, 25, int(20_000 * share))
    values = np.concatenate([body, tail]).astype(np.float32).astype(np.float64)
    found = mse_range(observed(values)).magnitude
    thresholds = np.linspace(1, np.abs(values).max(), 400)
    least = min(squared_error(values, threshold) for threshold in thresholds)
    # Candidates are 16 bins apart, and values stand for their bin's centre.
    assert squared_error(values, found) <= 1.02 * least
    assert squared_error(values, found / 1.5) > 1.1 * least  # the twin


def test_mse_clips_a_thin_tail_and_keeps_a_thick_one():
    generator = np.random.default_rng(3)
    body = generator.standard_normal(200_000)
    thin, thick = np.append(body, np.full(1, 12.0)), np.append(body, np.full(2_000, 12.0))
    assert mse_range(observed(thin)).high < 6
    assert mse_range(observed(thick)).high > 11.9


@pytest.mark.parametrize(("last", "clips"), [(127, False), (128, True), (199, True)])
def test_mse_searches_as_soon_as_there_are_more_bins_than_levels(last, clips):
    """In the histogram's smallest range: many values within 100 bins, and a single one in the last."""
    values = np.random.default_rng(4).uniform(0, 100, 1_000_000)
    histogram = observed(np.append(values, last + 0.5) * Histogram().width)
    assert histogram.width == Histogram().width
    assert (mse_range(histogram).high < histogram.high) == clips


# --- what a grid is expected to leave


@pytest.mark.parametrize(("low", "high", "levels"), [(-4.0, 4.0, 254), (-1.0, 1.0, 254), (0.0, 3.0, 255)])
def test_expected_decibels_are_those_of_the_values(low, high, levels):
    values = gaussian(200_000) if low < 0 else np.abs(gaussian(200_000))
    step = (high - low) / levels
    rounded = np.clip(np.rint(values / step), round(low / step), round(high / step)) * step
    exact = 10 * np.log10((values.astype(np.float64) ** 2).sum() / ((values - rounded) ** 2).sum())
    found = ranges.expected_sqnr_db(observed(values), Range(low, high), levels)
    # A bin is a sixteenth of a step at most, and stands for its centre.
    assert found == pytest.approx(exact, abs=0.3)
    assert ranges.expected_sqnr_db(observed(values), Range(low / 2, high / 2), levels) != pytest.approx(exact, abs=1)


@pytest.mark.parametrize("value", [0.7, -0.7])
def test_a_bin_stands_for_its_centre(value):
    histogram = observed(np.full(10, value))
    centre = (math.floor(abs(value) / histogram.width) + 0.5) * histogram.width

    def decibels(bound):
        """Of a grid of zero and ``bound``."""
        ends = sorted((0.0, math.copysign(bound, value)))
        return ranges.expected_sqnr_db(histogram, Range(*ends), 1)

    assert decibels(centre) == 100
    assert decibels(centre + histogram.width) < 80


def test_a_tensor_of_zeros_loses_nothing():
    assert ranges.expected_sqnr_db(observed(np.zeros(10)), Range(0, 0), 255) == 100
