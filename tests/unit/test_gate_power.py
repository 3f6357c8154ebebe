"""The benchmark of the gate: what it draws, and that it counts what it says it counts."""

import gate_power
import msgspec
import numpy as np
import pytest
from record_factory import ENGINES, make_record, make_samples

from resnet_deploy.bench.records import write_record

INT8 = ENGINES[2].name


def times(record):
    return [set(samples.seconds) for engine in record.engines for samples in engine.latency]


class TestDrawing:
    def test_two_runs_of_one_record_share_no_sample(self):
        record = make_record(rounds=12, calls=5)
        old, new = gate_power._two_runs((record, record), 6, np.random.default_rng(0))
        for before, after, source in zip(times(old), times(new), times(record), strict=True):
            assert before | after == source
            assert not before & after

    def test_all_engines_have_the_same_rounds(self):
        """Each call's time says which round it was measured in."""
        numbers = [number for number in range(8) for _ in range(3)]
        marked = tuple(
            msgspec.structs.replace(
                engine,
                latency=(
                    msgspec.structs.replace(
                        make_samples(1, [1.0 + number for number in numbers], numbers),
                        concurrency=2,
                        wall=tuple(10.0 + number for number in range(8)),
                    ),
                ),
            )
            for engine in make_record().engines
        )
        record = msgspec.structs.replace(make_record(), engines=marked)
        run, _ = gate_power._two_runs((record, record), 4, np.random.default_rng(1))
        (drawn,) = {engine.latency for engine in run.engines}
        (samples,) = drawn
        assert samples.rounds == (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)
        assert [wall - 9.0 for wall in samples.wall] == list(samples.seconds[::3])

    def test_rounds_are_not_drawn_twice(self):
        record = make_record(rounds=12, calls=5)
        with pytest.raises(SystemExit, match="too few rounds"):
            gate_power._two_runs((record, record), 7, np.random.default_rng(0))

    def test_slowed_is_one_engine_alone(self):
        record = make_record(rounds=2, calls=5)
        slow = gate_power.slowed(record, INT8, 0.05)
        for before, after in zip(record.engines, slow.engines, strict=True):
            ratios = np.divide(after.latency[0].seconds, before.latency[0].seconds)
            assert ratios == pytest.approx(1.05 if before.name == INT8 else 1.0)


@pytest.mark.parametrize(("slowdown", "expected"), [(0.05, 1.05), (1.0, 2.0), (0.0, 1.0)])
def test_spinning_takes_a_share_longer_than_the_call(monkeypatch, slowdown, expected):
    now = [10.0]

    def look():
        now[0] += 0.001  # looking at the clock takes time too
        return now[0]

    def enqueue(_):
        now[0] += 1.0

    monkeypatch.setattr(gate_power.time, "perf_counter", look)
    monkeypatch.setattr(gate_power.OrtRunner, "enqueue", enqueue)
    gate_power.spinning(slowdown)(None)
    # Three to five looks at the clock are in it.
    assert now[0] - 10.0 == pytest.approx(expected, abs=0.006)


def test_counts_of_steady_noise(tmp_path):
    """A 2 % noise of calls, steady over the rounds: every slowdown of 5 % shows, and none that is not there."""
    path = tmp_path / "bench.json"
    write_record(make_record(rounds=40, calls=20, batches=(1,)), path)
    (row,) = gate_power.on_recorded_noise([path], rounds=20, repetitions=6, slowdown=0.05)
    assert (row.caught, row.false_alarms, row.repetitions) == (6, 0, 6)
    (row,) = gate_power.on_recorded_noise([path], rounds=20, repetitions=6, slowdown=0.0)
    assert row.caught == 0
