"""McNemar's exact test against brute force and by hand, and the verdicts made of it."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_deploy.bench.accuracy import Flips, count_flips, mcnemar
from resnet_deploy.bench.intervals import Interval
from resnet_deploy.bench.verdicts import accuracy_verdict, hides, slowdown_verdict, speed_verdict


class TestMcNemar:
    @pytest.mark.parametrize(
        ("gained", "lost", "expected"),
        # By hand: 2 (1 + 10) / 1024; 2 / 32; at evens more than half on either side is everything.
        [(0, 0, 1.0), (1, 9, 22 / 1024), (5, 0, 2 / 32), (3, 3, 1.0), (2, 3, 1.0), (0, 1, 1.0)],
    )
    def test_by_hand(self, gained, lost, expected):
        assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-12)

    @given(st.integers(0, 7), st.integers(0, 7))
    def test_is_what_going_through_all_outcomes_gives(self, gained, lost):
        """Each image that flipped may have gone either way: count the outcomes that are at least as uneven."""
        flipped = gained + lost
        outcomes = [sum(signs) for signs in itertools.product((1, -1), repeat=flipped)]
        extreme = sum(abs(total) >= abs(gained - lost) for total in outcomes) / len(outcomes)
        assert mcnemar(gained, lost) == pytest.approx(extreme, rel=1e-12)
        assert mcnemar(gained, lost) == mcnemar(lost, gained)

    def test_of_a_whole_data_set_is_the_normal_approximation(self):
        # 50 000 images, a thousand flips: the corrected z of 530 against 470 is 1.866, two-sided 0.0621.
        z = (530 - 470 - 1) / math.sqrt(1000)
        assert mcnemar(530, 470) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.02)
        assert mcnemar(600, 400) < 1e-9
        assert mcnemar(30_000, 20_000) == 0.0  # below the smallest float, and no overflow on the way

    def test_flips_are_counted_by_image(self):
        before, after = [True, True, False, False, True], [True, False, True, False, False]
        assert count_flips(before, after) == Flips(1, 2, 1.0)
        # The shares alone, 3 of 5 against 2 of 5, do not tell how many flipped.
        assert count_flips([True] * 3 + [False] * 2, [True] * 2 + [False] * 3) == Flips(0, 1, 1.0)


class TestVerdicts:
    def test_of_answers(self):
        assert accuracy_verdict(Flips(0, 6, mcnemar(0, 6))) == "worse"
        assert accuracy_verdict(Flips(6, 0, mcnemar(6, 0))) == "better"
        assert accuracy_verdict(Flips(0, 5, mcnemar(0, 5))) == "no significant difference"
        # The more engines are compared, the rarer must be what is called a difference.
        assert accuracy_verdict(Flips(0, 6, mcnemar(0, 6)), level=0.05 / 3) == "no significant difference"

    @pytest.mark.parametrize(
        ("low", "high", "speed", "slowdown"),
        [
            (1.01, 1.2, "faster", "worse"),
            (0.8, 0.99, "slower", "better"),
            (0.99, 1.01, "no significant difference", "no significant difference"),
            (1.0, 1.2, "no significant difference", "no significant difference"),
        ],
    )
    def test_of_intervals(self, low, high, speed, slowdown):
        interval = Interval((low + high) / 2, low, high)
        assert speed_verdict(interval) == speed
        assert slowdown_verdict(interval) == slowdown

    @pytest.mark.parametrize(
        ("interval", "hidden"),
        [
            ((1.0, 0.99, 1.01), False),  # rules out 5 %
            ((1.0, 0.9, 1.1), True),
            ((0.667, 0.002, 289.0), True),
            ((0.93, 0.88, 1.06), True),  # 6 % slower is within it, and 6 % would hide in its width
            ((1.02, 0.99, 1.06), False),  # 5 % slower would have shown: 1.05 times 0.99 over 1.02 is above 1
            ((0.9, 0.7, 1.04), False),  # wide, but all of it below
            ((1.0, 0.0, math.inf), True),
        ],
    )
    def test_of_no_difference(self, interval, hidden):
        assert hides(Interval(*interval), 0.05) is hidden
        assert not hides(Interval(*interval), 0.0)

    def test_few_rounds_have_none(self):
        assert speed_verdict(Interval(2.0, 0.0, math.inf)) == "too few rounds for a verdict"
