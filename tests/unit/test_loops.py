"""Turns of one or several callers: schedules on a clock that stands still, threads on the real one, untimed."""

import gc
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from resnet_deploy.bench import loops
from resnet_deploy.bench.loops import (
    LEAST_CALLS,
    MOST_CALLS,
    WARMUP_CALLS,
    ClosedLoop,
    PacedLoop,
    take_turn,
    wait_until,
)

MS = 1_000_000


@dataclass
class Clock:
    """Stands still, but for those who sleep, poll, or work; in nanoseconds."""

    now: int = 5 * MS
    late: int = 80_000  # by which every sleep ends late
    sleeps: list = field(default_factory=list)

    def sleep(self, seconds):
        assert seconds > 0
        self.sleeps.append(seconds)
        self.now += round(seconds * 1e9) + self.late

    def poll(self, *_):
        self.now += 500


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(loops.time, "perf_counter_ns", lambda: made.now)
    monkeypatch.setattr(loops.time, "sleep", made.sleep)
    monkeypatch.setattr(loops.select, "select", made.poll)
    return made


class Calls:
    """A call that takes as long as it is told, in milliseconds, the last one for ever after; notes when it began."""

    def __init__(self, clock, *took):
        self.clock, self.took, self.begun = clock, list(took), []

    def __call__(self):
        self.begun.append(self.clock.now)
        took = self.took.pop(0) if len(self.took) > 1 else self.took[0]
        self.clock.now += round(took * MS)
        return took * 1e-3


# --- warm-up


@pytest.mark.parametrize(
    ("took", "untimed"),
    [
        ([10], WARMUP_CALLS),
        ([5000, 10], WARMUP_CALLS),  # it was compiled in its first call
        ([10, 5000, 10], WARMUP_CALLS),  # a graph was captured in its second
        ([5000, 5000, 10], 2),
        ([5000], 2),
    ],
    ids=["fast", "slow once", "slow the second time", "slow twice", "slow"],
)
def test_two_slow_calls_end_the_warm_up_and_one_does_not(clock, took, untimed):
    calls = Calls(clock, *took)
    turn = take_turn([calls], ClosedLoop(1.0))
    assert len(calls.begun) - len(turn.seconds) == untimed


# --- paced


def test_paced_calls_begin_when_they_are_due(clock):
    calls = Calls(clock, 10)
    loop = PacedLoop(1.0, 20.0)
    turn = take_turn([calls], loop)
    begun = calls.begun[WARMUP_CALLS:]
    assert len(begun) == len(turn.seconds) == 20
    for number, at in enumerate(begun):
        assert 0 <= at - (loop.start + number * 50 * MS) <= 500  # as fine as it is polled
    assert turn.seconds == pytest.approx([0.010] * 20, abs=1e-6)
    assert turn.wall_s == pytest.approx(20 * 0.050, abs=1e-6)  # the last call's period included


def test_untimed_calls_keep_the_distance_of_the_timed_ones(clock):
    """Otherwise the first timed call would come a moment after a burst, when no other one does."""
    calls = Calls(clock, 10)
    loop = PacedLoop(1.0, 20.0)
    take_turn([calls], loop)
    begun = calls.begun[: WARMUP_CALLS + 1]
    # As fine as it is polled; the first timed call is due 2 ms after its turn.
    assert [after - before for before, after in pairwise(begun)] == pytest.approx([50 * MS] * 4, abs=2 * MS + 1000)
    closed = Calls(clock, 10)
    take_turn([closed], ClosedLoop(1.0))
    assert [after - before for before, after in pairwise(closed.begun)] == [10 * MS] * (len(closed.begun) - 1)


@pytest.mark.parametrize("rate", [20.0, 333.3, 7.1])
@pytest.mark.parametrize("took", [1, 30, 400])
def test_no_more_is_answered_than_was_due(clock, rate, took):
    """And just as much where the engine keeps up."""
    turn = take_turn([Calls(clock, took)], PacedLoop(1.0, rate))
    answered = len(turn.seconds) / turn.wall_s
    assert answered <= rate
    if took * 1e-3 * rate < 1:
        assert answered == pytest.approx(rate, rel=1e-6)  # the wall clock counts whole nanoseconds
    else:
        assert answered < 0.98 * rate


def test_a_sleep_that_ends_later_than_expected_is_not_hidden(clock):
    clock.late = MS
    turn = take_turn([Calls(clock, 10)], PacedLoop(1.0, 20.0))
    assert turn.seconds[1:] == pytest.approx([0.0108] * 19, abs=1e-6)  # 1 ms late, less the 0.2 that are polled


def test_an_engine_that_does_not_keep_up_shows_growing_latencies(clock):
    paced = take_turn([Calls(clock, 100)], PacedLoop(1.0, 20.0))
    assert paced.seconds == pytest.approx([0.100 + 0.050 * number for number in range(20)], abs=1e-6)
    closed = take_turn([Calls(clock, 100)], ClosedLoop(1.0))
    assert closed.seconds == pytest.approx([0.100] * 10)


def test_a_turn_that_is_far_behind_ends_after_twice_its_time(clock):
    turn = take_turn([Calls(clock, 500)], PacedLoop(1.0, 20.0))
    assert len(turn.seconds) == 5  # the fifth is begun when 2 s have just passed
    assert turn.wall_s == pytest.approx(2.5, abs=1e-6)


def test_one_stall_delays_the_calls_behind_it(clock):
    """What a closed loop would not show: the calls that were due meanwhile ("coordinated omission")."""
    took = [5] * WARMUP_CALLS + [5, 5, 300, 5]
    paced = take_turn([Calls(clock, *took)], PacedLoop(1.0, 20.0))
    assert paced.seconds[1:10] == pytest.approx(
        [0.005, *(0.300 - 0.045 * number for number in range(7)), 0.005], abs=1e-6
    )
    closed = take_turn([Calls(clock, *took)], ClosedLoop(1.0))
    assert sum(second > 0.025 for second in closed.seconds) == 1


def test_a_slow_rate_and_a_fast_one_have_their_bounds(clock):
    assert len(take_turn([Calls(clock, 1)], PacedLoop(1.0, 0.5)).seconds) == LEAST_CALLS
    assert len(take_turn([Calls(clock, 1e-4)], PacedLoop(1.0, 1e5)).seconds) == MOST_CALLS


def test_callers_share_the_calls_that_are_due(clock):
    """While one is held up in its call, the other makes all that fall due meanwhile; none is made twice."""
    loop = PacedLoop(1.0, 20.0)
    other = Calls(clock, 10)
    answered = []

    def held_up():
        answered.extend(loop.run(other))
        return 0.0

    loop.begin()
    first = loop.run(held_up)
    assert len(first) == 1
    assert first[0] == pytest.approx(19 * 0.050 + 0.010, abs=1e-6)
    assert answered == pytest.approx([0.010] * 19, abs=1e-6)
    assert [round((at - loop.start) / MS) for at in other.begun] == [50 * number for number in range(1, 20)]


def test_what_is_due_already_is_not_waited_for(clock):
    before = clock.now
    wait_until(before - 1)
    wait_until(before)
    assert (clock.now, clock.sleeps) == (before, [])
    wait_until(before + 10 * MS)
    assert clock.sleeps == [pytest.approx(0.0098)]


# --- several callers


class Worker:
    """Counts its calls, and who made them; the first timed one waits until every worker is in its first."""

    def __init__(self, together, fails_at=None):
        self.together, self.fails_at = together, fails_at
        self.threads, self.calls, self.taken = set(), 0, []

    def __call__(self):
        self.threads.add(threading.get_ident())
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("the engine broke")
        if self.calls == WARMUP_CALLS + 1:
            self.together.wait(timeout=30)  # where callers took turns, nobody else would ever come
        self.taken.append(1e-6 * self.calls)
        return self.taken[-1]


@pytest.mark.parametrize("loop", [ClosedLoop(0.02), PacedLoop(0.02, 500.0)], ids=["closed", "paced"])
def test_each_caller_has_a_thread_and_an_engine_of_its_own(loop):
    together = threading.Barrier(3)
    workers = [Worker(together) for _ in range(3)]
    turn = take_turn(workers, loop)
    threads = [worker.threads for worker in workers]
    assert all(len(one) == 1 for one in threads)
    assert len(set.union(*threads)) == 3
    assert threading.get_ident() not in set.union(*threads)
    assert len(turn.seconds) == sum(worker.calls - WARMUP_CALLS for worker in workers)
    assert turn.wall_s > 0


def test_seconds_are_kept_caller_by_caller():
    workers = [Worker(threading.Barrier(2)) for _ in range(2)]
    workers[1].together = workers[0].together
    turn = take_turn(workers, ClosedLoop(0.005))
    assert turn.seconds == [second for worker in workers for second in worker.taken[WARMUP_CALLS:]]


def test_the_wall_clock_holds_every_caller():
    """One sum of seconds is of calls in a row, and fits into the wall clock; calls of two callers overlap in it."""
    both = threading.Barrier(2)
    spans = ([], [])

    def make(mine):
        def call():
            start = time.perf_counter_ns()
            both.wait(timeout=30)  # inside the call: where callers took turns, nobody else would ever come
            mine.append((start, time.perf_counter_ns()))
            return (mine[-1][1] - start) * 1e-9

        return call

    class Thrice(ClosedLoop):
        def run(self, call):
            return [call() for _ in range(3)]  # as many for both: the barrier takes them in pairs

    turn = take_turn([make(mine) for mine in spans], Thrice(60.0))  # so long that no warm-up is cut short
    timed = [mine[WARMUP_CALLS:] for mine in spans]
    assert len(turn.seconds) == 6
    for (begun, ended), (other_begun, other_ended) in zip(*timed, strict=True):
        assert max(begun, other_begun) <= min(ended, other_ended)
    first, last = min(mine[0][0] for mine in timed), max(mine[-1][1] for mine in timed)
    assert turn.wall_s * 1e9 >= last - first - 1  # it is kept in seconds, which rounds


def test_callers_who_share_a_pace_answer_no_more_than_was_due():
    turn = take_turn([lambda: 1e-6] * 2, PacedLoop(0.02, 500.0))
    assert len(turn.seconds) / turn.wall_s <= 500.0


@pytest.fixture
def collector():
    was_enabled = gc.isenabled()
    gc.enable()
    yield
    (gc.enable if was_enabled else gc.disable)()


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("fails_at", [1, WARMUP_CALLS, WARMUP_CALLS + 2])
def test_the_error_of_one_caller_is_raised_and_the_others_end(fails_at):
    together = threading.Barrier(3 if fails_at > WARMUP_CALLS else 2)
    workers = [Worker(together), Worker(together, fails_at), Worker(together)]
    with pytest.raises(RuntimeError, match="the engine broke"):
        take_turn(workers, ClosedLoop(0.005))
    assert gc.isenabled()
    assert not [one for one in threading.enumerate() if one.name.startswith("caller")]


def test_an_interrupt_waits_for_the_callers(monkeypatch):
    """Their engines are closed next; a thread in the middle of a call would use what is gone."""
    under_way = threading.Event()
    ended = []

    def interrupt(_):
        under_way.wait(timeout=30)
        raise KeyboardInterrupt

    def call():
        under_way.set()
        return 1e-6

    class Loop(ClosedLoop):
        def run(self, call):
            taken = super().run(call)
            ended.append(threading.get_ident())
            return taken

    monkeypatch.setattr(loops, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        take_turn([call, call], Loop(0.02))
    assert len(ended) == 2
    assert not [one for one in threading.enumerate() if one.name.startswith("caller")]
