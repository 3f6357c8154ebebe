"""Timing in turns, against a clock that only moves when a runner says so: no test here depends on real time."""

import gc
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from resnet_deploy.batching import check_feed
from resnet_deploy.bench import calls, measure
from resnet_deploy.bench.calls import Feeds, host_call
from resnet_deploy.bench.loops import LEAST_CALLS, WARMUP_CALLS, ClosedLoop, take_turn
from resnet_deploy.bench.measure import measure_in_turns
from resnet_deploy.bench.ways import Entrant
from resnet_deploy.bench_spec import BenchSpec
from resnet_deploy.protocols import Silent, TensorSpec
from resnet_deploy.runners.null import NullRunner
from resnet_deploy.specs import BatchRange, ModelCard, Preprocess

CARD = ModelCard(
    architecture="resnet18",
    num_classes=3,
    weights="none",
    weights_sha256="0" * 64,
    preprocess=Preprocess(image_size=4, resize=4),
)
IMAGES = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
FEEDS = Feeds(IMAGES)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until somebody moves ``clock.now``, in nanoseconds."""

    @dataclass
    class Clock:
        now: int = 1_000

    made = Clock()
    monkeypatch.setattr(calls.time, "perf_counter_ns", lambda: made.now)
    return made


def time_turn(runner, feed, budget_s):
    """One turn of one caller on one batch: seconds per call."""
    return take_turn([host_call(runner, feed)], ClosedLoop(budget_s)).seconds


class Worker:
    """Takes ``call_s`` for a call, spread over the four steps; notes every call in ``diary``."""

    input = TensorSpec("images", "uint8", (4, 4, 3))
    output = TensorSpec("logits", "float32", (3,))

    def __init__(self, clock, name="worker", *, call_s=0.125, batch=None, diary=None):
        self.clock, self.name, self.step_ns = clock, name, int(call_s * 1e9 / 4)
        self.batch = batch or BatchRange(1, 1, 64)
        self.diary = diary if diary is not None else []
        self.feeds, self.collecting = [], []

    def _step(self):
        self.clock.now += self.step_ns

    def load(self, feed):
        check_feed(feed, self)
        self.feeds.append(feed)
        self.diary.append((self.name, len(feed)))
        self.collecting.append(gc.isenabled())
        self._step()

    enqueue = synchronize = _step

    def fetch(self):
        self._step()
        return np.zeros((len(self.feeds[-1]), 3), np.float32)

    def close(self):
        pass


def turns(diary):
    """The diary with repetitions of one call folded into turns: (name, batch)."""
    return [call for number, call in enumerate(diary) if number == 0 or diary[number - 1] != call]


def by_batch(samples):
    return {one.batch: one for one in samples}


def test_every_engine_at_every_batch_size_it_takes(clock):
    entrants = [
        Entrant("wide", Worker(clock)),
        Entrant("narrow", Worker(clock, batch=BatchRange(2, 4, 4))),
        Entrant("fixed", Worker(clock, batch=BatchRange(8, 8, 8))),
        Entrant("none of these", Worker(clock, batch=BatchRange(3, 3, 3))),
    ]
    result = measure_in_turns(entrants, FEEDS, BenchSpec(batches=(8, 1, 4), seconds=2, rounds=2), Silent())
    assert {name: [one.batch for one in samples] for name, samples in result.items()} == {
        "wide": [1, 4, 8],
        "narrow": [4],
        "fixed": [8],
        "none of these": [],
    }
    assert {one.scope for samples in result.values() for one in samples} == {"host"}


def test_samples_are_the_calls_after_the_warm_up(clock):
    worker = Worker(clock, call_s=0.125)
    spec = BenchSpec(batches=(1, 4), seconds=3, rounds=3)
    result = by_batch(measure_in_turns([Entrant("worker", worker)], FEEDS, spec, Silent())["worker"])
    # A turn lasts 3 s / 3 rounds: 8 calls of 0.125 s. The clock counts whole nanoseconds, so sums are exact.
    for batch in (1, 4):
        assert result[batch].rounds == (0,) * 8 + (1,) * 8 + (2,) * 8
        assert result[batch].seconds == pytest.approx([0.125] * 24, abs=1e-12)
        assert worker.diary.count(("worker", batch)) == 3 * (WARMUP_CALLS + 8)


def test_all_four_steps_are_timed(clock):
    worker = Worker(clock, call_s=0.4)
    assert time_turn(worker, IMAGES[:1], 1.0) == pytest.approx([0.4] * 3, abs=1e-12)


@pytest.mark.parametrize("call_s", [10.0, 1000.0])
def test_engine_slower_than_its_turn_is_called_in_each_round_after_two_untimed_calls(clock, call_s):
    spec = BenchSpec(batches=(1,), seconds=1, rounds=2)
    worker = Worker(clock, call_s=call_s)
    (samples,) = measure_in_turns([Entrant("slow", worker)], FEEDS, spec, Silent())["slow"]
    assert samples.rounds == (0, 1)
    assert samples.seconds == pytest.approx([call_s] * 2, rel=1e-12)
    assert len(worker.feeds) == 6


def test_fast_engine_is_stopped_before_it_fills_the_memory(clock):
    assert len(time_turn(Worker(clock, call_s=1e-6), IMAGES[:1], 60.0)) == 2000


@pytest.mark.parametrize("seed", [0, 1])
def test_order_is_a_function_of_the_seed(clock, seed):
    def play():
        diary = []
        entrants = [Entrant(name, Worker(clock, name, diary=diary)) for name in "abc"]
        measure_in_turns(entrants, FEEDS, BenchSpec(batches=(1, 2, 4), seconds=1, rounds=4, seed=seed), Silent())
        return turns(diary)

    assert play() == play()


def test_another_seed_is_another_order_and_so_is_another_round(clock):
    def play(seed):
        diary = []
        entrants = [Entrant(name, Worker(clock, name, diary=diary)) for name in "abc"]
        measure_in_turns(entrants, FEEDS, BenchSpec(batches=(1, 2, 4), seconds=1, rounds=4, seed=seed), Silent())
        return turns(diary)

    orders = {seed: play(seed) for seed in range(5)}
    assert len({tuple(order) for order in orders.values()}) == 5
    for order in orders.values():
        # 4 rounds of 9 turns; two equal turns may meet where rounds do, and then look like one.
        assert 33 <= len(order) <= 36
        assert order[:9] != order[9:18]


def test_each_round_gives_everyone_one_turn_per_batch_size(clock):
    diary = []
    entrants = [Entrant(name, Worker(clock, name, call_s=1, diary=diary)) for name in "ab"]
    measure_in_turns(entrants, FEEDS, BenchSpec(batches=(1, 2), seconds=1, rounds=5), Silent())
    calls = 2 + LEAST_CALLS  # each is longer than its turn
    for number in range(5):
        of_round = diary[number * 4 * calls : (number + 1) * 4 * calls]
        assert Counter(of_round) == {(name, batch): calls for name in "ab" for batch in (1, 2)}


def test_each_turn_begins_when_the_engine_before_has_stopped(clock, monkeypatch):
    diary = []
    monkeypatch.setattr(measure, "wait_until_quiet", lambda: diary.append("quiet"))
    entrants = [Entrant(name, Worker(clock, name, call_s=1, diary=diary)) for name in "ab"]
    measure_in_turns(entrants, FEEDS, BenchSpec(batches=(1, 2), seconds=1, rounds=2), Silent())
    assert turns(diary)[::2] == ["quiet"] * 8
    assert "quiet" not in turns(diary)[1::2]


def test_images_are_repeated_to_fill_a_batch(clock):
    worker = Worker(clock)
    measure_in_turns([Entrant("worker", worker)], FEEDS, BenchSpec(batches=(1, 5), seconds=1, rounds=1), Silent())
    feeds = {len(feed): feed for feed in worker.feeds}
    np.testing.assert_array_equal(feeds[5], IMAGES[[0, 1, 0, 1, 0]])
    np.testing.assert_array_equal(feeds[1], IMAGES[:1])
    assert all(feed.flags.c_contiguous for feed in worker.feeds)


def test_progress_sees_every_turn(clock):
    seen = []

    class Watching(Silent):
        def track(self, items, description, total=None, *, still=False):
            seen.append((description, total, still))
            for item in items:
                seen.append(item[0])
                yield item

    spec = BenchSpec(batches=(1, 2), seconds=1, rounds=3)
    measure_in_turns([Entrant("worker", Worker(clock))], FEEDS, spec, Watching())
    assert seen == [("timing", 6, True), 0, 0, 1, 1, 2, 2]


@pytest.fixture
def collector():
    """Leave the garbage collector as it was."""
    was_enabled = gc.isenabled()
    yield
    (gc.enable if was_enabled else gc.disable)()


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_while_the_clock_runs(clock, enabled):
    (gc.enable if enabled else gc.disable)()
    worker = Worker(clock, call_s=0.5)
    time_turn(worker, IMAGES[:1], 2.0)
    assert worker.collecting == [enabled] * WARMUP_CALLS + [False] * 4
    assert gc.isenabled() is enabled


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("good_calls", [0, WARMUP_CALLS, WARMUP_CALLS + 2])
def test_collector_is_back_after_an_error(clock, good_calls):
    class Failing(Worker):
        def fetch(self):
            if len(self.feeds) > good_calls:
                raise RuntimeError("the engine broke")
            return super().fetch()

    gc.enable()
    with pytest.raises(RuntimeError, match="the engine broke"):
        time_turn(Failing(clock), IMAGES[:1], 2.0)
    assert gc.isenabled()


def test_null_runner_on_the_real_clock():
    """No assertion on how long it took: only that every sample is a time and the rounds are complete."""
    spec = BenchSpec(batches=(1, 4), seconds=0.01, rounds=2)
    result = measure_in_turns([Entrant("null", NullRunner(CARD, BatchRange(1, 1, 4)))], FEEDS, spec, Silent())
    assert [samples.batch for samples in result["null"]] == [1, 4]
    for samples in result["null"]:
        assert set(samples.rounds) == {0, 1}
        assert min(samples.seconds) > 0
        assert len(samples.seconds) >= 2  # one a round, where somebody else has the core
