"""What figures were computed from: addresses, rules, the tables of every way of calling, the command of a run."""

import msgspec
import pytest

pytest.importorskip("plotly", reason="plotly draws the page")
pytest.importorskip("jinja2", reason="jinja2 fills in the page")

from record_factory import ENGINES, HOSTILE, SyntheticEngine, make_full_record, make_record, make_samples

from resnet_deploy.bench import statistics
from resnet_deploy.bench.records import Way
from resnet_deploy.report import evidence, reproduce, wording
from resnet_deploy.report.columns import columns
from resnet_deploy.report.every_way import way_tables
from resnet_deploy.report.verdict_columns import verdict_columns
from resnet_deploy.report.way_columns import way_columns


@pytest.fixture(scope="module")
def record():
    return make_full_record()


@pytest.fixture(scope="module")
def rows(record):
    return statistics.summarize(record)


class TestEvidence:
    @pytest.mark.parametrize(
        ("way", "key"),
        [
            (Way(1), "host-b1"),
            (Way(8, "end_to_end", 2), "end_to_end-b8-c2"),
            (Way(4, "device", 1, graphs=True), "device-b4-graphs"),
            (Way(4, "device", 1, graphs=False), "device-b4-nographs"),
            (Way(1, "host", 1, offered=62.5), "host-b1-r62.5"),
        ],
    )
    def test_way_key(self, way, key):
        assert evidence.way_key(way) == key

    def test_ways_of_a_record_have_keys_of_their_own(self, record):
        for engine in record.engines:
            keys = [evidence.way_key(samples.way) for samples in engine.latency]
            assert len(set(keys)) == len(keys) == 13

    @pytest.mark.parametrize(
        ("percent", "figure", "call", "rule"),
        [
            (50, "p50", 2, "nearest-rank p50 of 4 calls: number 2 from the fastest"),
            (99, "p99", 3, "nearest-rank p99 of 4 calls: number 4 from the fastest"),
            (0, "fastest", 1, "the fastest of 4 calls"),
            (100, "slowest", 3, "the slowest of 4 calls"),
        ],
    )
    def test_a_percentile_is_a_call(self, record, percent, figure, call, rule):
        found = evidence.of_percentile(record.engines[0], make_samples(1, (3.0, 1.0, 2.0, 4.0)), percent)
        assert (found.figure, found.call, found.rule) == (figure, call, rule)
        assert found.address == f"#samples/pytorch/host-b1/{figure}"

    def test_the_rank_told_is_the_call_shown(self, record):
        """2.2 has no binary form: 2.2 % of 1500 must not come to one more than 33."""
        samples = make_samples(1, map(float, range(1, 1501)))
        found = evidence.of_percentile(record.engines[0], samples, 2.2)
        assert found.rule == "nearest-rank p2.2 of 1,500 calls: number 33 from the fastest"
        assert samples.seconds[found.call] == 33.0

    def test_hostile_names_are_quoted_in_addresses(self, record):
        engine = msgspec.structs.replace(record.engines[0], name=HOSTILE + "/host-b1?#")
        address = evidence.of_throughput(engine, engine.latency[0]).address
        assert address.count("/") == 3
        assert not set("<>'\" ?\x1b") & set(address)
        assert address.count("#") == 1

    def test_throughput_of_callers_goes_by_the_wall_clock(self, record):
        samples = next(one for one in record.engines[1].latency if one.concurrency == 2)
        alone = next(one for one in record.engines[1].latency if one.concurrency == 1)
        assert "of wall clock" in evidence.of_throughput(record.engines[1], samples).rule
        assert "one after the other" in evidence.of_throughput(record.engines[1], alone).rule

    def test_every_figure_of_the_results_has_evidence_or_is_no_figure(self, record, rows):
        listed = (*columns(record, rows, detail=True), *way_columns(record, rows))
        without = {
            (column.header[1], cell.text)
            for column in listed
            for row in rows
            if (cell := column.cell(row)).evidence is None
        }
        of_others = ("points", "PyTorch %", "SQNR dB", "PyTorch = 1")  # the reference has no such figures
        assert {header for header, _ in without} == {"precision", "MB", *of_others}
        assert {text for header, text in without if header in of_others} == {wording.NOTHING, "1"}


class TestWays:
    def test_a_table_for_each_scope(self, record):
        tables = way_tables(record)
        assert [table.scope for table in tables] == ["host", "device", "end to end"]
        assert [table.header for table in tables] == [("batch", "callers"), ("batch",), ("batch",)]
        assert [len(lines) for _, lines in tables[0].engines] == [7] * 6
        assert [len(lines) for _, lines in tables[1].engines] == [3] * 6

    def test_figures_by_hand(self, record):
        samples = record.engines[2].latency[0]
        name, lines = way_tables(record)[0].engines[2]
        cells = lines[0]
        ordered = sorted(samples.seconds)
        assert name == "resnet50-onnxruntime-int8"
        assert [cell.text for cell in cells[:2]] == ["1", "1"]
        ranks = (0, 99, 179, 189, 197, None, 199)  # of 200 calls; p99.9 is left out
        expected = [wording.NOTHING if rank is None else wording.milliseconds(ordered[rank]) for rank in ranks]
        assert [cell.text for cell in cells[2:9]] == expected
        assert cells[9].text == wording.significant(200 / sum(samples.seconds))
        assert [cell.text for cell in cells[10:]] == ["200", "10"]

    def test_p99_9_needs_a_thousand_calls(self):
        few, many = (way_tables(make_record(ENGINES[:1], batches=(1,), calls=calls)) for calls in (99, 100))
        assert few[0].engines[0][1][0][6].text == wording.NOTHING
        assert many[0].engines[0][1][0][6].text != wording.NOTHING

    def test_columns_for_what_varied(self):
        ways = (Way(1, "host", 1, graphs=True), Way(1, "host", 1, graphs=False))
        record = make_record(ENGINES[:2], ways=ways)
        assert way_tables(record)[0].header == ("batch", "CUDA graphs")
        texts = [lines[number][1].text for _, lines in way_tables(record)[0].engines for number in (0, 1)]
        assert texts == ["yes", "no"] * 2

    def test_copies_have_no_throughput(self):
        record = make_record(ENGINES[:1], batches=(1,))
        copy = msgspec.structs.replace(record.engines[0].latency[0], scope="h2d")
        engine = msgspec.structs.replace(record.engines[0], latency=(*record.engines[0].latency, copy))
        host, copies = way_tables(msgspec.structs.replace(record, engines=(engine,)))
        assert host.engines[0][1][0][8].text != wording.NOTHING
        assert copies.scope == "copy in"
        assert copies.engines[0][1][0][8].text == wording.NOTHING

    def test_scopes_and_callers_get_columns_once_there_are_several(self, record, rows):
        headers = [column.header[1] for column in way_columns(record, rows)]
        assert headers == ["host", "device", "end to end", "1", "2", "4"]
        plain = make_record()
        assert way_columns(plain, statistics.summarize(plain)) == ()


class TestVerdicts:
    def test_speed_and_accuracy_have_verdicts(self, record, rows):
        listed = verdict_columns(record, rows)
        assert [column.header[1] for column in listed] == ["verdict", "gained", "lost", "McNemar p", "verdict"]
        reference, float32, int8 = ([column.cell(row).text for column in listed] for row in rows[:3])
        assert reference == [wording.NOTHING] * 5
        assert float32 == ["faster", "0", "0", "1.0000", "no significant difference"]
        flips = rows[2].accuracy.flips
        assert int8[:3] == ["faster", f"{flips.gained}", f"{flips.lost}"]
        assert flips.lost > flips.gained

    def test_slower_is_said_too(self, record):
        slow = SyntheticEngine("slow", call_s=1.0, image_s=1.0)
        slower = make_record((ENGINES[0], slow), labelled=False)
        (column,) = verdict_columns(slower, statistics.summarize(slower))
        assert column.cell(statistics.summarize(slower)[1]).text == "slower"

    def test_without_a_reference_there_are_none(self):
        plain = make_record(reference="")
        assert verdict_columns(plain, statistics.summarize(plain)) == ()


class TestCommand:
    def test_names_what_the_record_knows(self):
        command = reproduce.command(make_full_record())
        assert command == (
            "resnet-deploy bench resnet50-onnxruntime-fp32 resnet50-onnxruntime-int8 resnet50-openvino-int8 "
            "--data synthetic-set --batches 1,8,32 --scopes host,device,end_to_end --concurrency 1,2,4 --rounds 10 "
            "--seconds 20 --seed 3 --threads 2 --peers onnxruntime-plain,openvino-nncf --layers"
        )

    def test_what_is_the_default_goes_unsaid(self):
        command = reproduce.command(make_record(ENGINES[:1], images=0))
        assert command == "resnet-deploy bench --batches 1,8,32 --rounds 10 --seconds 40 --seed 3 --threads 2"

    @pytest.mark.parametrize(
        ("graphs", "said"),
        [((None,), ""), ((True,), ""), ((False,), "--graphs off "), ((True, False), "--graphs both ")],
    )
    def test_graphs(self, graphs, said):
        command = reproduce.command(make_record(ways=[Way(1, "host", 1, one) for one in graphs]))
        assert f"--batches 1 {said}--rounds" in command

    def test_a_suite_is_its_own_command(self, record):
        named = msgspec.structs.replace(record, suite="benchmarks/cpu.toml")
        assert reproduce.command(named) == "resnet-deploy bench --suite benchmarks/cpu.toml"

    def test_the_rank_told_is_the_call_shown(self, record):
        """2.2 has no binary form: 2.2 % of 1500 must not come to one more than 33."""
        samples = make_samples(1, map(float, range(1, 1501)))
        found = evidence.of_percentile(record.engines[0], samples, 2.2)
        assert found.rule == "nearest-rank p2.2 of 1,500 calls: number 33 from the fastest"
        assert samples.seconds[found.call] == 33.0

    def test_hostile_names_are_quoted(self):
        record = make_record((ENGINES[0], SyntheticEngine("x; rm -rf /")), images=0)
        assert " 'x; rm -rf /' --batches" in reproduce.command(record)

    def test_without_engines_there_is_none(self):
        assert reproduce.command(make_record((), reference="")) == ""
