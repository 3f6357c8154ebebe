"""The search for the highest rate, on engines whose capacity is known."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_deploy.bench.loadgen_search import _Seen, find_peak

TOLERANCE = 0.02


class Engine:
    """Holds every rate up to its capacity; where ``wrong`` says so, it does the contrary."""

    def __init__(self, capacity, wrong=lambda rate: False):
        self.capacity, self.wrong, self.tried = capacity, wrong, []

    def __call__(self, rate):
        held = (rate <= self.capacity) != self.wrong(rate)
        self.tried.append((rate, held))
        return held


@given(st.floats(1e-3, 1e6), st.floats(0.05, 20))
def test_finds_the_capacity_from_wherever_it_starts(capacity, factor):
    engine = Engine(capacity)
    found = find_peak(engine, capacity * factor, tolerance=TOLERANCE, most=40)
    assert found.rate <= capacity < found.rate * (1 + TOLERANCE)
    assert found.reason == ""


def test_both_ends_are_tried_twice_in_succession():
    engine = Engine(100.0)
    found = find_peak(engine, 30.0, tolerance=TOLERANCE, most=40)
    assert [held for rate, held in engine.tried if rate == found.rate] == [True, True]
    above = min(rate for rate, held in engine.tried if not held)
    assert above <= found.rate * (1 + TOLERANCE)
    assert [held for rate, held in engine.tried if rate == above] == [False, False]
    assert len(engine.tried) < 15


def test_one_slow_minute_does_not_cost_half_the_rate():
    """The first rate fails though it is far below the capacity; what holds above it later overrules that."""
    calls = iter([True])
    engine = Engine(100.0, wrong=lambda rate: next(calls, False))
    found = find_peak(engine, 50.0, tolerance=TOLERANCE, most=60)
    assert engine.tried[0] == (50.0, False)
    assert found.rate <= 100 < found.rate * (1 + TOLERANCE) ** 2


def test_one_lucky_minute_does_not_count():
    """A rate far above the capacity holds once."""
    calls = iter([False, True])
    engine = Engine(100.0, wrong=lambda rate: next(calls, False))
    found = find_peak(engine, 80.0, tolerance=TOLERANCE, most=60)
    assert engine.tried[1] == (160.0, True)
    assert found.rate <= 100 < found.rate * (1 + TOLERANCE) ** 2


@pytest.mark.parametrize("seed", range(20))
def test_on_a_noisy_machine_what_is_found_has_held_twice_in_succession(seed):
    generator = random.Random(seed)

    def wrong(rate):  # the nearer to the capacity, the more often
        return generator.random() < 0.5 * max(0.0, 1 - abs(rate / 100 - 1) / 0.1)

    engine = Engine(100.0, wrong)
    found = find_peak(engine, 40.0, tolerance=TOLERANCE, most=60)
    if found.rate is None:
        assert "not settled after 60 probes" in found.reason
        return
    assert [held for rate, held in engine.tried if rate == found.rate][-2:] == [True, True]
    # Beyond 10 % of the capacity nothing is noisy, and one tolerance more for the gap between the two ends.
    assert 90 / (1 + TOLERANCE) <= found.rate <= 110


def test_an_engine_that_holds_nothing():
    engine = Engine(0.0)
    found = find_peak(engine, 64.0, tolerance=TOLERANCE, most=40)
    assert found.rate is None
    assert found.reason == "not even 1 queries/s hold"
    assert len(engine.tried) == 7


def test_an_engine_that_contradicts_itself_is_not_settled():
    tried = []

    def holds(rate):  # whatever it said of a rate, it says the contrary when asked again
        tried.append(rate)
        return (rate <= 100) == (tried.count(rate) % 2 == 1)

    found = find_peak(holds, 100.0, tolerance=TOLERANCE, most=30)
    assert found.rate is None
    assert found.reason == "not settled after 30 probes: the machine may be too noisy"
    assert len(tried) == 30


def test_what_was_seen_last_counts():
    seen = _Seen()
    for rate, held, low, high in (
        (100, False, None, 100),
        (50, True, 50, 100),
        (60, True, 60, 100),
        (55, False, 50, 55),  # against the 60, not against the 50
        (120, True, 120, None),  # against both failures
        (130, False, 120, 130),
        (40, False, None, 40),  # against everything that held
    ):
        seen.add(rate, held=held)
        assert (seen.low, seen.high) == (low, high)
