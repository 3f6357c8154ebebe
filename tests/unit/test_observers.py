"""The streaming histogram: whatever the order, the batches and the observers, the same values give the same state.

Bit for bit, by its digest, for values from the smallest denormal to the largest float32; and against a second
implementation in exact fractions.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from resnet_deploy.quantize.counting import BINS, HALF
from resnet_deploy.quantize.observers import Histogram

unhurried = settings(deadline=None)  # other work may share the machine

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = math.ldexp(1.0, -149)  # the smallest denormal


def neighbours(power: float) -> list[float]:
    """The value, and the float32 values next to it on either side."""
    value = np.float32(power)
    return [float(value), float(np.nextafter(value, np.float32(0))), float(np.nextafter(value, np.float32(np.inf)))]


powers = (
    st.integers(-149, 127)
    .map(lambda exponent: math.ldexp(1.0, exponent))
    .flatmap(lambda power: st.sampled_from(neighbours(power)))
)
magnitudes = st.one_of(
    powers,
    st.floats(0, 4, width=32),  # as activations are
    st.floats(0, LARGEST, width=32),
    st.sampled_from([0.0, SMALLEST, 1.0, LARGEST]),
)
numbers = st.builds(math.copysign, magnitudes, st.sampled_from([1.0, -1.0]))  # -0.0 too
chunks = st.lists(numbers, min_size=1, max_size=12).map(lambda values: np.array(values, np.float32))
batches = st.lists(chunks, min_size=1, max_size=6)


def observed(*arrays: np.ndarray) -> Histogram:
    histogram = Histogram()
    for array in arrays:
        histogram.update(array)
    return histogram


def exact_state(values: list[float]) -> tuple[int, dict[int, int]]:
    """The range's exponent and the bins' counts, from fractions of unlimited precision."""
    exponent = -60
    while any(abs(Fraction(value)) >= Fraction(2) ** exponent for value in values):
        exponent += 1
    counts: dict[int, int] = {}
    for value in values:
        index = math.trunc(Fraction(value) / Fraction(2) ** exponent * HALF) + HALF
        counts[index] = counts.get(index, 0) + 1
    return exponent, counts


# --- what is counted


@unhurried
@given(arrays=batches)
def test_counts_agree_with_exact_fractions(arrays):
    values = [float(value) for array in arrays for value in array]
    histogram = observed(*arrays)
    exponent, counts = exact_state(values)
    assert histogram.exponent == exponent
    assert {int(index): int(histogram.counts[index]) for index in np.flatnonzero(histogram.counts)} == counts


def test_counts_by_hand():
    # The largest magnitude is 3, so the range is (-4, 4) and a bin is 1/1024 wide.
    histogram = observed(np.array([-3, -1 / 1024, -1 / 2048, 0, 1 / 2048, 1 / 1024, 2.9999], np.float32))
    expected = {-3072: 1, -1: 1, 0: 3, 1: 1, 3071: 1}
    assert {int(index) - HALF: int(histogram.counts[index]) for index in np.flatnonzero(histogram.counts)} == expected
    assert (histogram.exponent, histogram.width) == (2, 1 / 1024)


@unhurried
@given(arrays=batches)
def test_extremes_are_exact_and_every_value_is_counted(arrays):
    histogram = observed(*arrays)
    values = np.concatenate(arrays)
    assert (histogram.low, histogram.high) == (float(values.min()), float(values.max()))
    assert histogram.total == len(values) == histogram.magnitudes().sum()


def test_magnitudes_fold_the_negative_half_onto_the_positive():
    histogram = observed(np.array([-3.5, 3.5, 0.25, -0.5005, -0.0001, 0.0], np.float32))
    folded = {int(index): int(count) for index, count in enumerate(histogram.magnitudes()) if count}
    assert folded == {0: 2, 256: 1, 512: 1, 3584: 2}


def test_any_shape_and_layout():
    values = np.random.default_rng(0).standard_normal((2, 3, 4, 5), dtype=np.float32)
    assert observed(values).digest == observed(values.transpose(3, 1, 0, 2)).digest == observed(values.ravel()).digest


@unhurried
@given(values=chunks)
def test_observing_leaves_the_values_alone(values):
    before = values.tobytes()
    observed(values)
    assert values.tobytes() == before


def test_counts_beyond_32_bits():
    histogram = observed(np.ones(1, np.float32))
    histogram.counts *= 2**40
    histogram.merge(observed(np.ones(3, np.float32), np.full(1, 100, np.float32)))
    assert histogram.total == 2**40 + 4


# --- the state depends on the set of values alone


@unhurried
@given(values=chunks, data=st.data())
def test_order_does_not_matter(values, data):
    shuffled = np.array(data.draw(st.permutations(list(values))), np.float32)
    assert observed(shuffled).digest == observed(values).digest


@unhurried
@given(arrays=batches, data=st.data())
def test_neither_do_batches_nor_their_order(arrays, data):
    whole = np.concatenate(arrays)
    one_by_one = data.draw(st.permutations([whole[index : index + 1] for index in range(len(whole))]))
    assert observed(whole).digest == observed(*arrays).digest == observed(*one_by_one).digest


@unhurried
@given(arrays=batches, cut=st.integers(0, 6))
def test_merging_is_as_if_one_had_seen_it_all(arrays, cut):
    left, right = observed(*arrays[:cut]), observed(*arrays[cut:])
    other_way_round = observed(*arrays[cut:])
    other_way_round.merge(left)
    untouched = right.digest
    left.merge(right)
    assert left.digest == other_way_round.digest == observed(*arrays).digest
    assert right.digest == untouched


@pytest.mark.parametrize("huge", [1.0, LARGEST])
@pytest.mark.parametrize("tiny", [-SMALLEST, -1e-30, SMALLEST, 1e-30])
def test_a_tiny_value_beside_a_huge_one_is_in_the_bin_of_zero(tiny, huge):
    first, second = np.array([tiny], np.float32), np.array([huge], np.float32)
    for histogram in (observed(first, second), observed(second, first), observed(np.concatenate([second, first]))):
        assert histogram.counts[HALF] == 1
        assert histogram.digest == observed(first, second).digest


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(FloatingPointError):
        observed(np.array([1.0, value], np.float32))


def test_large_tensors_are_counted_in_pieces():
    values = np.random.default_rng(1).standard_normal(500_001, dtype=np.float32)
    values[-1] = 100  # the range doubles in the last piece
    index = np.trunc(values.astype(np.float64) / 2.0**7 * HALF).astype(int) + HALF
    assert (observed(values).counts == np.bincount(index, minlength=BINS)).all()


def test_negative_zero_is_zero():
    digests = {
        observed(np.array(values, np.float32)).digest for values in ([0.0, -0.0], [-0.0, 0.0], [0.0, 0.0], [-0.0, -0.0])
    }
    assert len(digests) == 1


# --- and another set gives another state


@unhurried
@given(values=chunks, more=numbers)
def test_one_more_value_changes_the_digest(values, more):
    assert observed(values, np.array([more], np.float32)).digest != observed(values).digest


@unhurried
@given(values=chunks, index=st.integers(0, 11), bins=st.integers(2, 50))
def test_a_value_moved_by_two_bins_changes_the_digest(values, index, bins):
    moved = values.astype(np.float64)
    moved[index % len(values)] += bins * observed(values).width
    assume(moved.max() <= LARGEST)
    moved = moved.astype(np.float32)
    assert observed(moved).digest != observed(values).digest


@unhurried
@given(values=chunks)
def test_the_largest_value_moved_within_its_bin_changes_the_digest(values):
    moved = values.copy()
    largest = int(np.argmax(values))
    assume(values[largest] > -LARGEST)
    moved[largest] = np.nextafter(values[largest], np.float32(-np.inf))
    assume(moved.max() != values.max())
    assert observed(moved).digest != observed(values).digest


# --- constant memory


def test_the_state_does_not_grow():
    histogram, generator = Histogram(), np.random.default_rng(0)
    before = {name: np.array(value).nbytes for name, value in vars(histogram).items()}
    for exponent in range(-149, 128, 4):  # the range doubles from its smallest to its largest
        histogram.update(np.ldexp(generator.uniform(-1, 1, 1000), exponent).astype(np.float32))
    assert {name: np.array(value).nbytes for name, value in vars(histogram).items()} == before
    assert (histogram.counts.dtype, histogram.counts.shape) == (np.int64, (BINS,))
    assert histogram.total == 70 * 1000


def test_a_fresh_histogram_has_seen_nothing():
    histogram = Histogram()
    histogram.merge(Histogram())
    assert (histogram.total, histogram.low, histogram.high) == (0, math.inf, -math.inf)
    assert histogram.digest == Histogram().digest
    assert histogram.counts is not Histogram().counts
