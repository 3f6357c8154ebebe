"""Two sets of logits in, numbers out; every number here is worked by hand."""

import math

import numpy as np
import pytest

from resnet_deploy.verify import best_classes, compare_logits

REFERENCE = np.array([[3.0, 4.0, 0.0], [1.0, 2.0, 2.0], [0.0, 0.0, 6.0]], np.float32)


def test_figures_worked_by_hand():
    candidate = np.array([[3.0, 4.0, 1.0], [3.0, 2.0, 1.0], [0.0, 0.0, 6.0]], np.float32)
    difference = compare_logits(REFERENCE, candidate)
    # Best classes: 1 and 1; 1 (the first of two equal) and 0; 2 and 2.
    assert difference.agreement == pytest.approx(2 / 3, abs=1e-15)  # one division
    np.testing.assert_array_equal(difference.noise, [1, 5, 0])
    np.testing.assert_array_equal(difference.signal, [25, 9, 36])
    np.testing.assert_array_equal(difference.max_difference, [1, 2, 0])
    assert difference.sqnr_db == pytest.approx(10 * math.log10(70 / 6), abs=1e-12)  # one logarithm


def test_equal_logits():
    difference = compare_logits(REFERENCE, REFERENCE.copy())
    assert difference.agreement == 1
    assert difference.sqnr_db == math.inf
    assert not difference.max_difference.any()


def test_sums_are_in_double_precision():
    reference = np.full((1, 3), 1e30, np.float32)  # its square overflows float32
    difference = compare_logits(reference, reference * np.float32(1.5))
    assert np.isfinite(difference.noise).all()
    assert difference.sqnr_db == pytest.approx(10 * math.log10(4), abs=1e-5)  # 1e30 and 1.5e30 are rounded to float32


def test_order_of_the_two_matters():
    """A twin: figures relative to the candidate would be other ones."""
    candidate = REFERENCE * 2
    assert compare_logits(REFERENCE, candidate).sqnr_db == pytest.approx(0, abs=1e-12)
    assert compare_logits(candidate, REFERENCE).sqnr_db == pytest.approx(10 * math.log10(4), abs=1e-12)


@pytest.mark.parametrize("side", ["reference", "candidate", "both"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logit_that_is_not_finite_disagrees(side, value):
    """Though the best class is the same one on both sides, and the other images are not touched."""
    sides = {"reference": REFERENCE.copy(), "candidate": REFERENCE.copy()}
    for name, logits in sides.items():
        if side in (name, "both"):
            logits[0, 1] = value
    difference = compare_logits(sides["reference"], sides["candidate"])
    assert difference.agreement == pytest.approx(2 / 3, abs=1e-15)
    assert not np.isfinite(difference.noise[0])
    assert not np.isfinite(difference.max_difference[0])
    np.testing.assert_array_equal(difference.noise[1:], [0, 0])
    assert not difference.sqnr_db > -math.inf


def test_reference_of_zeros_is_drowned_by_any_difference():
    zeros = np.zeros((1, 3), np.float32)
    assert compare_logits(zeros, zeros + 1).sqnr_db == -math.inf
    assert compare_logits(zeros, zeros).sqnr_db == math.inf


def test_integers_do_not_wrap():
    reference, candidate = np.array([[0, 200]], np.uint8), np.array([[255, 0]], np.uint8)
    np.testing.assert_array_equal(compare_logits(reference, candidate).max_difference, [255])


def test_best_classes_in_order():
    logits = np.array([[0.1, 0.9, 0.5], [3.0, -1.0, 2.0]], np.float32)
    np.testing.assert_array_equal(best_classes(logits), [[1, 2, 0], [0, 2, 1]])
    np.testing.assert_array_equal(best_classes(logits, 1), [[1], [0]])
    assert best_classes(logits, 7).shape == (2, 3)
    assert best_classes(np.zeros((0, 4)), 2).shape == (0, 2)


def test_lower_class_wins_a_tie():
    many = np.zeros((1, 100), np.float32)
    many[0, [40, 17, 93]] = 1
    np.testing.assert_array_equal(best_classes(many), [[17, 40, 93, 0, 1]])


def test_no_class_is_best_by_not_being_a_number():
    np.testing.assert_array_equal(best_classes(np.array([[math.nan, 1, 2]])), [[2, 1, 0]])


def test_unsigned_logits_are_not_negated_around():
    np.testing.assert_array_equal(best_classes(np.array([[0, 3, 1]], np.uint8)), [[1, 2, 0]])


@pytest.mark.parametrize("classes", [1, 5, 40])
def test_picking_the_best_is_sorting(classes):
    """Of small whole numbers, so that there are ties everywhere."""
    logits = np.random.default_rng(classes).integers(-3, 3, (200, classes)).astype(np.float32)
    for count in (1, 5, 8, 9):
        expected = np.argsort(-logits, axis=1, kind="stable")[:, :count]
        np.testing.assert_array_equal(best_classes(logits, count), expected)
    if classes > 5:
        unstable = np.argsort(logits, axis=1, kind="stable")[:, ::-1][:, :5]  # of equals the higher class
        assert (best_classes(logits) != unstable).any()
