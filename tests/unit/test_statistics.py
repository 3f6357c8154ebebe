"""Statistics of benchmark records against hand-worked numbers; every check has a twin that must come out otherwise."""

import dataclasses
import math

import msgspec
import numpy as np
import pytest
from record_factory import ENGINES, REFERENCE, SyntheticEngine, make_record, make_samples

from resnet_deploy.bench import statistics
from resnet_deploy.bench.doubts import spread_warnings, thin_warnings
from resnet_deploy.bench.records import DatasetRecord, Outputs, read_record, write_record
from resnet_deploy.errors import FileError


def draw_rounds(rng, call_s, rounds=20, calls=10, *, slowdowns=None):
    """Calls of about ``call_s`` whose rounds have each their own slowdown."""
    slowdowns = rng.uniform(1.0, 1.5, rounds) if slowdowns is None else slowdowns
    seconds = [call_s * slow * rng.uniform(1.0, 1.02) for slow in slowdowns for _ in range(calls)]
    return make_samples(1, seconds, [number for number in range(rounds) for _ in range(calls)])


def renamed(engine, name, **changes):
    """The engine under another name."""
    return dataclasses.replace(engine, name=name, **changes)


class TestPercentile:
    @pytest.mark.parametrize(
        ("percent", "expected"),
        [(0, 1.0), (10, 1.0), (10.1, 2.0), (50, 5.0), (90, 9.0), (90.1, 10.0), (99, 10.0), (100, 10.0)],
    )
    def test_is_the_nearest_rank_of_ten(self, percent, expected):
        assert statistics.percentile([10.0, *map(float, range(1, 10))], percent) == expected

    def test_is_a_measured_value_where_interpolation_would_invent_one(self):
        assert statistics.percentile([1.0, 100.0], 50) == 1.0
        assert float(np.percentile([1.0, 100.0], 50)) == 50.5

    @pytest.mark.parametrize("percent", range(1, 101))
    def test_ranks_of_hundred_are_exact(self, percent):
        # 7 / 100 * 100 is above 7 in floating point: dividing first would give the 8th.
        assert statistics.percentile(list(range(1, 101)), percent) == percent

    def test_one_sample_is_every_percentile(self):
        assert {statistics.percentile([0.5], percent) for percent in (0, 50, 99, 100)} == {0.5}


class TestThroughput:
    def test_is_images_over_summed_time(self):
        samples = make_samples(4, [0.1, 0.3])
        assert statistics.throughput(samples) == pytest.approx(20.0)
        # The mean of the calls' own rates would be another number.
        assert np.mean([4 / 0.1, 4 / 0.3]) == pytest.approx(26.667, abs=1e-3)

    def test_best_and_smallest_batch(self):
        engine = make_record(ENGINES[:1], batches=(8, 1, 32)).engines[0]
        assert statistics.smallest_samples(engine, "host").batch == 1
        assert statistics.best_samples(engine, "host").batch == 32

    def test_interval_is_empty_only_when_all_calls_are_equal(self):
        steady = statistics.throughput_interval(make_samples(2, [0.1] * 20, [number // 2 for number in range(20)]))
        assert steady.low == pytest.approx(steady.high)
        assert steady.value == pytest.approx(20.0)
        noisy = statistics.throughput_interval(draw_rounds(np.random.default_rng(0), 0.1))
        assert noisy.low < noisy.value < noisy.high

    @pytest.mark.parametrize("rounds", [range(8), [0] * 8], ids=["rounds", "the calls of one round"])
    def test_interval_holds_95_percent_of_resamples(self, rounds):
        # The slow one of eight is drawn 3 times or more in 7.2 % of resamples, 4 times or more in 1.5 %.
        samples = make_samples(1, [9.0] + [1.0] * 7, list(rounds))
        interval = statistics.throughput_interval(samples)
        assert (interval.low, interval.value, interval.high) == pytest.approx((8 / 32, 8 / 16, 8 / 8))
        latency = statistics.percentile_interval(samples, 70)  # of 8, the 6th: 9 s if the slow one is drawn 3 times
        assert (latency.low, latency.value, latency.high) == (1, 1, 9)

    def test_calls_that_overlap_count_once(self):
        samples = msgspec.structs.replace(make_samples(2, [0.4] * 8, [0] * 4 + [1] * 4), concurrency=4, wall=(0.5, 0.5))
        assert statistics.throughput(samples) == pytest.approx(16.0)
        interval = statistics.throughput_interval(samples)
        assert (interval.low, interval.high) == pytest.approx((16.0, 16.0))


class TestShareInterval:
    def test_is_wilsons(self):
        # 8 of 10, by hand: centre 0.71674, half width 0.22657.
        interval = statistics.share_interval(0.8, 10)
        assert (interval.value, interval.low, interval.high) == pytest.approx((0.8, 0.49016, 0.94331), abs=2e-5)

    def test_never_leaves_zero_to_one_nor_excludes_the_share(self):
        for hits in range(11):
            interval = statistics.share_interval(hits / 10, 10)
            assert 0.0 <= interval.low <= hits / 10 <= interval.high <= 1.0
        assert statistics.share_interval(0.0, 10).low == 0.0
        assert statistics.share_interval(1.0, 10).high == 1.0
        assert statistics.share_interval(1.0, 10).low < 1.0

    def test_of_imagenet_is_a_third_of_a_point(self):
        interval = statistics.share_interval(0.76, 50_000)
        assert interval.high - interval.value == pytest.approx(0.0037, abs=1e-4)


class TestAccuracy:
    dataset = DatasetRecord(name="synthetic", digest="", images=4, labels=(0, 1, 2, 3))
    reference = Outputs(top5=((0, 9), (1, 9), (9, 2), (9, 8)))  # right, right, second, wrong
    candidate = Outputs(
        top5=((0, 9), (9, 1), (9, 8), (9, 7)),  # right, second, wrong, wrong
        noise=(1.0, 1.0, 2.0, 0.0),
        signal=(100.0, 100.0, 100.0, 100.0),
        max_difference=(0.5, 0.25, 1.0, 0.0),
    )

    def test_counts(self):
        counts = statistics.accuracy(self.candidate, self.reference, self.dataset)
        assert (counts.images, counts.top1, counts.top5, counts.agreement) == (4, 0.25, 0.5, 0.75)
        assert counts.sqnr_db == pytest.approx(20.0)  # 400 over 4
        assert counts.max_difference == 1.0
        assert counts.not_finite == 0

    def test_counts_of_the_reference_itself(self):
        counts = statistics.accuracy(self.reference, self.reference, self.dataset)
        assert (counts.top1, counts.top5, counts.agreement) == (0.5, 0.75, 1.0)
        assert counts.sqnr_db is None

    def test_labels_of_another_order_are_noticed(self):
        shifted = msgspec.structs.replace(self.dataset, labels=(1, 2, 3, 0))
        assert statistics.accuracy(self.candidate, None, shifted).top1 == 0.0

    def test_answers_that_are_no_numbers_are_right_and_agree_nowhere(self):
        """Class 0 is the first label, and what argmax makes of NaN."""
        lost = Outputs(top5=((), (1, 9), (), ()))
        counts = statistics.accuracy(lost, msgspec.structs.replace(lost), self.dataset)
        assert (counts.top1, counts.top5, counts.agreement, counts.not_finite) == (0.25, 0.25, 0.25, 3)
        assert statistics.accuracy(self.candidate, lost, self.dataset).agreement == 0.0

    def test_without_labels_or_reference_the_figures_are_absent(self):
        unlabelled = msgspec.structs.replace(self.dataset, labels=())
        alone = statistics.accuracy(self.candidate, None, unlabelled)
        assert (alone.top1, alone.top5, alone.top1_change, alone.agreement) == (None, None, None, None)
        assert statistics.accuracy(self.candidate, self.reference, unlabelled).agreement == 0.75

    def test_change_counts_the_same_images(self):
        change = statistics.accuracy(self.candidate, self.reference, self.dataset).top1_change
        # One lost, none gained. By hand after Agresti and Min: -1/6 with a half width of 1.96 sqrt(2 - 1/6) / 6.
        assert (change.value, change.low, change.high) == pytest.approx((-0.25, -0.60897, 0.27564), abs=1e-5)

    def test_change_is_narrower_when_the_same_images_are_right(self):
        labels = (0,) * 98
        dataset = DatasetRecord(name="synthetic", digest="", images=98, labels=labels)
        half = Outputs(top5=((0,), (1,)) * 49)
        other_half = Outputs(top5=((1,), (0,)) * 49)
        same = statistics.accuracy(half, half, dataset).top1_change
        swapped = statistics.accuracy(other_half, half, dataset).top1_change
        assert (same.value, same.low, same.high) == pytest.approx((0.0, -0.0196, 0.0196), abs=1e-5)
        assert swapped.value == 0.0
        assert swapped.high - swapped.low > 0.3


class TestSqnr:
    @pytest.mark.parametrize(
        ("noise", "signal", "expected"),
        [((1.0, 1.0), (100.0, 100.0), 20.0), ((2.0, 0.0), (1.0, 1.0), 0.0), ((0.0, 0.0), (1.0, 1.0), math.inf)],
    )
    def test_by_hand(self, noise, signal, expected):
        assert self.sqnr(noise, signal) == pytest.approx(expected)

    def test_sums_powers_and_does_not_average_decibels(self):
        assert self.sqnr((1.0, 100.0), (100.0, 100.0)) == pytest.approx(10 * math.log10(200 / 101))
        assert np.mean([20.0, 0.0]) == 10.0

    def test_of_a_reference_that_answers_nothing(self):
        assert self.sqnr((1.0,), (0.0,)) == -math.inf

    @pytest.mark.parametrize("bad", [None, math.nan, math.inf])
    def test_is_nan_where_logits_are_not_finite(self, bad):
        counts = self.counts((bad, 1.0), (100.0, 100.0))
        assert math.isnan(counts.sqnr_db)
        assert math.isnan(counts.max_difference)
        assert counts.not_finite == 1

    def sqnr(self, noise, signal):
        return self.counts(noise, signal).sqnr_db

    @staticmethod
    def counts(noise, signal):
        outputs = Outputs(top5=((0,),) * len(noise), noise=noise, signal=signal, max_difference=noise)
        dataset = DatasetRecord(name="synthetic", digest="", images=len(noise))
        return statistics.accuracy(outputs, None, dataset)


class TestSpreadWarnings:
    def test_steady_calls_raise_none(self):
        assert spread_warnings(make_samples(1, [0.010, 0.011] * 50)) == []

    def test_too_few_calls_for_p99_are_told_once(self):
        few, enough = ([0.010, 0.011] * count for count in (49, 50))
        latency = (make_samples(8, few), make_samples(1, few), make_samples(1, few, scope="device"))
        assert thin_warnings(latency) == ("p99 at batch 1, 8 is simply the slowest of fewer than 100 calls",)
        assert thin_warnings((make_samples(1, enough),)) == ()

    @pytest.mark.parametrize(("slow_calls", "warned"), [(1, False), (2, True)])
    def test_wide_spread(self, slow_calls, warned):
        # Spread over both halves, so that only the tail moves; one slow call of a hundred lies beyond p99.
        seconds = [0.010] * 100
        for position in (20, 80)[:slow_calls]:
            seconds[position] = 0.030
        warnings = spread_warnings(make_samples(1, seconds))
        assert warnings == (["unsteady at batch 1: p99 is 3.0 times p50"] if warned else [])

    @pytest.mark.parametrize(
        ("later", "expected"),
        [
            (0.0112, ["drifting at batch 1: the second half is +12% against the first"]),
            (0.0088, ["drifting at batch 1: the second half is -12% against the first"]),
            (0.0109, []),
        ],
    )
    def test_drift(self, later, expected):
        assert spread_warnings(make_samples(1, [0.010] * 50 + [later] * 50)) == expected

    def test_drift_needs_twenty_calls(self):
        nineteen = spread_warnings(make_samples(1, [0.010] * 9 + [0.015] * 10))
        twenty = spread_warnings(make_samples(1, [0.010] * 10 + [0.015] * 10))
        assert [warning for warning in nineteen if "drifting" in warning] == []
        assert [warning for warning in twenty if "drifting" in warning] != []


class TestSummarize:
    def test_warns_of_a_p99_that_few_calls_make_at_any_batch(self):
        record = make_record()
        engine = record.engines[1]
        assert engine.latency[0].batch == 1
        assert not any("slowest of fewer" in warning for warning in statistics.summarize(record)[1].warnings)
        short = [
            msgspec.structs.replace(samples, seconds=samples.seconds[:60], rounds=samples.rounds[:60])
            for samples in engine.latency[1:]
        ]
        engine = msgspec.structs.replace(engine, latency=(engine.latency[0], *short))
        changed = msgspec.structs.replace(record, engines=(record.engines[0], engine, *record.engines[2:]))
        batches = ", ".join(str(samples.batch) for samples in short)
        expected = f"p99 at batch {batches} is simply the slowest of fewer than 100 calls"
        assert expected in statistics.summarize(changed)[1].warnings

    def test_one_row_per_engine_in_order(self):
        record = make_record()
        rows = statistics.summarize(record)
        assert [row.engine.name for row in rows] == [engine.name for engine in ENGINES]
        first = record.engines[1].latency[0]
        assert rows[1].latency is first
        assert rows[1].best.batch == 32
        assert rows[1].throughput == pytest.approx(statistics.throughput(rows[1].best))
        assert rows[0].speedup is rows[0].compared is None
        assert rows[2].speedup.low > 2.0
        assert rows[2].accuracy.agreement < rows[1].accuracy.agreement == 1.0

    def test_without_reference_or_images(self):
        alone = statistics.summarize(make_record(reference=""))
        assert {row.speedup for row in alone} == {None}
        assert all(row.accuracy.agreement is None and row.accuracy.top1 is not None for row in alone)
        assert {row.accuracy for row in statistics.summarize(make_record(images=0))} == {None}

    def test_says_who_is_faster_and_whose_answers_are_better(self):
        rows = statistics.summarize(make_record())
        assert (rows[0].speed_verdict, rows[0].accuracy_verdict) == (None, None)
        assert [row.speed_verdict for row in rows[1:]] == ["faster"] * 3
        assert [row.accuracy_verdict for row in rows[1:3]] == ["no significant difference", "worse"]
        flips = rows[2].accuracy.flips
        assert (rows[2].accuracy.top1 - rows[0].accuracy.top1) * 400 == pytest.approx(flips.gained - flips.lost)

    def test_equal_engines_are_not_told_apart(self):
        twins = make_record((REFERENCE, renamed(REFERENCE, "twin"), renamed(REFERENCE, "other", call_s=0.005)))
        rows = statistics.summarize(twins)
        assert [row.speed_verdict for row in rows[1:]] == ["no significant difference"] * 2
        assert [row.accuracy_verdict for row in rows[1:]] == ["no significant difference"] * 2
        slower = make_record((REFERENCE, renamed(REFERENCE, "slower", image_s=0.027)))
        assert statistics.summarize(slower)[1].speed_verdict == "slower"

    def test_verdicts_share_their_confidence(self):
        """With ten engines of which seven images in 400 flipped, none is worse; alone, one is."""
        worse = renamed(ENGINES[1], "worse", flips=0.02)
        crowd = (REFERENCE, *(renamed(worse, f"worse-{number}") for number in range(10)))
        (alone,) = statistics.summarize(make_record((REFERENCE, worse)))[1:]
        together = statistics.summarize(make_record(crowd))[1:]
        assert (alone.level, together[0].level) == (0.05, pytest.approx(0.005))
        assert together[0].accuracy.flips == alone.accuracy.flips
        assert 0.005 < alone.accuracy.flips.p_value < 0.05
        assert (alone.accuracy_verdict, together[0].accuracy_verdict) == ("worse", "no significant difference")
        wide, narrow = together[0].speedup, alone.speedup
        assert wide.low < narrow.low < narrow.value < narrow.high < wide.high

    def test_seven_rounds_are_enough_for_three_engines_and_not_for_ten(self):
        """The rarest of 2^7 ways to sign seven rounds has, on either side, 1/128: 0.0156 in all."""
        crowd = (REFERENCE, *(renamed(ENGINES[2], f"int8-{number}") for number in range(4)))
        (*_, three), (*_, four) = (statistics.summarize(make_record(crowd[:count], rounds=7)) for count in (4, 5))
        assert (three.speed_verdict, four.speed_verdict) == ("faster", "too few rounds for a verdict")

    def test_there_is_no_verdict_without_labels_reference_or_rounds(self):
        assert {row.accuracy_verdict for row in statistics.summarize(make_record(labelled=False))} == {None}
        assert {row.speed_verdict for row in statistics.summarize(make_record(reference=""))} == {None}
        assert statistics.summarize(make_record(rounds=4))[1].speed_verdict == "too few rounds for a verdict"

    def test_warns_of_few_rounds(self):
        assert [row.warnings for row in statistics.summarize(make_record(rounds=5, calls=40))] == [()] * len(ENGINES)
        warned = statistics.summarize(make_record(rounds=4, calls=50))
        assert [row.warnings for row in warned] == [
            ("intervals of times and rates rest on 4 rounds at batch 32: they are too narrow",)
        ] * 4

    def test_warns_of_logits_that_are_not_finite(self):
        overflowing = SyntheticEngine("overflowing-fp16", "tensorrt", "fp16", noise=math.nan)
        rows = statistics.summarize(make_record((REFERENCE, overflowing)))
        assert rows[0].warnings == ()
        assert rows[1].warnings == ("400 of 400 images gave logits that are NaN or infinite",)

    def test_warns_of_an_unsteady_best_batch(self):
        record = make_record(ENGINES[:1])
        first, *_, best = record.engines[0].latency
        unsteady = msgspec.structs.replace(
            best, seconds=tuple(3 * s if n % 20 == 0 else s for n, s in enumerate(best.seconds))
        )
        engine = msgspec.structs.replace(record.engines[0], latency=(first, unsteady))
        # 1.1 times as long on average: still the best batch, of two.
        (row,) = statistics.summarize(msgspec.structs.replace(record, engines=(engine,)))
        assert row.best.batch == 32
        assert [warning.split(":")[0] for warning in row.warnings] == ["unsteady at batch 32"]


class TestRecords:
    @pytest.mark.parametrize("kwargs", [{}, {"labelled": False}, {"images": 0}, {"reference": ""}], ids=str)
    def test_round_trip(self, tmp_path, kwargs):
        record = make_record(**kwargs)
        write_record(record, tmp_path / "bench.json")
        read = read_record(tmp_path / "bench.json")
        assert read == record
        assert statistics.summarize(read) == statistics.summarize(record)
        assert read != make_record(batches=(1, 2))

    def test_what_is_not_finite_survives_as_none(self, tmp_path):
        overflowing = SyntheticEngine("overflowing-fp16", "tensorrt", "fp16", noise=math.nan)
        write_record(make_record((REFERENCE, overflowing), images=3), tmp_path / "bench.json")
        outputs = read_record(tmp_path / "bench.json").engines[1].outputs
        assert outputs.noise == outputs.max_difference == (None, None, None)
        assert outputs.signal == (100.0, 100.0, 100.0)

    def test_a_later_schema_is_refused_by_its_number(self, tmp_path):
        data = msgspec.to_builtins(make_record())
        path = tmp_path / "bench.json"
        path.write_bytes(msgspec.json.encode(data | {"schema_version": 99, "engines": "another form"}))
        with pytest.raises(FileError, match="schema version 99"):
            read_record(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda data: data.update(reference="nobody"), "the reference 'nobody' is not among the engines"),
            (lambda data: data["dataset"]["labels"].pop(), "399 labels for 400 images"),
            (lambda data: data["engines"][1]["outputs"]["top5"].pop(), "399 answers of .* for 400 images"),
            (lambda data: data["engines"][0]["latency"].clear(), "latency"),
            (lambda data: data["engines"][0]["latency"][0]["rounds"].pop(), "200 calls in 199 rounds"),
            (lambda data: data["engines"][0]["latency"][0].update(seconds=[], rounds=[]), "0 calls"),
            (lambda data: data["engines"][0]["latency"][0]["seconds"].__setitem__(3, 0.0), r"latency\[0\]\.seconds"),
            (lambda data: data["engines"][0]["latency"][0]["seconds"].__setitem__(3, 5e-324), r"latency\[0\]\.seconds"),
            (lambda data: data["engines"][1].update(name=data["engines"][0]["name"]), "two engines have one name"),
            (lambda data: data.update(threads=-5), "threads"),
            (lambda data: data.update(created="yesterday"), "created"),
            (lambda data: data.pop("seed"), "seed"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, tmp_path, change, message):
        data = msgspec.json.decode(msgspec.json.encode(make_record()))
        path = tmp_path / "bench.json"
        path.write_bytes(msgspec.json.encode(data))
        read_record(path)
        change(data)
        path.write_bytes(msgspec.json.encode(data))
        with pytest.raises(FileError, match=message):
            read_record(path)

    def test_another_file_is_refused(self, tmp_path):
        (tmp_path / "bench.json").write_text("not JSON")
        with pytest.raises(FileError, match="is no record of `bench`"):
            read_record(tmp_path / "bench.json")
