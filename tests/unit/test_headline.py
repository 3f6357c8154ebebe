"""Which samples figures are quoted from: one scope for all engines, like numbers of callers, CUDA graphs first."""

from dataclasses import replace

import msgspec
import pytest
from record_factory import ENGINES, REFERENCE, make_full_record, make_record, make_samples

from resnet_deploy.bench import statistics
from resnet_deploy.bench.headline import best_samples, headline_scope, like_samples, smallest_samples, way_order
from resnet_deploy.bench.records import Way
from resnet_deploy.report import wording
from resnet_deploy.report.columns import columns
from resnet_deploy.report.way_columns import way_columns


def with_latency(engine, *latency):
    return msgspec.structs.replace(engine, latency=latency)


def timed_in(scopes, engines=ENGINES[:2]):
    """A record whose engines were timed in ``scopes``; copies are a thousand times as fast as calls."""
    record = make_record(engines, batches=(1, 8))
    timed = []
    for engine in record.engines:
        latency = []
        for scope in scopes:
            factor = 1e-3 if scope in ("h2d", "d2h") else 1.0
            latency += [
                msgspec.structs.replace(one, scope=scope, seconds=tuple(factor * s for s in one.seconds))
                for one in engine.latency
            ]
        timed.append(with_latency(engine, *latency))
    return msgspec.structs.replace(record, engines=tuple(timed))


class TestScope:
    @pytest.mark.parametrize(
        ("scopes", "chosen"),
        [
            (("device", "h2d", "d2h", "host"), "host"),
            (("device", "h2d", "d2h", "end_to_end"), "end_to_end"),
            (("d2h", "device", "h2d"), "device"),
            (("h2d", "d2h"), None),
        ],
    )
    def test_is_never_a_copy(self, scopes, chosen):
        record = timed_in(scopes)
        assert headline_scope(record.engines) == chosen
        row = statistics.summarize(record)[1]
        assert {one.scope for one in row.compared or ()} == ({chosen} if chosen else set())
        # 1000 is what a copy against a call would give.
        assert row.speedup is None if chosen is None else 1 < row.speedup.value < 2

    def test_is_one_that_all_engines_have(self):
        record = timed_in(("host", "device"))
        device = tuple(one for one in record.engines[1].latency if one.scope == "device")
        record = msgspec.structs.replace(record, engines=(record.engines[0], with_latency(record.engines[1], *device)))
        assert headline_scope(record.engines) == "device"
        assert headline_scope(()) is None

    def test_without_one_there_is_no_figure_but_in_the_table_of_scopes(self):
        record = timed_in(("h2d",))
        rows = statistics.summarize(record)
        assert [column.group for column in columns(record, rows) if column.group == "speed"] == []
        assert [column.header[1] for column in way_columns(record, rows)] == ["copy in"]
        assert not any("images/s" in line for line in wording.meanings(record))
        plain = timed_in(("host",))
        assert len(columns(plain, statistics.summarize(plain))) == len(columns(record, rows)) + 5


class TestCallers:
    def called_by(self, engine, *counts):
        """Twice the throughput of one caller with two, as an engine that left half of the machine idle has."""
        (one,) = engine.latency
        wall = tuple(sum(s for s, r in zip(one.seconds, one.rounds, strict=True) if r == n) for n in range(10))
        return with_latency(
            engine, *(msgspec.structs.replace(one, concurrency=n, wall=tuple(w / n for w in wall)) for n in counts)
        )

    def test_a_speedup_is_at_numbers_of_callers_that_both_have(self):
        reference, engine = make_record((REFERENCE, replace(REFERENCE, name="engine")), batches=(1,)).engines
        alone, both, two = self.called_by(reference, 1), self.called_by(engine, 1, 2), self.called_by(engine, 2)
        assert best_samples(both, "host").concurrency == 2
        first, second = like_samples(alone, both, "host")
        assert (first.concurrency, second.concurrency) == (1, 1)
        assert like_samples(self.called_by(reference, 1, 2), both, "host")[1].concurrency == 2
        assert like_samples(alone, two, "host") is None
        record = msgspec.structs.replace(make_record((REFERENCE,), batches=(1,)), engines=(alone, both))
        row = statistics.summarize(record)[1]
        # The same engine drawn twice: equal but for the noise of its calls, and twice as fast with two callers.
        assert row.speedup.value == pytest.approx(1, abs=0.02)
        assert row.throughput == pytest.approx(2 * statistics.throughput(row.compared[1]))

    def test_the_page_says_with_how_many(self):
        pytest.importorskip("plotly", reason="plotly draws the page")
        from resnet_deploy.report.html import _lead

        reference, engine = make_record(ENGINES[:2], batches=(1,)).engines
        record = make_record(ENGINES[:2], batches=(1,))
        engines = (self.called_by(reference, 1), self.called_by(engine, 1, 2))
        record = msgspec.structs.replace(record, engines=engines)
        lead = _lead(record, statistics.summarize(record))
        assert "at batch 1 with 2 callers, with 1 caller 1.4" in lead
        alike = msgspec.structs.replace(record, engines=(self.called_by(reference, 1, 2), engines[1]))
        assert "at batch 1 with 2 callers, 1.4" in _lead(alike, statistics.summarize(alike))


class TestWays:
    """Latencies are those of one caller with arrays in host memory; throughput may come from several."""

    quoted = make_samples(1, [0.020] * 10)
    engine = make_record(ENGINES[:1]).engines[0]

    @pytest.mark.parametrize(
        "other",
        [
            {"scope": "device"},
            {"scope": "end_to_end"},
            {"concurrency": 2, "wall": (0.1,)},
            {"offered": 30.0, "wall": (0.4,)},
            {"batch": 8},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_what_is_quoted_for_latency(self, other):
        changed = msgspec.structs.replace(make_samples(1, [0.005] * 10), **other)
        assert smallest_samples(with_latency(self.engine, changed, self.quoted), "host") is self.quoted
        assert smallest_samples(with_latency(self.engine, changed), "host") is changed

    def test_with_cuda_graphs_where_there_are_both(self):
        with_graphs, without = (msgspec.structs.replace(self.quoted, graphs=graphs) for graphs in (True, False))
        for latency in ((with_graphs, without), (without, with_graphs)):
            assert smallest_samples(with_latency(self.engine, *latency), "host") is with_graphs
            assert min(latency, key=lambda one: way_order(one.way)) is with_graphs

    def test_best_throughput_may_have_several_callers_but_the_same_scope(self):
        device = make_samples(1, [0.001] * 10, scope="device")
        four = msgspec.structs.replace(make_samples(1, [0.040] * 10), concurrency=4, wall=(0.1,))
        paced = msgspec.structs.replace(make_samples(1, [0.001] * 10), offered=1000.0, wall=(0.01,))
        assert best_samples(with_latency(self.engine, device, paced, self.quoted), "host") is self.quoted
        assert best_samples(with_latency(self.engine, device, paced, four, self.quoted), "host") is four
        assert statistics.throughput(four) == pytest.approx(100.0)  # not 25, which the sum of overlapping calls gives
        assert best_samples(with_latency(self.engine, device, four), "device") is device

    def test_ways_have_one_order(self):
        ways = [one.way for one in make_full_record().engines[0].latency]
        assert sorted(ways, key=way_order)[:3] == [Way(1), Way(1, "host", 2), Way(1, "host", 4)]
        assert sorted([Way(1, graphs=False), Way(1, graphs=True)], key=way_order)[0].graphs is True
