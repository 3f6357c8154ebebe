"""Reasons to distrust figures: each must show where there is one, and keep still where there is none."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_factory import make_samples

from resnet_deploy.bench.doubts import machine_warnings, spread_warnings, thin_percentiles, two_peaks
from resnet_deploy.bench.intervals import calls_needed, percentile
from resnet_deploy.bench.records import MachineState, read_record

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
COMMITTED = sorted(RESULTS.glob("resnet50-2026112[45]T*.json"))
ONE_PEAK = {
    "normal": lambda rng, n: np.exp(rng.normal(0, 0.2, n)),
    "gamma": lambda rng, n: 1 + rng.gamma(1.2, 0.1, n),
    "exponential": lambda rng, n: 1 + rng.exponential(0.5, n),
    "uniform": lambda rng, n: rng.uniform(1, 2, n),
    "log-normal, heavy": lambda rng, n: 1 + np.exp(rng.normal(-2, 1.2, n)),
    "Cauchy": lambda rng, n: np.exp(np.clip(rng.standard_cauchy(n) * 0.05, -2, 5)),
    "triangular": lambda rng, n: rng.triangular(1, 1.1, 3, n),
}


class TestTwoPeaks:
    @pytest.mark.parametrize("kind", ONE_PEAK)
    @pytest.mark.parametrize("calls", [30, 300, 5000])
    def test_one_peak_is_never_taken_for_two(self, kind, calls):
        rng = np.random.default_rng(calls)
        found = [two_peaks(ONE_PEAK[kind](rng, calls) * 0.01) for _ in range(40)]
        assert found == [None] * 40

    @pytest.mark.parametrize("kind", ["normal", "gamma"])
    @pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
    def test_two_peaks_are_found_where_they_are(self, kind, share):
        rng = np.random.default_rng(3)
        noise = {"normal": rng.normal(0, 0.01, 400), "gamma": rng.gamma(2, 0.01, 400)}[kind]
        times = np.where(rng.random(400) < share, 0.010, 0.013) * np.exp(noise)
        fast, slow = two_peaks(rng.permutation(times))
        assert (fast, slow) == (pytest.approx(0.010, rel=0.04), pytest.approx(0.013, rel=0.04))

    def test_peaks_that_are_close_or_small_are_left_alone(self):
        rng = np.random.default_rng(4)
        narrow = np.exp(rng.normal(0, 0.005, 400))
        few = rng.random(400) < 0.05
        assert two_peaks(narrow * np.where(rng.random(400) < 0.5, 1.0, 1.07)) is None
        assert two_peaks(narrow * np.where(few, 1.5, 1.0)) is None
        assert two_peaks(narrow * np.where(rng.random(400) < 0.5, 1.0, 1.15)) is not None

    # From 10 to 20 ms is a factor of 2: the middle third, in logarithms, is from 10 * 2^(1/3) = 12.6 to
    # 10 * 2^(2/3) = 15.9 ms. It is no valley if it holds half of the 200 calls of the emptier peak; by chance, so few
    # as 99 or 100 of 300 are less likely than 1 in a million.
    @pytest.mark.parametrize(
        ("calls", "ms", "is_valley"),
        [
            (99, 12.7, True),
            (100, 12.7, False),
            (100, 12.5, True),
            (99, 15.7, True),
            (100, 15.7, False),
            (100, 16.0, True),
        ],
    )
    def test_a_valley_is_a_third_wide_and_holds_less_than_half_of_a_peak(self, calls, ms, is_valley):
        found = two_peaks([0.010] * 200 + [ms / 1e3] * calls + [0.020] * 300)
        assert (found is not None) == is_valley

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=30))
    def test_any_times_will_do(self, seconds):
        found = two_peaks(seconds)
        assert found is None or found[0] < found[1]

    def test_is_said_and_drift_is_said_instead(self):
        by_turns, by_halves = [0.010, 0.013] * 50, [0.010] * 50 + [0.013] * 50
        (warning,) = spread_warnings(make_samples(1, by_turns))
        assert warning == "two peaks at batch 1: around 10 ms and 13 ms; p50 may be either next time"
        (warning,) = spread_warnings(make_samples(1, by_halves))
        assert warning.startswith("drifting at batch 1")

    def test_recorded_noise_has_what_the_eye_sees_in_it(self):
        """Two runs of ResNet-50 on a machine that others used: skewed, unsteady, and one peak each."""
        assert len(COMMITTED) == 2
        series = [samples for path in COMMITTED for engine in read_record(path).engines for samples in engine.latency]
        assert len(series) == 16
        found = [samples for samples in series if two_peaks(samples.seconds)]
        assert len(found) <= 1
        # The same noise, every other call twice as long: found in nearly all of those that are long enough.
        doubled = [[s * (2 if n % 2 else 1) for n, s in enumerate(samples.seconds)] for samples in series]
        long = [seconds for seconds in doubled if len(seconds) > 100]
        assert len(long) == 7
        assert sum(two_peaks(seconds) is not None for seconds in long) >= 6


class TestPercentilesOfFew:
    @pytest.mark.parametrize(("percent", "calls"), [(50, 2), (90, 10), (95, 20), (99, 100), (99.9, 1000)])
    def test_need_so_many_calls_not_to_be_the_slowest(self, percent, calls):
        assert calls_needed(percent) == calls
        times = list(range(1, calls + 1))
        assert percentile(times, percent) == calls - 1
        assert percentile(times[:-1], percent) == calls - 1  # which is the slowest of these

    def test_are_named(self):
        assert thin_percentiles(99, (50, 99, 99.9)) == (99, 99.9)
        assert thin_percentiles(100, (50, 99, 99.9)) == (99.9,)
        assert thin_percentiles(1000, (50, 99, 99.9)) == ()


def states(count=4, **figures):
    """Rounds with figures that are either one for all or a list."""
    return [
        MachineState(
            round=number,
            seconds=1.0,
            **{name: value[number] if isinstance(value, list) else value for name, value in figures.items()},
        )
        for number in range(count)
    ]


class TestMachine:
    def test_a_quiet_machine_or_one_that_does_not_tell(self):
        assert machine_warnings(()) == machine_warnings(states()) == ()
        assert machine_warnings(states(elsewhere=0.02, stolen=0.0, used=0.95, mhz=3500.0, gpu_mhz=1410)) == ()

    @pytest.mark.parametrize(
        ("figures", "expected"),
        [
            (
                {"elsewhere": [0.0, 0.0, 0.0, 0.4]},
                "other processes took 10% of the cores' time, 40% in the worst round",
            ),
            ({"stolen": 0.06}, "the host gave others 6% of the cores' time, 6% in the worst round"),
            ({"mhz": [3500.0, 3500.0, 3200.0, 3100.0]}, "the clock of the cores fell from 3,500 to 3,150 MHz"),
            ({"gpu_mhz": [1980, 1980, 1410, 1410]}, "the clock of the GPU fell from 1,980 to 1,410 MHz"),
            (
                {"throttled": ["", "the GPU's power limit", "the CPU's temperature", ""]},
                "clocks were held down in 2 rounds of 4: the GPU's power limit, the CPU's temperature",
            ),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_what_moves_figures_is_said(self, figures, expected):
        assert machine_warnings(states(**figures)) == (expected,)

    def test_clocks_that_rise_or_waver_are_no_fall(self):
        assert machine_warnings(states(mhz=[3100.0, 3100.0, 3500.0, 3500.0])) == ()
        assert machine_warnings(states(mhz=[3500.0, 3200.0, 3500.0, 3200.0])) == ()
        assert machine_warnings(states(mhz=[3500.0, None, 3000.0, None])) == ()  # one reading before, one after
