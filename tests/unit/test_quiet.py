"""Waiting for the threads of the engine before, on a clock that moves when somebody sleeps."""

from dataclasses import dataclass

import pytest

from resnet_deploy.bench import quiet
from resnet_deploy.bench.quiet import wait_until_quiet


@dataclass
class Process:
    """One of whose threads spins until ``busy_until``, by a clock of processor time that moves in ticks."""

    busy_until: float
    tick: float
    now: float = 0.0

    def sleep(self, seconds):
        self.now += seconds + 80e-6  # sleeps end late

    def process_time(self):
        used = min(self.now, self.busy_until) + 0.01 * self.now  # watching takes some, too
        return used // self.tick * self.tick


@pytest.fixture
def process(monkeypatch):
    def make(busy_until, tick):
        made = Process(busy_until, tick)
        monkeypatch.setattr(quiet.time, "sleep", made.sleep)
        monkeypatch.setattr(quiet.time, "process_time", made.process_time)
        return made

    return make


@pytest.mark.parametrize("tick", [1e-9, 4e-3], ids=["exact", "ticks"])
@pytest.mark.parametrize(
    ("busy_until", "earliest", "latest"),
    [(0.0, 0.005, 0.011), (0.034, 0.034, 0.046), (9.0, 0.1, 0.11)],
    ids=["quiet", "spinning", "for ever"],
)
def test_spinning_threads_are_waited_for_within_bounds(process, tick, busy_until, earliest, latest):
    """One window when all is quiet; else until the window after the last busy one, and not for ever."""
    made = process(busy_until, tick)
    wait_until_quiet()
    assert earliest <= made.now <= latest
