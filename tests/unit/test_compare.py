"""Two runs against each other: slowdowns that are known, machines that change, answers, refusals."""

import math
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_factory import ENGINES, REFERENCE, SyntheticEngine, make_record, make_samples

from resnet_deploy.bench.compare import CompareSpec, compare, names_of
from resnet_deploy.bench.records import NotRun, Outputs
from resnet_deploy.bench.slowdown import EngineRun, figures, pace, slowdown, tail_slowdown
from resnet_deploy.errors import SpecError

INT8 = "resnet50-onnxruntime-int8"
NAMES = [engine.name for engine in ENGINES[1:]]


def run(seed=0, *, machine=1.0, factors=None, rounds=20, calls=20, base=None):
    """A run with noise of its own: the machine slows all engines, ``factors`` slow some."""
    rng = np.random.default_rng(seed)
    record = base or make_record(rounds=rounds, calls=calls)
    state = machine * np.exp(rng.normal(0, 0.02, rounds))

    def noisy(samples, factor):
        own = np.exp(rng.normal(0, 0.01, rounds))
        noise = np.exp(rng.normal(0, 0.01, len(samples.seconds)))
        seconds = [
            s * factor * state[number] * own[number] * one
            for s, number, one in zip(samples.seconds, samples.rounds, noise, strict=True)
        ]
        return msgspec.structs.replace(samples, seconds=tuple(map(float, seconds)))

    engines = tuple(
        msgspec.structs.replace(
            one, latency=tuple(noisy(samples, (factors or {}).get(one.name, 1.0)) for samples in one.latency)
        )
        for one in record.engines
    )
    return msgspec.structs.replace(record, engines=engines)


@pytest.fixture(scope="module")
def old():
    return run(1)


def verdicts(comparison):
    return {engine.new: {way.verdict for way in engine.ways} for engine in comparison.engines}


SAME = {"no significant difference"}


class TestSpeed:
    def test_equal_runs_do_not_differ(self, old):
        found = compare(old, run(2), CompareSpec())
        assert verdicts(found) == dict.fromkeys(NAMES, SAME)
        assert found.regressions == ()
        assert found.control.name == "pytorch"
        assert found.control.moved.low < 1 < found.control.moved.high

    def test_a_slowed_engine_is_found_and_it_alone(self, old):
        found = compare(old, run(2, factors={INT8: 1.05}), CompareSpec())
        assert verdicts(found) == dict.fromkeys(NAMES, SAME) | {INT8: {"worse"}}
        assert found.regressions == (f"{INT8} is slower",)
        for way in found.engines[1].ways:
            assert way.regression
            # The machine's noise of a round is 1 to 2 % and there are 20: a percent of error is three deviations.
            assert way.p50.value == pytest.approx(1.05, abs=0.012)
            assert way.throughput.value == pytest.approx(1 / 1.05, abs=0.012)
            assert way.throughput.low < way.throughput.value < way.throughput.high < 1 < way.p50.low

    def test_a_faster_engine_is_better(self, old):
        found = compare(old, run(2, factors={INT8: 0.93}), CompareSpec())
        assert verdicts(found)[INT8] == {"better"}
        assert found.regressions == ()

    def test_a_slowdown_within_the_tolerance_is_worse_and_no_regression(self, old):
        new = run(2, factors={INT8: 1.05})
        found = compare(old, new, CompareSpec(tolerance=0.10))
        assert verdicts(found)[INT8] == {"worse"}
        assert found.regressions == ()
        assert compare(old, new, CompareSpec(tolerance=0.02)).regressions != ()

    def test_a_slower_machine_is_not_a_slower_engine(self, old):
        slower = run(2, machine=1.15)
        relative, direct = compare(old, slower, CompareSpec()), compare(old, slower, CompareSpec(control="none"))
        assert verdicts(relative) == dict.fromkeys(NAMES, SAME)
        assert relative.control.moved.value == pytest.approx(1.15, abs=0.02)
        # Which is what the control is for: without it every engine is called slower.
        assert len(direct.regressions) == len(NAMES)
        assert (direct.control.name, direct.control.why) == ("", "as was asked for")

    def test_the_more_the_machine_changed_the_wider_the_intervals(self, old):
        widths = []
        for machine in (1.0, 1.1, 1.5):
            way = compare(old, run(2, machine=machine), CompareSpec()).engines[0].ways[0]
            widths.append(math.log(way.p50.high / way.p50.low))
        # Half of the control's change on either side: log(1.1) and log(1.5) in all.
        assert widths[1] - widths[0] == pytest.approx(math.log(1.1), abs=0.02)
        assert widths[2] - widths[0] == pytest.approx(math.log(1.5), abs=0.02)

    def test_confidence_is_shared_by_all_intervals(self, old):
        new = run(2)
        everything, one = compare(old, new, CompareSpec()), compare(old, new, CompareSpec(engines=((INT8, INT8),)))
        assert everything.confidence == pytest.approx(1 - 0.05 / 18)  # 3 engines, 3 batch sizes, 2 figures
        assert one.confidence == pytest.approx(1 - 0.05 / 6)
        wide, narrow = everything.engines[1].ways[0].p50, one.engines[0].ways[0].p50
        assert wide.value == narrow.value
        assert wide.high - wide.low > narrow.high - narrow.low

    def test_too_few_rounds_tell_nothing_rather_than_too_much(self):
        base = make_record(rounds=4, calls=50)
        found = compare(run(1, rounds=4, base=base), run(2, rounds=4, base=base, factors={INT8: 2.0}), CompareSpec())
        assert found.engines[1].ways[0].p50.high == math.inf
        assert found.engines[1].ways[0].throughput.high == math.inf
        assert found.engines[1].ways[0].throughput.low == 0
        assert found.regressions == ()

    def test_ways_are_compared_with_their_like_alone(self, old):
        def called(record, **how):
            first = record.engines[1].latency[0]
            other = msgspec.structs.replace(first, wall=(1.0,) * 20, **how)
            engine = msgspec.structs.replace(record.engines[1], latency=(first, other))
            return msgspec.structs.replace(record, engines=(record.engines[0], engine, *record.engines[2:]))

        four, eight = (called(run(2), concurrency=callers) for callers in (4, 8))
        assert [way.way.concurrency for way in compare(four, four, CompareSpec()).engines[0].ways] == [1, 4]
        assert [way.way.concurrency for way in compare(four, eight, CompareSpec()).engines[0].ways] == [1]
        paced = called(run(2), offered=40.0)
        assert compare(paced, paced, CompareSpec()).engines[0].ways[1].throughput is None

    def test_an_engine_on_a_gpu_is_not_held_against_a_control_on_a_cpu(self, old):
        def on_gpu(record):
            engine = msgspec.structs.replace(record.engines[2], device="NVIDIA H100")
            return msgspec.structs.replace(record, engines=(*record.engines[:2], engine, *record.engines[3:]))

        found = compare(on_gpu(old), on_gpu(run(2, machine=1.15)), CompareSpec())
        assert [engine.control for engine in found.engines] == ["pytorch", "", "pytorch"]
        assert verdicts(found)[INT8] == {"worse"}


class TestRelative:
    @settings(deadline=None, max_examples=30)
    @given(st.floats(0.2, 5), st.floats(0.5, 2))
    def test_ratios_are_those_of_the_calls_whatever_the_unit(self, factor, unit):
        rng = np.random.default_rng(0)
        rounds = [number for number in range(12) for _ in range(9)]
        base = rng.uniform(0.01, 0.02, len(rounds))
        before = EngineRun(make_samples(4, map(float, base * unit), rounds))
        after = EngineRun(make_samples(4, map(float, base * unit * factor), rounds))
        for figure in figures(before.samples):
            found = slowdown(before, after, figure, 0.05)
            assert found.value == pytest.approx(factor, rel=1e-6)
            assert found.low < found.value < found.high
        assert tail_slowdown(before, after).value == pytest.approx(factor, rel=1e-6)

    def test_a_control_that_shares_the_noise_takes_it_out(self):
        rng = np.random.default_rng(0)
        rounds = [number for number in range(20) for _ in range(10)]
        measured = []
        for _ in range(2):
            state = np.exp(rng.normal(0, 0.2, 20))
            engine, control = (
                make_samples(1, [float(s * state[n] * rng.uniform(1, 1.01)) for n in rounds], rounds)
                for s in (0.01, 0.03)
            )
            measured.append((engine, control))
        (old, old_control), (new, new_control) = measured
        alone = slowdown(EngineRun(old), EngineRun(new), "p50", 0.05)
        beside = slowdown(EngineRun(old, pace((old_control,))), EngineRun(new, pace((new_control,))), "p50", 0.05)
        assert alone.high / alone.low > 1.2
        # What is left but the noise of the calls is half of the control's own change between the runs.
        change = slowdown(EngineRun(old_control), EngineRun(new_control), "p50", 0.05).value
        assert math.log(beside.high / beside.low) == pytest.approx(abs(math.log(change)), abs=0.01)

    def test_a_tail_is_seen_where_median_and_mean_hardly_move(self):
        rng = np.random.default_rng(0)
        rounds = [number for number in range(20) for _ in range(50)]
        calm = rng.uniform(0.010, 0.0101, 1000)
        spiky = np.where(np.arange(1000) % 50 == 7, 0.030, rng.uniform(0.010, 0.0101, 1000))
        old, new = (EngineRun(make_samples(1, map(float, times), rounds)) for times in (calm, spiky))
        assert slowdown(old, new, "p50", 0.05).value == pytest.approx(1, abs=0.005)
        assert tail_slowdown(old, new).low > 2.5
        lone = np.append(calm[:-1], 1.0)  # the slowest of a thousand calls is no p99, in no resample of rounds
        assert tail_slowdown(old, EngineRun(make_samples(1, map(float, lone), rounds))).high < 1.1
        few = EngineRun(make_samples(1, map(float, spiky[:99]), rounds[:99]))
        assert tail_slowdown(old, few) is None

    def test_a_tail_of_one_round_makes_its_interval_wide(self):
        rounds = [number for number in range(4) for _ in range(50)]
        calm = EngineRun(make_samples(1, [0.010] * 200, rounds))
        for spiky in range(4):
            uneven = EngineRun(make_samples(1, [0.030 if number == spiky else 0.010 for number in rounds], rounds))
            found = tail_slowdown(calm, uneven)
            assert (found.low, found.high) == pytest.approx((1, 3))  # resamples without that round, and with it


def with_lost(record, count):
    """The record with so many right answers of the INT8 engine turned into wrong ones."""
    engine = record.engines[2]
    answers = list(engine.outputs.top5)
    labels = record.dataset.labels
    right = [number for number, (best, label) in enumerate(zip(answers, labels, strict=True)) if best[0] == label]
    for number in right[:count]:
        answers[number] = answers[number][::-1]
    outputs = msgspec.structs.replace(engine.outputs, top5=tuple(answers))
    engine = msgspec.structs.replace(engine, outputs=outputs)
    return msgspec.structs.replace(record, engines=(*record.engines[:2], engine, *record.engines[3:]))


class TestAnswers:
    def test_the_same_images_are_compared_one_by_one(self, old):
        new = with_lost(run(2), 8)
        found = compare(old, new, CompareSpec())
        unchanged, changed, _ = (one.answers for one in found.engines)
        assert (unchanged.verdict, unchanged.agreement, unchanged.flips.p_value) == (
            "no significant difference",
            1.0,
            1.0,
        )
        assert (changed.flips.gained, changed.flips.lost, changed.flips.p_value) == (0, 8, 2 / 256)
        assert (changed.verdict, changed.agreement) == ("worse", 1 - 8 / 400)
        assert changed.change.value == pytest.approx(-0.02)
        assert found.regressions == (f"{INT8} answers worse",)
        assert compare(old, new, CompareSpec(accuracy_tolerance=0.03)).regressions == ()

    # Of n images lost and none gained, p is 2 / 2^n: 0.016 of 7, 0.031 of 6, 0.063 of 5.
    @pytest.mark.parametrize(
        ("engines", "lost", "verdict"),
        [
            (NAMES, 7, "worse"),  # three engines: each has 0.05 / 3, which is 0.017
            (NAMES, 6, "no significant difference"),
            ([INT8], 6, "worse"),
            ([INT8], 5, "no significant difference"),
        ],
        ids=["three, 7", "three, 6", "one, 6", "one, 5"],
    )
    def test_the_level_is_shared_by_all_engines(self, old, engines, lost, verdict):
        found = compare(old, with_lost(run(2), lost), CompareSpec(engines=names_of(engines)))
        assert [one.answers.verdict for one in found.engines if one.new == INT8] == [verdict]

    def test_without_labels_there_is_no_verdict(self):
        record = make_record(labelled=False)
        answers = compare(record, record, CompareSpec()).engines[0].answers
        assert (answers.agreement, answers.flips, answers.verdict, answers.regression) == (1.0, None, None, False)

    def test_other_images_are_not_compared(self, old):
        dataset = msgspec.structs.replace(old.dataset, digest="f" * 64)
        found = compare(old, msgspec.structs.replace(run(2), dataset=dataset), CompareSpec(anyway=True))
        assert [engine.answers for engine in found.engines] == [None] * 3
        assert compare(make_record(images=0), make_record(images=0), CompareSpec()).engines[0].answers is None


@dataclass(frozen=True)
class Unlike:
    """A change of a record that makes it another run's."""

    fields: dict
    said: str

    @property
    def id(self):
        return self.said.split(":")[0]


RECORD = make_record()
UNLIKE = (
    Unlike({"threads": 3}, "threads: 2 against 3"),
    Unlike({"architecture": "resnet18"}, "architecture: resnet50 against resnet18"),
    Unlike({"weights_sha256": "b" * 64}, f"weights: {'a' * 12} against {'b' * 12}"),
    Unlike({"dataset": None}, "against synthetic"),
    Unlike(
        {"environment": msgspec.structs.replace(RECORD.environment, python="3.13.0")}, "Python: 3.12.0 against 3.13.0"
    ),
    Unlike({"preprocess": msgspec.structs.replace(RECORD.preprocess, resize=232)}, "input contract: "),
)


class TestConditions:
    @pytest.mark.parametrize("unlike", UNLIKE, ids=lambda unlike: unlike.id)
    def test_unlike_runs_are_refused_and_compared_anyway(self, unlike):
        changes = unlike.fields
        if "dataset" in changes:
            changes = changes | {"engines": make_record(images=0).engines}
        new = msgspec.structs.replace(RECORD, **changes)
        with pytest.raises(SpecError, match="the runs are not alike") as refused:
            compare(RECORD, new, CompareSpec())
        assert unlike.said in refused.value.message
        assert "--anyway" in refused.value.hint
        found = compare(RECORD, new, CompareSpec(anyway=True))
        assert len(found.differences) == 1
        assert unlike.said in found.differences[0]
        assert compare(RECORD, RECORD, CompareSpec(anyway=True)).differences == ()

    def test_governors_are_compared_where_both_are_known(self):
        slow, fast = (msgspec.structs.replace(RECORD, governor=name) for name in ("powersave", "performance"))
        with pytest.raises(SpecError, match="governor: powersave against performance"):
            compare(slow, fast, CompareSpec())
        assert compare(RECORD, fast, CompareSpec()).differences == ()


class TestControl:
    def test_another_may_be_named(self, old):
        found = compare(old, run(2, factors={INT8: 1.05}), CompareSpec(control=NAMES[0]))
        assert found.control.name == NAMES[0]
        assert [engine.new for engine in found.engines] == NAMES[1:]
        assert found.regressions == (f"{INT8} is slower",)

    def test_one_that_changed_is_refused_or_left_out(self, old):
        new = run(2)
        changed = tuple(msgspec.structs.replace(engine, sha256="f" * 64) for engine in new.engines)
        new = msgspec.structs.replace(new, engines=changed)
        for name in ("pytorch", NAMES[0]):
            with pytest.raises(SpecError, match="is not the same in both runs"):
                compare(old, new, CompareSpec(control=name))
        with pytest.raises(SpecError, match="not both runs have 'nobody'"):
            compare(old, new, CompareSpec(control="nobody"))
        found = compare(old, new, CompareSpec())
        assert (found.control.name, found.control.why) == ("", "'pytorch' is not the same in both runs")

    def test_runs_without_a_reference_have_none(self):
        record = make_record(reference="")
        found = compare(record, record, CompareSpec())
        assert (found.control.name, found.control.why) == ("", "the runs have no reference in common")
        assert len(found.engines) == len(ENGINES)


class TestEngines:
    def test_that_no_longer_run_are_regressions(self, old):
        new = run(2)
        gone = NotRun(name=INT8, backend="onnxruntime", precision="int8", size_bytes=1, reason="no dot product")
        new = msgspec.structs.replace(
            new, engines=tuple(one for one in new.engines if one.name not in (INT8, NAMES[0])), not_run=(gone,)
        )
        found = compare(old, new, CompareSpec())
        assert [(one.name, one.reason) for one in found.missing] == [
            (NAMES[0], "the new run does not have it"),
            (INT8, "no dot product"),
        ]
        assert found.regressions == (f"{NAMES[0]} did not run", f"{INT8} did not run")
        assert compare(old, new, CompareSpec(engines=((NAMES[2], NAMES[2]),))).regressions == ()

    def test_peers_are_not_ours_to_fail_for(self, old):
        peers = tuple(
            msgspec.structs.replace(one, role="peer") if one.name == INT8 else one
            for one in run(2, factors={INT8: 2}).engines
        )
        before = tuple(msgspec.structs.replace(one, role="peer") if one.name == INT8 else one for one in old.engines)
        runs = [msgspec.structs.replace(old, engines=engines) for engines in (before, peers)]
        assert INT8 not in verdicts(compare(*runs, CompareSpec()))
        assert compare(*runs, CompareSpec(engines=((INT8, INT8),))).regressions == (f"{INT8} is slower",)

    def test_may_be_paired_under_two_names(self, old):
        found = compare(old, run(2), CompareSpec(engines=names_of((f"{NAMES[0]}={INT8}",))))
        (engine,) = found.engines
        assert (engine.old, engine.new, {way.verdict for way in engine.ways}) == (NAMES[0], INT8, {"better"})
        assert names_of(("a", "a=b")) == (("a", "a"), ("a", "b"))

    def test_whose_file_is_another_are_told_from_the_rest(self, old):
        new = run(2)
        engine = msgspec.structs.replace(new.engines[2], sha256="f" * 64)
        new = msgspec.structs.replace(new, engines=(*new.engines[:2], engine, *new.engines[3:]))
        same = {one.new: one.same_file for one in compare(old, new, CompareSpec()).engines}
        assert same == dict.fromkeys(NAMES, True) | {INT8: False}

    def test_that_are_unknown_or_not_called_alike_are_refused(self, old):
        with pytest.raises(SpecError, match="the old run has no engine 'nobody'"):
            compare(old, old, CompareSpec(engines=(("nobody", "nobody"),)))
        with pytest.raises(SpecError, match="no engine was called in the same way"):
            compare(make_record(batches=(1,)), make_record(batches=(2,)), CompareSpec())
        with pytest.raises(SpecError, match="no engine to compare"):
            compare(make_record((REFERENCE,)), make_record((REFERENCE,)), CompareSpec())

    @pytest.mark.parametrize("tolerance", [-0.01, 1.0, math.nan])
    def test_tolerances_out_of_range_are_refused(self, tolerance):
        with pytest.raises(SpecError, match="a tolerance of"):
            CompareSpec(tolerance=tolerance)


def test_outputs_that_are_no_numbers_count_as_lost(old):
    lost = SyntheticEngine(INT8, "onnxruntime", "int8")
    before = make_record((REFERENCE, lost))
    answers = Outputs(top5=((),) * 400, noise=(None,) * 400, signal=(1.0,) * 400, max_difference=(None,) * 400)
    after = msgspec.structs.replace(
        before, engines=(before.engines[0], msgspec.structs.replace(before.engines[1], outputs=answers))
    )
    (engine,) = compare(before, after, CompareSpec()).engines
    assert engine.answers.flips.gained == engine.answers.agreement == 0
    assert engine.answers.regression
