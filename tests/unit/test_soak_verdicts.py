"""What a soak calls growth, drift and an error: on series of which it is known, and how often on noise alone."""

import itertools
from fractions import Fraction

import msgspec
import numpy as np
import pytest
import soak
import soak_verdicts
from soak_factory import LEVELS, MIB, make_soak, make_windows, noise, with_reading
from soak_records import SoakRecord

from resnet_deploy import environment


@pytest.fixture
def windows():
    return make_windows(np.random.default_rng(0))


def verdicts(findings):
    every = (*findings.amounts, *findings.handles, *findings.latency)
    return {found.what: found.verdict for found in every if found.verdict != "steady"}


def slowed(windows, since, factor, *, kind="call"):
    def one(number, window):
        times = window.times[kind]
        share = factor if number >= since * len(windows) else 1.0
        changed = msgspec.structs.replace(times, p50=times.p50 * share)
        return msgspec.structs.replace(window, times=window.times | {kind: changed})

    return [one(number, window) for number, window in enumerate(windows)]


class TestOnWindows:
    def test_nothing_is_said_of_a_steady_one(self, windows):
        findings = soak_verdicts.judge(make_soak(windows))
        assert not findings.is_bad
        assert verdicts(findings) == {}
        assert soak_verdicts.words(findings) == [
            "steady: nothing grew, nothing slowed down, and every answer was right"
        ]

    @pytest.mark.parametrize("name", ["private", "heap", "objects", "blocks"])
    def test_a_leak_is_flagged_for_what_it_is(self, windows, name):
        """A tenth of the level in the time looked at."""
        leaking = with_reading(windows, name, lambda number, value: value + LEVELS[name] * 0.1 * number / 90)
        findings = soak_verdicts.judge(make_soak(leaking))
        assert verdicts(findings) == {name: "grew"}
        assert findings.is_bad
        (found,) = (one for one in findings.amounts if one.what == name)
        # The noise is 2.5 % of that in each window, and neighbours resemble each other.
        assert found.change.value == pytest.approx(0.1 * LEVELS[name], rel=0.1)
        assert found.change.low > 0

    @pytest.mark.parametrize("name", ["files", "threads"])
    def test_one_handle_that_is_left_is_flagged(self, windows, name):
        leaking = with_reading(windows, name, lambda number, value: value + (number > 70))
        assert verdicts(soak_verdicts.judge(make_soak(leaking))) == {name: "grew"}
        spike = with_reading(windows, name, lambda number, value: value + 3 * (number == 110))
        assert verdicts(soak_verdicts.judge(make_soak(spike))) == {}

    def test_what_is_taken_once_and_kept_is_no_growth(self, windows):
        """An allocator's step of a fifth, wherever it falls."""
        for since in range(30, 120, 15):
            stepped = with_reading(
                windows, "private", lambda number, value, since=since: value * (1.2 if number >= since else 1)
            )
            assert verdicts(soak_verdicts.judge(make_soak(stepped))) == {}

    @pytest.mark.parametrize("power", [2, 3, 4])
    def test_a_leak_that_gets_faster_is_flagged(self, windows, power):
        leaking = with_reading(windows, "private", lambda number, value: value * (1 + (number / 120) ** power))
        assert verdicts(soak_verdicts.judge(make_soak(leaking))) == {"private": "grew"}

    @pytest.mark.parametrize("since", [36, 54, 72])
    def test_a_leak_that_begins_late_is_flagged(self, windows, since):
        """Up to 60 % of the time."""
        leaking = with_reading(windows, "private", lambda number, value: value * (1 + 0.005 * max(0, number - since)))
        assert verdicts(soak_verdicts.judge(make_soak(leaking))) == {"private": "grew"}

    def test_what_settles_is_no_growth(self, windows):
        settling = with_reading(windows, "private", lambda number, value: value * (1.2 - 0.2 * np.exp(-number / 25)))
        assert verdicts(soak_verdicts.judge(make_soak(settling))) == {}

    def test_growth_while_it_warms_up_is_none(self, windows):
        warming = with_reading(windows, "private", lambda number, value: value * min(1, 0.5 + number / 60))
        assert verdicts(soak_verdicts.judge(make_soak(warming))) == {}

    @pytest.mark.parametrize(("factor", "expected"), [(1.3, {"call": "slower"}), (1.04, {}), (0.7, {})])
    def test_a_slowing_one_is_flagged(self, windows, factor, expected):
        findings = soak_verdicts.judge(make_soak(slowed(windows, 0.6, factor)))
        assert verdicts(findings) == expected
        (found,) = (one for one in findings.latency if one.what == "call")
        assert found.change.value == pytest.approx(factor - 1, abs=0.06)  # noise of 5 %, medians of thirty windows

    def test_a_busy_machine_cannot_tell(self, windows):
        def busy(window):
            return msgspec.structs.replace(window, machine=msgspec.structs.replace(window.machine, elsewhere=0.5))

        findings = soak_verdicts.judge(make_soak([busy(window) for window in slowed(windows, 0.6, 1.3)]))
        assert verdicts(findings) == {"call": "cannot tell"}
        assert not findings.is_bad
        assert "others used the cores" in soak_verdicts.words(findings)[0]

    def test_a_wrong_answer_is_flagged_even_while_it_warms_up(self, windows):
        windows[2] = msgspec.structs.replace(windows[2], wrong=("call: off",), wrong_count=1)
        findings = soak_verdicts.judge(make_soak(windows))
        assert (findings.wrong, findings.is_bad) == (1, True)
        assert soak_verdicts.words(findings)[0].startswith("WRONG: 1 request")

    def test_an_early_end_is_flagged(self, windows):
        findings = soak_verdicts.judge(make_soak(windows, end="exit code -11 after 120 of 360 windows"))
        assert findings.is_bad
        assert soak_verdicts.words(findings)[0] == "ended: exit code -11 after 120 of 360 windows"

    def test_a_heap_that_is_not_told_is_left_out(self, windows):
        silent = [
            msgspec.structs.replace(one, reading=msgspec.structs.replace(one.reading, heap=None)) for one in windows
        ]
        assert [one.what for one in soak_verdicts.judge(make_soak(silent)).amounts] == ["private", "objects", "blocks"]

    def test_too_few_windows_cannot_tell(self, windows):
        """Memory that doubles in six windows after the warm-up is not called steady."""
        doubling = with_reading(windows[:8], "private", lambda number, value: value * (1 + number / 8))
        findings = soak_verdicts.judge(make_soak(doubling))
        assert not findings.is_bad
        assert soak_verdicts.words(findings) == ["cannot tell growth: 6 windows after the warm-up, 18 are needed"]

    def test_the_fewest_windows_tell(self, windows):
        doubling = with_reading(windows[:24], "private", lambda number, value: value * (1 + number / 24))
        findings = soak_verdicts.judge(make_soak(slowed(doubling, 0.7, 3)))
        assert verdicts(findings) == {"private": "grew", "call": "slower"}
        assert verdicts(soak_verdicts.judge(make_soak(windows[:24]))) == {}

    def test_what_has_too_few_values_cannot_be_told(self, windows):
        """A kind that was asked for in half of the windows."""
        seldom = [
            msgspec.structs.replace(one, times={"call": one.times["call"]} if number % 2 else one.times)
            for number, one in enumerate(slowed(windows[:24], 0.6, 3, kind="submit"))
        ]
        findings = soak_verdicts.judge(make_soak(seldom))
        assert verdicts(findings) == {"submit": "cannot tell"}
        assert soak_verdicts.words(findings) == ["cannot tell: submit, too few windows"]

    @pytest.mark.parametrize("count", [0, 3])
    def test_a_crash_in_the_first_windows_is_told(self, windows, count):
        few = [msgspec.structs.replace(one, wrong=("call: off",), wrong_count=1) for one in windows[:count]]
        end = f"exit code -11 after {count} of 360 windows"
        crashed = make_soak(few, end=end)
        findings = soak_verdicts.judge(crashed)
        assert (findings.end, findings.wrong, findings.is_bad) == (end, count, True)
        record = SoakRecord(created="2026-01-01T00:00:00Z", environment=environment.collect(), soaks=(crashed,))
        assert end in soak.table(record)[-1]

    def test_the_table_tells_it(self, windows):
        leaking = with_reading(windows, "heap", lambda number, value: value + MIB * number)
        record = SoakRecord(
            created="2026-01-01T00:00:00Z",
            environment=environment.collect(),
            soaks=(make_soak(windows), make_soak(leaking, name="leaking")),
        )
        lines = soak.table(record)
        assert lines[0] == "|  | resnet18-int8-onnxruntime | leaking |"
        (growth,) = (line for line in lines if line.startswith("| heap in use"))
        assert float(growth.split("|")[3].split()[0]) == pytest.approx(89, abs=1.5)  # MiB; each level's noise is 0.3
        assert lines[-1].count("GREW") == 1


def test_false_alarms_on_noise():
    """Of 60 steady soaks whose windows resemble their neighbours (correlation 0.5), at most one is called anything."""
    rng = np.random.default_rng(1)
    alarms = [soak_verdicts.judge(make_soak(make_windows(rng))).is_bad for _ in range(60)]
    assert sum(alarms) <= 1


def test_one_step_in_noise_is_no_growth():
    """Of 30 soaks with a step of a tenth at a random moment, none is called growth."""
    rng = np.random.default_rng(4)
    for _ in range(30):
        since = rng.integers(35, 115)
        stepped = with_reading(
            make_windows(rng), "heap", lambda number, value, since=since: value * (1.1 if number >= since else 1)
        )
        assert "heap" not in verdicts(soak_verdicts.judge(make_soak(stepped)))


def test_a_leak_shows_in_noise():
    """Growth of 5 % in noise of a quarter of a percent is called in each of 20 soaks."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        windows = make_windows(rng)
        leaking = with_reading(windows, "heap", lambda number, value: value + LEVELS["heap"] * 0.05 * number / 90)
        assert verdicts(soak_verdicts.judge(make_soak(leaking))).get("heap") == "grew"


class TestTrend:
    def test_the_slope_of_a_line_with_outliers(self):
        times = np.arange(30.0)
        values = 3 * times + noise(np.random.default_rng(0), 30, share=0.1)
        values[[4, 17]] += 1000
        found = soak_verdicts.trend(times, values, 0.05)
        assert found.low <= 3 <= found.high
        assert found.value == pytest.approx(3, abs=0.02)  # noise of 0.1 over thirty units of time

    def test_its_interval_covers(self):
        """Of 400 intervals of 90 %, as many miss the slope as their confidence says, within three deviations."""
        rng, times = np.random.default_rng(3), np.arange(20.0)
        found = [soak_verdicts.trend(times, 2 * times + rng.normal(size=20), 0.1) for _ in range(400)]
        missed = sum(not one.low <= 2 <= one.high for one in found)
        assert 20 <= missed <= 58  # 400 * 0.1, exact but for ranks being whole: 6 is a deviation

    @pytest.mark.parametrize("n", [2, 4, 6])
    def test_pairs_are_counted_off_as_orders_have_them(self, n):
        """Against every order of n values."""
        pairs = list(itertools.combinations(range(n), 2))
        orders = list(itertools.permutations(range(n)))
        inversions = [sum(order[i] > order[j] for i, j in pairs) for order in orders]
        for level in (0.01, 0.05, 0.2, 0.5):
            chance = [Fraction(sum(one <= total for one in inversions), len(orders)) for total in range(len(pairs) + 1)]
            expected = sum(1 for one in chance if one <= Fraction(level) / 2)
            assert soak_verdicts.pairs_outside(n, level) == expected

    def test_too_few_values_tell_nothing(self):
        found = soak_verdicts.trend(np.arange(4.0), np.arange(4.0), 0.05)
        assert (found.low, found.high) == (-np.inf, np.inf)


def test_thirds_and_blocks():
    values = np.arange(10.0)
    first, last = soak_verdicts.thirds(values)
    assert (first.tolist(), last.tolist()) == ([0, 1, 2], [7, 8, 9])
    assert soak_verdicts.blocks(values, 5).tolist() == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert soak_verdicts.blocks(values, 30).tolist() == values.tolist()
