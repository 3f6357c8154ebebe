"""mcnemar.py against values worked by hand and the definition, summed the other way round."""

from math import comb

import pytest

from resnet_deploy.bench.mcnemar import Flips, count_flips


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    [
        (0, 0, 1.0),
        (0, 1, 1.0),  # 2 * 1/2
        (0, 5, 2 / 32),
        (1, 5, 2 * (1 + 6) / 64),
        (3, 3, 1.0),  # twice 42/64, cut at 1
        (2, 8, 2 * (1 + 10 + 45) / 1024),
    ],
)
def test_worked_by_hand(gained, lost, p_value):
    assert Flips(gained, lost).p_value == p_value
    assert Flips(lost, gained).p_value == p_value


def test_is_the_chance_of_so_uneven_a_pair():
    for gained in range(12):
        for lost in range(12):
            total, uneven = gained + lost, abs(gained - lost)
            ways = sum(comb(total, count) for count in range(total + 1) if abs(total - 2 * count) >= uneven)
            assert Flips(gained, lost).p_value == ways / 2**total


def test_counts_of_a_large_set_do_not_overflow():
    assert 0 < Flips(2000, 2200).p_value < 0.01
    assert Flips(0, 5000).p_value == 0.0  # below the smallest number


def test_counts_the_images_of_which_one_is_right():
    before, after = [True, True, False, False, True], [True, False, True, False, False]
    assert count_flips(before, after) == Flips(gained=1, lost=2)
    with pytest.raises(ValueError, match="shorter"):
        count_flips(before, after[1:])
