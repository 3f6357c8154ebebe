"""When a step diverges, what a rung's sums come to, and what a ladder is held to."""

import math

import numpy as np
import pytest

from resnet_deploy.errors import AccuracyError, SpecError
from resnet_deploy.parity import FLOOR_DB, MARGIN_DB, Ladder, Limits, Rung, Step, Tally, first_divergence

EXACT = 1e-9  # double precision, and a logarithm


# --- steps


@pytest.mark.parametrize(
    ("alone_db", "expected_db", "diverges"),
    [
        (30.0, 30.0 + MARGIN_DB + 0.5, True),
        (30.0, 30.0 + MARGIN_DB - 0.5, False),
        (FLOOR_DB - 0.5, FLOOR_DB, True),  # as expected, and useless
        (FLOOR_DB + 0.5, FLOOR_DB, False),
        (math.inf, math.inf, False),
        (-math.inf, 40.0, True),
    ],
)
def test_a_step_diverges_by_margin_or_floor(alone_db, expected_db, diverges):
    # What has piled up before is no step's own doing.
    assert Step("conv1", "weights", alone_db, -20.0, expected_db).diverges == diverges


SOUND, BAD, LATER = (
    Step(*one) for one in (("a", "weights", 40, 40, 40), ("b", "grid", 3, 3, 40), ("c", "grid", 0, 0, 9))
)


def test_the_first_in_order_is_named():
    assert first_divergence([SOUND, BAD, LATER]) == BAD
    assert first_divergence([SOUND]) is None


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (Step("fc", "weights", 12.34, 0.0, 40.0), "fc: its weights alone leave 12.3 dB of 40.0 to be expected"),
        (
            Step("a", "grid", 3.0, 0.0, 41.0, clipped=0.125),
            "a: the 8-bit grid of its result alone leaves 3.0 dB of 41.0 to be expected, clipping 12.50% of the values",
        ),
        (Step("add", "arithmetic", 9.0, 0.0, 60.0), "add: its arithmetic alone leaves 9.0 dB of 60.0 to be expected"),
    ],
)
def test_a_step_says_what_it_loses(step, said):
    assert str(step) == said


# --- rungs


def test_sums_over_batches_are_the_figures_of_all_images():
    first = np.array([[3.0, 4.0], [0.0, 10.0]], np.float32)
    own = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)
    tally = Tally("engine")
    for row in range(2):
        one = slice(row, row + 1)
        tally.add(own[one], first[one], own[one], np.array([1]))
    rung = tally.rung(is_first=False)
    # The second image's best class is another; it was labelled 1.
    assert (rung.name, rung.top1, rung.agreement, rung.step_db) == ("engine", 0.5, 0.5, math.inf)
    # Signal 9 + 16 + 100; noise 1 + 100.
    assert rung.sqnr_db == pytest.approx(10 * math.log10(125 / 101), abs=EXACT)


def test_the_first_rung_is_compared_with_nothing():
    tally, logits = Tally("PyTorch"), np.ones((1, 2), np.float32)
    tally.add(logits, logits, logits, None)
    assert tally.rung(is_first=True) == Rung("PyTorch")


# --- limits


def ladder(*rungs, steps=(SOUND,)):
    return Ladder("net", "resnet18 int8", "3 images", (), (Rung("PyTorch", 0.9), *rungs), tuple(steps), 3)


GOOD = Rung("lowered", 0.895, 0.99, 30.0, 30.0)


def test_limits_that_are_kept_say_nothing():
    for limits in (Limits(), Limits(min_sqnr_db=30.0), Limits(max_drop=0.5), Limits(min_sqnr_db=-3, max_drop=1)):
        limits.require(ladder(GOOD, Rung("engine", not_run="no GPU")))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(min_sqnr_db=30.1), r"engine: SQNR 30\.0 dB against PyTorch, less than --min-sqnr 30\.1"),
        (Limits(max_drop=0.4), r"engine: top-1 is 0\.50 points below PyTorch, more than --max-drop 0\.4"),
    ],
)
def test_the_first_rung_that_misses_is_named_with_the_layer(limits, message):
    better, worse = Rung("lowered", 0.9, 1.0, 40.0, 40.0), Rung("engine", 0.895, 0.99, 30.0, 30.0)
    with pytest.raises(AccuracyError, match=message) as refused:
        limits.require(ladder(better, worse, steps=[SOUND, BAD]))
    assert refused.value.hint.startswith("the first layer to diverge is b: the 8-bit grid of its result")
    with pytest.raises(AccuracyError, match=message) as refused:
        limits.require(ladder(better, worse))
    assert "no layer diverges" in refused.value.hint


@pytest.mark.parametrize("values", [{"min_sqnr_db": math.nan}, {"max_drop": -1}, {"max_drop": math.nan}])
def test_limits_that_are_none_are_refused(values):
    with pytest.raises(SpecError):
        Limits(**values)


# --- the extremes


def test_costliest_and_lowest_are_different_things():
    steps = (Step("a", "grid", 20, 30, 25), Step("b", "weights", 35, 12, 40))
    found = ladder(GOOD, steps=steps)
    assert (found.costliest.layer, found.lowest.layer, found.diverging) == ("a", "b", None)
