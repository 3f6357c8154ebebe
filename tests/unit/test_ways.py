"""In which ways engines are called, what is refused, and what is remarked."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from resnet_deploy.bench.calls import Feeds, call_for
from resnet_deploy.bench.loops import WARMUP_CALLS
from resnet_deploy.bench.measure import measure_in_turns, pace_notes
from resnet_deploy.bench.records import Samples, Way
from resnet_deploy.bench.ways import Callers, Entrant, require_ways
from resnet_deploy.bench_spec import SCOPES, BenchSpec
from resnet_deploy.errors import SpecError
from resnet_deploy.protocols import Silent, StepSeconds, TensorSpec
from resnet_deploy.specs import BatchRange

FEEDS = Feeds(np.zeros((2, 4), np.uint8))


@dataclass
class Fake:
    """A runner that notes the steps it is taken through."""

    diary: list = field(default_factory=list)
    closed: bool = False
    input, output = TensorSpec("images", "uint8", (4,)), TensorSpec("logits", "float32", (3,))
    batch, device = BatchRange(1, 1, 8), "none"

    def load(self, feed):
        self.diary.append(("load", len(feed)))

    def enqueue(self):
        self.diary.append("enqueue")

    def synchronize(self):
        self.diary.append("synchronize")

    def fetch(self):
        self.diary.append("fetch")
        return np.zeros((1, 3), np.float32)

    def close(self):
        self.closed = True


@dataclass
class Clocked(Fake):
    """One whose device has a clock."""

    graphs: bool = True

    def time_steps(self, feed):
        self.diary.append(("timed", len(feed)))
        return StepSeconds(h2d=1.0, device=2.0, d2h=3.0)


def ways(entrant, spec):
    return [way for _, way in entrant.ways(spec)]


def on_cpu():
    return Entrant("cpu", Fake(), (Callers((Fake(), Fake()), 3),))


# --- which


def test_whole_calls_come_in_every_combination():
    spec = BenchSpec(batches=(1, 8, 16), scopes=("host", "end_to_end"), concurrency=(1, 2), rates=(50.0, 80.0))
    expected = {
        Way(batch, scope, count, None, rate)
        for batch in (1, 8)  # it takes no 16
        for scope in ("host", "end_to_end")
        for count in (1, 2)
        for rate in (None, 50.0, 80.0)
    }
    found = ways(on_cpu(), spec)
    assert set(found) == expected
    assert len(found) == len(expected)


def test_parts_of_a_call_have_one_caller_and_no_pace():
    spec = BenchSpec(batches=(1,), scopes=SCOPES, concurrency=(1, 2), rates=(50.0,))
    parts = [way for way in ways(on_cpu(), spec) if way.scope in ("device", "h2d", "d2h")]
    assert parts == [Way(1, "device")]
    clocked = Entrant("gpu", Clocked(), (Callers((Clocked(), Clocked()), 3, True),))
    parts = [way for way in ways(clocked, spec) if way.scope in ("device", "h2d", "d2h")]
    assert parts == [Way(1, scope, 1, True) for scope in ("device", "h2d", "d2h")]


def test_one_caller_is_left_out_where_two_were_asked_for():
    found = list(on_cpu().ways(BenchSpec(batches=(1,), concurrency=(2,))))
    assert [(len(callers.runners), way) for callers, way in found] == [(2, Way(1, "host", 2))]


def test_graphs_are_what_the_runners_were_opened_with():
    entrant = Entrant("gpu", Clocked(), (Callers((Clocked(graphs=False),), 1, False),))
    assert ways(entrant, BenchSpec(batches=(1,), graphs=(True, False))) == [
        Way(1, "host", 1, True),
        Way(1, "host", 1, False),
    ]


def test_an_entrant_may_make_sense_in_some_scopes_only():
    entrant = Entrant("null", Fake(), scopes=("host",))
    assert ways(entrant, BenchSpec(batches=(1,), scopes=("host", "device"))) == [Way(1, "host")]


def test_all_runners_are_closed():
    entrant = on_cpu()
    entrant.close()
    assert [entrant.runner.closed, *(one.closed for one in entrant.others[0].runners)] == [True] * 3


def test_callers_know_their_threads():
    entrant = Entrant("cpu", Fake(), (Callers((Fake(), Fake()), 3),), threads=6)
    found = entrant.ways(BenchSpec(batches=(1,), concurrency=(1, 2)))
    assert [(len(callers.runners), callers.threads) for callers, _ in found] == [(1, 6), (2, 3)]


# --- what lies inside


STEPS = ["enqueue", "synchronize", "fetch"]


@pytest.mark.parametrize("scope", ["host", "device"])
def test_every_scope_takes_a_batch_through_all_steps(scope):
    runner = Fake()
    assert call_for(runner, Way(5, scope), FEEDS)() > 0
    assert runner.diary == [("load", 5), *STEPS]


def test_device_is_what_lies_between_staging_and_fetching(monkeypatch):
    now = {"load": 1_000, "enqueue": 20_000, "synchronize": 300_000, "fetch": 4_000_000}
    runner = Fake()

    def clock():
        return sum(now[one if isinstance(one, str) else one[0]] for one in runner.diary)

    monkeypatch.setattr("time.perf_counter_ns", clock)
    assert call_for(runner, Way(1, "device"), FEEDS)() == pytest.approx(320_000e-9)
    runner.diary.clear()
    assert call_for(runner, Way(1, "host"), FEEDS)() == pytest.approx(4_321_000e-9)


@pytest.mark.parametrize(("scope", "seconds"), [("h2d", 1.0), ("device", 2.0), ("d2h", 3.0)])
def test_a_device_with_a_clock_is_asked_for_each_step(scope, seconds):
    runner = Clocked()
    assert call_for(runner, Way(3, scope), FEEDS)() == seconds
    assert runner.diary == [("timed", 3)]


def test_end_to_end_without_files_is_our_own_mistake():
    with pytest.raises(ValueError, match="without image files"):
        call_for(Fake(), Way(1, "end_to_end"), FEEDS)


# --- what comes of it


def test_samples_say_how_they_were_taken():
    spec = BenchSpec(batches=(1,), seconds=0.01, rounds=2, concurrency=(1, 2), rates=(2000.0,))
    found = {one.way: one for one in measure_in_turns([on_cpu()], FEEDS, spec, Silent())["cpu"]}
    assert list(found) == [
        Way(1, "host", 1),
        Way(1, "host", 1, None, 2000.0),
        Way(1, "host", 2),
        Way(1, "host", 2, None, 2000.0),
    ]
    assert [len(one.wall) for one in found.values()] == [0, 2, 2, 2]
    assert all(set(one.rounds) == {0, 1} for one in found.values())
    assert all(len(one.seconds) == len(one.rounds) for one in found.values())


def test_the_way_that_latencies_are_quoted_for_comes_first():
    spec = BenchSpec(batches=(2, 1), seconds=0.001, rounds=1, scopes=("device", "host"))
    found = measure_in_turns([on_cpu()], FEEDS, spec, Silent())["cpu"]
    assert [(one.batch, one.scope) for one in found] == [(1, "host"), (1, "device"), (2, "host"), (2, "device")]


def test_a_graph_that_was_refused_is_no_way_of_its_own():
    """Both engines ran without graphs in the end; what is kept is what was meant to."""
    refused, without = Clocked(graphs=False), Clocked(graphs=False)
    entrant = Entrant("gpu", refused, (Callers((without,), 1, False),))
    spec = BenchSpec(batches=(1,), seconds=0.001, rounds=1, graphs=(True, False))
    del refused.diary[:]
    (samples,) = measure_in_turns([entrant], FEEDS, spec, Silent())["gpu"]
    assert samples.graphs is False
    assert without.diary.count("fetch") == len(samples.seconds) + WARMUP_CALLS
    granted = Entrant("gpu", Clocked(), (Callers((Clocked(graphs=False),), 1, False),))
    assert [one.graphs for one in measure_in_turns([granted], FEEDS, spec, Silent())["gpu"]] == [True, False]


def test_each_round_is_told_when_it_is_over():
    told = []
    runner = Fake()
    spec = BenchSpec(batches=(1, 2), seconds=0.001, rounds=3)
    measure_in_turns(
        [Entrant("cpu", runner)],
        FEEDS,
        spec,
        Silent(),
        after_round=lambda number: told.append((number, len({step for step in runner.diary if step[0] == "load"}))),
    )
    assert told == [(0, 2), (1, 2), (2, 2)]  # both batch sizes had their turns by then


# --- refused


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"batches": (16,)}, "cpu takes batches of 1 to 8, none of which is measured"),
        ({"concurrency": (3,)}, "cpu takes one caller, which is not measured"),
        ({"concurrency": (1, 3)}, "no engine here takes 3 callers"),
        ({"scopes": ("h2d",)}, "cpu can be timed in none of h2d"),
        ({"scopes": ("host", "d2h")}, "no engine here can be timed in scope d2h"),
        ({"graphs": (True, False)}, "no engine here has CUDA graphs"),
    ],
    ids=lambda one: str(one) if isinstance(one, dict) else "",
)
def test_what_would_be_left_out_unnoticed_is_refused(spec, message):
    with pytest.raises(SpecError, match=message) as caught:
        require_ways([Entrant("cpu", Fake())], BenchSpec(**spec))
    assert caught.value.hint


@pytest.mark.parametrize(
    "spec",
    [
        {"concurrency": (1, 2)},
        {"scopes": ("host", "h2d", "d2h", "device")},
        {"graphs": (True, False)},
        {"rates": (50.0,)},
    ],
    ids=str,
)
def test_what_one_engine_can_do_is_measured(spec):
    able = Entrant("gpu", Clocked(), (Callers((Clocked(), Clocked()), 1, True), Callers((Clocked(),), 1, False)))
    require_ways([Entrant("cpu", Fake()), able], BenchSpec(**spec))


# --- remarked


def test_notes_are_those_of_all_runners_each_once():
    alone, two, three = Fake(), (Fake(), Fake()), (Fake(),)
    alone.notes, three[0].notes = ("a", "b"), ("d", "a")
    for one in two:
        one.notes = ("b", "c")
    assert Entrant("cpu", alone, (Callers(two, 1), Callers(three, 1))).notes == ("a", "b", "c", "d")
    assert on_cpu().notes == ()  # a runner need not have any


def test_remarks_say_what_is_not_plain():
    spec = BenchSpec(scopes=SCOPES, concurrency=(1, 2, 4))
    assert on_cpu().remarks(spec) == (
        "2 callers: an engine each, CPU threads each: 3",
        "not called by 4 at once: it takes one caller",
        "device: by the host's clock, from enqueue until synchronize returns",
        "h2d, d2h: not measured, it has no device timer",
    )
    clocked = Entrant("gpu", Clocked(), tuple(Callers((Clocked(),) * count, 1, True) for count in (2, 4)))
    assert clocked.remarks(spec) == ("2 callers: an engine each", "4 callers: an engine each")
    assert on_cpu().remarks(BenchSpec(concurrency=(1, 2))) == on_cpu().remarks(spec)[:1]
    assert Entrant("cpu", Fake()).remarks(BenchSpec()) == ()


def paced(wall, calls=10, *, offered=10.0, concurrency=1):
    return Samples(
        batch=1,
        scope="host",
        seconds=(0.05,) * calls,
        rounds=(0,) * calls,
        offered=offered,
        concurrency=concurrency,
        wall=(wall,),
    )


def test_an_engine_that_falls_behind_is_said_to():
    (note,) = pace_notes([paced(2.0)])
    assert "does not keep up with 10 calls/s" in note
    assert "batch 1, host: 5" in note
    assert pace_notes([paced(1.0), paced(1.05)]) == ()
    closed = Samples(batch=1, scope="host", seconds=(9.0,), rounds=(0,))
    assert pace_notes([closed]) == ()
    # Two callers may answer a period later each time without anything piling up.
    assert pace_notes([paced(1.1, concurrency=2)]) == ()
    assert pace_notes([paced(1.1)]) != ()
