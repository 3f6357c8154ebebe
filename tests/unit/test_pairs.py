"""Paired intervals against brute force, printed tables and simulated runs of engines that do not differ."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_factory import make_samples

from resnet_deploy.bench.pairs import _MOST_EXACT, paired_interval, signed_rank_count, speedup_interval
from resnet_deploy.bench.verdicts import speed_verdict

unhurried = settings(deadline=None, max_examples=60)  # other work may share the machine


def chance_of_rank_sum_below(n, count):
    """P(W < count) by going through all signs."""
    signs = itertools.product((0, 1), repeat=n)
    return sum(sum(rank * sign for rank, sign in enumerate(one, 1)) < count for one in signs) / 2**n


class TestCount:
    @pytest.mark.parametrize(
        ("n", "level", "critical"),
        # Critical values of Wilcoxon's T, two-sided, from the printed tables: one less than what is counted off.
        [(6, 0.05, 0), (8, 0.05, 3), (10, 0.05, 8), (20, 0.05, 52), (25, 0.05, 89), (10, 0.01, 3), (20, 0.01, 37)],
    )
    def test_is_that_of_the_tables(self, n, level, critical):
        assert signed_rank_count(n, level) == critical + 1

    @pytest.mark.parametrize("n", [1, 2, 5, 7, 11])
    @pytest.mark.parametrize("level", [0.4, 0.1, 0.05, 0.01])
    def test_is_the_largest_that_brute_force_allows(self, n, level):
        count = signed_rank_count(n, level)
        assert chance_of_rank_sum_below(n, count) <= level / 2
        assert chance_of_rank_sum_below(n, count + 1) > level / 2

    def test_of_many_is_close_to_the_exact_one(self):
        exact, approximate = signed_rank_count(_MOST_EXACT, 0.05), signed_rank_count(_MOST_EXACT + 1, 0.05)
        # Another pair shifts it by about 25 of 1830; a spread forgotten would be off by hundreds.
        assert 0 < approximate - exact < 40


class TestInterval:
    def test_by_hand(self):
        # Of 0, 2 and 10 the averages are 0 1 2 5 6 10; at a level of 0.25 one is counted off: all signs alike, 2 of 8.
        found = paired_interval(np.array([2.0, 0.0, 10.0]), 0.25)
        assert (found.value, found.low, found.high) == (3.5, 0.0, 10.0)

    def test_few_pairs_give_an_infinite_interval_not_a_narrow_one(self):
        few, enough = (paired_interval(np.ones(n), 0.05) for n in (5, 6))
        assert (few.value, few.low, few.high) == (1.0, -math.inf, math.inf)
        assert (enough.value, enough.low, enough.high) == (1.0, 1.0, 1.0)

    @unhurried
    @given(st.lists(st.integers(-50, 50), min_size=1, max_size=9), st.integers(-100, 100))
    def test_moves_with_the_values_turns_with_their_sign_and_holds_its_value(self, values, by):
        differences = np.array(values, float)
        plain = paired_interval(differences, 0.4)
        moved, turned = paired_interval(differences + by, 0.4), paired_interval(-differences, 0.4)
        assert (moved.value, moved.low, moved.high) == (plain.value + by, plain.low + by, plain.high + by)
        assert (-turned.value, -turned.high, -turned.low) == (plain.value, plain.low, plain.high)
        assert plain.low <= plain.value <= plain.high


def draw(rng, call_s, slowdowns, *, batch=1, own=0.0):
    """Ten calls in each round, slowed down by what slows the round down and by noise of the engine's own."""
    of_round = call_s * slowdowns * np.exp(rng.normal(0, own, len(slowdowns)))
    seconds = [float(s * rng.uniform(1.0, 1.02)) for s in of_round for _ in range(10)]
    return make_samples(batch, seconds, [number for number in range(len(slowdowns)) for _ in range(10)])


class TestSpeedup:
    def test_covers_the_known_ratio_in_most_repetitions(self):
        repetitions, ratio = 200, 1.5
        rng = np.random.default_rng(5)
        missed = found = 0
        for _ in range(repetitions):
            slowdowns = rng.uniform(1.0, 1.5, 20)
            pair = draw(rng, 0.015, slowdowns, own=0.05), draw(rng, 0.010, slowdowns, own=0.05)
            interval = speedup_interval(*pair, 0.05)
            missed += not interval.low <= ratio <= interval.high
            found += interval.low > 1
        # 5 % of 200 are 10; 19 is three standard deviations above.
        assert 0 < missed <= 19
        assert found == repetitions

    def test_compares_images_not_calls(self):
        rounds = [0] * 2
        interval = speedup_interval(make_samples(1, [0.2, 0.2], rounds), make_samples(8, [0.4, 0.4], rounds), 0.05)
        assert interval.value == pytest.approx(4.0)
        assert (interval.low, interval.high) == (0.0, math.inf)

    def test_slowdowns_shared_by_a_round_cancel(self):
        rng = np.random.default_rng(1)
        slowdowns = rng.uniform(1.0, 3.0, 20)
        reference = draw(rng, 0.02, slowdowns)
        paired = speedup_interval(reference, draw(rng, 0.01, slowdowns), 0.05)
        shuffled = speedup_interval(reference, draw(rng, 0.01, rng.permutation(slowdowns)), 0.05)
        assert paired.high - paired.low < 0.02
        assert shuffled.high - shuffled.low > 0.2

    def test_only_common_rounds_count(self):
        rng = np.random.default_rng(2)
        slowdowns = rng.uniform(1.0, 1.5, 20)
        whole, part = draw(rng, 0.02, slowdowns), draw(rng, 0.01, slowdowns[:12])
        first = make_samples(1, whole.seconds[:120], whole.rounds[:120])
        assert speedup_interval(whole, part, 0.05) == speedup_interval(first, part, 0.05)
        assert speedup_interval(make_samples(1, [0.1], [0]), make_samples(1, [0.1], [1]), 0.05) is None

    @pytest.mark.parametrize("rounds", [10, 20])
    def test_engines_that_do_not_differ_are_seldom_told_apart(self, rounds):
        """Three engines are the reference's equals, with 5 % of noise between rounds: no verdict is right."""
        repetitions, engines = 400, 3
        rng = np.random.default_rng(rounds)
        wrong = wrong_by_bootstrap = 0
        for _ in range(repetitions):
            slowdowns = rng.uniform(1.0, 1.5, rounds)
            reference, *equals = (draw(rng, 0.01, slowdowns, own=0.05) for _ in range(1 + engines))
            verdicts = [speed_verdict(speedup_interval(reference, one, 0.05 / engines)) for one in equals]
            assert "too few rounds for a verdict" not in verdicts
            wrong += set(verdicts) != {"no significant difference"}
            wrong_by_bootstrap += any(not low <= 1 <= high for low, high in bootstrap(rng, reference, equals))
        # 5 % of 400 are 20; 33 is three standard deviations above.
        assert wrong <= 33
        # What resampling the rounds for each engine by itself would call different.
        assert wrong_by_bootstrap > 45


def bootstrap(rng, reference, equals, resamples=300):
    """95 % intervals of each ratio of totals from resampled rounds."""
    picks = rng.integers(0, len(set(reference.rounds)), size=(resamples, len(set(reference.rounds))))
    totals = [np.reshape(one.seconds, (-1, 10)).sum(1)[picks].sum(1) for one in (reference, *equals)]
    return [tuple(np.quantile(totals[0] / one, [0.025, 0.975])) for one in totals[1:]]
