"""Intervals of shifts against brute force, known tables and simulated coverage."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_deploy.bench.shifts import _MOST_PAIRS, critical_count, shift_interval

unhurried = settings(deadline=None, max_examples=60)  # other work may share the machine
values = st.lists(st.integers(-50, 50), min_size=1, max_size=6)


def chance_of_u_below(m, n, count):
    """P(U < count) by going through all orders."""
    orders = list(itertools.combinations(range(m + n), m))
    below = sum(sum(rank - place for place, rank in enumerate(order)) < count for order in orders)
    return below / len(orders)


class TestCriticalCount:
    @pytest.mark.parametrize(
        ("m", "n", "level", "critical"),
        # Critical values of U, two-sided, from the printed tables: one less than what is counted off.
        [
            (5, 5, 0.05, 2),
            (8, 8, 0.05, 13),
            (10, 10, 0.05, 23),
            (20, 20, 0.05, 127),
            (5, 8, 0.05, 6),
            (10, 10, 0.01, 16),
        ],
    )
    def test_is_that_of_the_tables(self, m, n, level, critical):
        assert critical_count(m, n, level) == critical + 1

    @pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 5), (4, 4), (5, 3), (5, 6)])
    @pytest.mark.parametrize("level", [0.4, 0.1, 0.05, 0.01])
    def test_is_the_largest_that_brute_force_allows(self, m, n, level):
        count = critical_count(m, n, level)
        assert chance_of_u_below(m, n, count) <= level / 2
        assert chance_of_u_below(m, n, count + 1) > level / 2

    def test_is_none_where_no_order_is_rare_enough(self):
        # Two of the 20 orders are the extremes.
        assert critical_count(3, 3, 0.1) == 1
        assert critical_count(3, 3, 0.099) == 0

    def test_of_many_is_close_to_the_exact_one(self):
        exact, approximate = critical_count(50, 50, 0.05), critical_count(50, 51, 0.05)
        assert 50 * 50 <= _MOST_PAIRS < 50 * 51
        # One value more shifts it by about 25 of 2500; a spread forgotten would be off by hundreds.
        assert 0 < approximate - exact < 40


class TestShiftInterval:
    @unhurried
    @given(values, values, st.integers(-100, 100))
    def test_moves_with_the_values_and_turns_with_their_order(self, before, after, by):
        one, other = np.array(before, float), np.array(after, float)
        plain = shift_interval(one, other, 0.4)
        moved, turned = shift_interval(one, other + by, 0.4), shift_interval(other, one, 0.4)
        assert (moved.value, moved.low, moved.high) == (plain.value + by, plain.low + by, plain.high + by)
        assert (-turned.value, -turned.high, -turned.low) == (plain.value, plain.low, plain.high)
        assert plain.low <= plain.value <= plain.high

    def test_by_hand(self):
        # Differences 1 2 3, 4 5 6 and 9 10 11; with one counted off at 3 and 3 values and a level of 0.1: all of them.
        found = shift_interval(np.array([0.0, 1.0, 2.0]), np.array([3.0, 6.0, 11.0]), 0.1)
        assert (found.value, found.low, found.high) == (5.0, 1.0, 11.0)

    def test_few_values_give_an_infinite_interval_not_a_narrow_one(self):
        found = shift_interval(np.zeros(3), np.ones(3), 0.05)
        assert (found.value, found.low, found.high) == (1.0, -math.inf, math.inf)

    def test_a_value_far_off_moves_nothing(self):
        rng = np.random.default_rng(0)
        before, after = rng.normal(0, 1, 20), rng.normal(3, 1, 20)
        spoilt = after.copy()
        spoilt[np.argmax(spoilt)] = 1e6
        assert shift_interval(before, spoilt, 0.05).high == pytest.approx(
            shift_interval(before, after, 0.05).high, abs=0.3
        )
        assert spoilt.mean() - before.mean() > 1000

    @pytest.mark.parametrize("skew", [False, True], ids=["normal", "log-normal"])
    def test_misses_as_rarely_as_it_says(self, skew):
        rng = np.random.default_rng(1)
        missed = wrong = 0
        for _ in range(400):
            before, after = rng.normal(0, 1, 12), rng.normal(0, 1, 12)
            if skew:
                before, after = np.exp(before), np.exp(after)
            found = shift_interval(before, after + 1, 0.05)
            missed += not found.low <= 1 <= found.high
            wrong += not found.low <= 0 <= found.high
        # 5 % of 400 are 20; 34 is three standard deviations above.
        assert missed <= 34
        assert wrong > 100
