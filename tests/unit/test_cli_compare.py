"""`resnet-deploy compare` over synthetic records."""

import io
import json
import math

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from loadgen_factory import make_record as make_loadgen_record
from record_factory import HOSTILE, REFERENCE, SyntheticEngine, make_record
from rich.cells import cell_len
from rich.console import Console

from resnet_deploy.bench.compare import CompareSpec, compare
from resnet_deploy.bench.evaluation_records import EvaluatedEngine, EvaluationCost, EvaluationRecord
from resnet_deploy.bench.records import MachineState, Way, write_record
from resnet_deploy.cli import main
from resnet_deploy.report import wording
from resnet_deploy.report.comparison import print_comparison, way_in_words

INT8 = "resnet50-onnxruntime-int8"


def slowed(record, factor, name=INT8):
    """The record with every call of one engine so many times as long."""
    engines = tuple(
        msgspec.structs.replace(
            one,
            latency=tuple(
                msgspec.structs.replace(samples, seconds=tuple(s * factor for s in samples.seconds))
                for samples in one.latency
            ),
        )
        if one.name == name
        else one
        for one in record.engines
    )
    return msgspec.structs.replace(record, engines=engines)


@pytest.fixture(scope="module")
def record():
    return make_record(rounds=20, calls=20)


@pytest.fixture
def run(tmp_path, record):
    """Compare ``record`` with another; return the result of the command."""

    def compare_with(other, *options):
        for name, one in (("old.json", record), ("new.json", other)):
            write_record(one, tmp_path / name)
        return CliRunner().invoke(main, ["compare", str(tmp_path / "old.json"), str(tmp_path / "new.json"), *options])

    return compare_with


class TestCommand:
    def test_equal_runs_end_with_0(self, run, record):
        done = run(record)
        assert (done.exit_code, done.stderr) == (0, "")
        assert done.stdout.count("no significant difference") >= 9
        assert "worse" not in done.stdout
        assert "to pytorch, which itself took 1.000 (" in done.stdout

    def test_a_regression_ends_with_1(self, run, record):
        done = run(slowed(record, 1.05))
        assert done.exit_code == 1
        assert done.stdout.count("worse: regression") == 3
        assert done.stderr.splitlines()[0] == f"error: {INT8} is slower"
        assert "1.050 (1.0" in done.stdout

    def test_the_tolerance_is_the_users(self, run, record):
        assert run(slowed(record, 1.05), "--tolerance", "6").exit_code == 0
        assert run(slowed(record, 1.05), "--tolerance", "4").exit_code == 1

    def test_unlike_runs_end_with_2_and_are_compared_anyway(self, run, record):
        other = msgspec.structs.replace(slowed(record, 1.05), threads=8)
        done = run(other)
        assert (done.exit_code, done.stdout) == (2, "")
        assert "the runs are not alike: threads: 2 against 8" in done.stderr
        done = run(other, "--anyway")
        assert done.exit_code == 1
        assert "threads: 2 against 8" in done.stdout

    def test_engines_and_control_may_be_named(self, run, record):
        done = run(slowed(record, 1.05), "--engine", "resnet50-openvino-int8", "--relative-to", "none")
        assert done.exit_code == 0
        assert INT8 not in done.stdout
        assert "to nothing (as was asked for)" in done.stdout
        done = run(record, "--engine", f"resnet50-onnxruntime-fp32={INT8}")
        assert f"resnet50-onnxruntime-fp32 → {INT8}" in done.stdout
        assert run(record, "--engine", "nobody").exit_code == 2
        assert run(record, "--tolerance", "100").exit_code == 2

    def test_json_has_every_figure_and_fails_too(self, run, record):
        done = run(slowed(record, 1.05), "--json")
        assert done.exit_code == 1
        found = json.loads(done.stdout)
        assert found["regressions"] == [f"{INT8} is slower"]
        engine = next(one for one in found["engines"] if one["new"] == INT8)
        assert engine["ways"][0]["way"]["batch"] == 1
        assert engine["ways"][0]["p50"]["value"] == pytest.approx(1.05)
        assert engine["ways"][0]["regression"] is True
        assert engine["answers"]["flips"] == {"gained": 0, "lost": 0, "p_value": 1.0}
        assert found["control"]["name"] == "pytorch"

    def test_uncertainty_is_said_and_fails_where_that_was_asked_for(self, run, record):
        """Rounds that differ by half tell no slowdown of 2 %; those of the record do."""
        rng = np.random.default_rng(0)
        noisy = with_noise(record, rng, 0.5)
        said, asked = run(noisy), run(noisy, "--require-certainty")
        assert said.exit_code == 0
        assert f"{INT8}: too uncertain to tell a slowdown of 2 %" in " ".join(said.stdout.split())
        assert (asked.exit_code, asked.stdout) == (1, said.stdout)
        assert f"{INT8}: too uncertain to tell a slowdown of 2 %" in asked.stderr
        assert "more --rounds" in asked.stderr
        found = json.loads(run(noisy, "--json").stdout)
        assert found["uncertain"] == [INT8]
        marked = {engine["new"]: {way["uncertain"] for way in engine["ways"]} for engine in found["engines"]}
        assert [name for name, ways in marked.items() if True in ways] == [INT8]
        assert run(noisy, "--require-certainty", "--tolerance", "99").exit_code == 0

    def test_equal_runs_on_a_quiet_machine_are_certain(self, run, record):
        done = run(with_noise(record, np.random.default_rng(0), 0.005), "--require-certainty")
        assert (done.exit_code, done.stderr) == (0, "")
        assert "uncertain" not in done.stdout
        done = run(record, "--require-certainty", "--tolerance", "0")
        assert done.exit_code == 2
        assert "no run can rule out every slowdown" in done.stderr

    def test_too_few_rounds_are_not_certain(self, tmp_path):
        short = make_record(rounds=3, calls=40)
        write_record(short, tmp_path / "short.json")
        command = ["compare", *[str(tmp_path / "short.json")] * 2]
        assert CliRunner().invoke(main, command).exit_code == 0
        assert CliRunner().invoke(main, [*command, "--require-certainty"]).exit_code == 1

    def test_a_tolerance_without_labels_is_refused(self, run, record, tmp_path):
        for path in ("old.json", "new.json"):
            write_record(make_record(labelled=False), tmp_path / path)
        command = ["compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")]
        done = CliRunner().invoke(main, [*command, "--accuracy-tolerance", "1"])
        assert (done.exit_code, done.stdout) == (2, "")
        assert (
            "--accuracy-tolerance has no effect with runs that did not answer the same labelled images" in done.stderr
        )
        assert CliRunner().invoke(main, command).exit_code == 0
        assert run(record, "--accuracy-tolerance", "1").exit_code == 0

    def test_hints_are_of_what_was_found(self, run, record):
        missing = msgspec.structs.replace(record, engines=record.engines[:2], not_run=())
        done = run(missing)
        assert done.exit_code == 1
        assert f"{INT8} did not run" in done.stderr
        assert "--engine" in done.stderr
        assert "--tolerance" not in done.stderr
        slower = run(slowed(record, 1.05)).stderr
        assert "--tolerance says" in slower
        assert "--engine" not in slower

    def test_records_of_other_commands_are_told_apart(self, tmp_path):
        kinds = {"evaluate": make_evaluation(), "loadgen": make_loadgen_record(())}
        for command, content in kinds.items():
            (tmp_path / "it.json").write_bytes(msgspec.json.encode(content))
            done = CliRunner().invoke(main, ["compare", *[str(tmp_path / "it.json")] * 2])
            assert done.exit_code == 2
            assert f"it.json is a record of `{command}`" in done.stderr

    def test_what_is_no_record_is_refused(self, run, record, tmp_path):
        (tmp_path / "no.json").write_text("{}")
        done = CliRunner().invoke(main, ["compare", str(tmp_path / "no.json"), str(tmp_path / "no.json")])
        assert done.exit_code == 2
        assert "is no record of `bench`" in done.stderr


def make_evaluation():
    """The record of an evaluation of one engine on the images of a synthetic record."""
    record = make_record(images=4)
    engine = record.engines[0]
    names = ("name", "backend", "precision", "size_bytes", "sha256", "device", "role", "in_sample", "outputs")
    evaluated = EvaluatedEngine(**{name: getattr(engine, name) for name in names})
    shared = ("created", "environment", "architecture", "weights_sha256", "preprocess", "threads", "dataset")
    return EvaluationRecord(
        **{name: getattr(record, name) for name in shared},
        batch=8,
        workers=2,
        engines=(evaluated,),
        cost=EvaluationCost(sessions=1, seconds=1.0, waiting=0.5, inferring=0.4),
    )


def with_noise(record, rng, spread):
    """The record with one engine's rounds longer or shorter by random factors."""

    def noisy(samples):
        factors = np.exp(rng.normal(0, spread, 1 + max(samples.rounds)))
        seconds = (float(s * factors[n]) for s, n in zip(samples.seconds, samples.rounds, strict=True))
        return msgspec.structs.replace(samples, seconds=tuple(seconds))

    engines = tuple(
        msgspec.structs.replace(one, latency=tuple(map(noisy, one.latency))) if one.name == INT8 else one
        for one in record.engines
    )
    return msgspec.structs.replace(record, engines=engines)


def text_of(comparison, width):
    console = Console(file=io.StringIO(), width=width)
    print_comparison(comparison, console)
    return console.file.getvalue()


class TestTerminal:
    @pytest.mark.parametrize("width", [80, 100, 132, 200])
    def test_fits_and_cuts_no_figure(self, record, width):
        text = text_of(compare(record, slowed(record, 1.05), CompareSpec()), width)
        assert max(map(cell_len, text.splitlines())) <= width
        assert "…" not in text
        assert ("p99\n" in text or " p99 " in text.split("─")[0]) == (width >= 110)
        assert text.count("1.050 (1.0") >= 3

    def test_says_what_cannot_be_told(self):
        short = make_record(rounds=3, calls=40, labelled=False)
        text = " ".join(text_of(compare(short, short, CompareSpec()), 120).split())
        assert f"1.000 (0.000{wording.NOTHING}∞)" in text
        assert "too few rounds for this confidence" in text
        assert "100.00 % of 400 answers as before; no labels, so no verdict" in text

    def test_a_p99_that_is_not_there_is_explained(self, record):
        few = make_record(rounds=20, calls=4)
        wide, narrow = (" ".join(text_of(compare(few, few, CompareSpec()), width).split()) for width in (132, 80))
        explained = f"p99 {wording.NOTHING} where a run made fewer than 100 calls"
        assert explained in wide
        assert explained not in narrow  # nor is there a p99
        assert explained not in " ".join(text_of(compare(record, record, CompareSpec()), 132).split())

    def test_says_what_is_missing_and_how_the_machine_was(self, record):
        busy = tuple(MachineState(round=number, seconds=1.0, elsewhere=0.3) for number in range(4))
        new = msgspec.structs.replace(record, engines=record.engines[:2], not_run=(), machine=busy)
        text = " ".join(text_of(compare(record, new, CompareSpec()), 120).split())
        assert f"missing {INT8}: the new run does not have it" in text
        assert "the new run: other processes took 30% of the cores' time" in text
        assert "the old run" not in text

    def test_names_cannot_steer_the_terminal(self):
        hostile = make_record((REFERENCE, SyntheticEngine(HOSTILE)))
        changed = msgspec.structs.replace(hostile, engines=hostile.engines[:1])
        for new in (hostile, changed):
            text = text_of(compare(hostile, new, CompareSpec()), 250)
            assert "\x1b" not in text
            assert "\u202e" not in text
            assert r"\x1b" in text

    @pytest.mark.parametrize(
        ("way", "words"),
        [
            (Way(1), "batch 1"),
            (Way(8, "host", 4), "batch 8, 4 callers"),
            (Way(1, "device", 1, True), "batch 1, device, graphs"),
            (Way(1, "h2d"), "batch 1, copy in"),
            (Way(1, "host", 1, False, 120.0), "batch 1, no graphs, 120 calls/s due"),
        ],
    )
    def test_ways_in_words(self, way, words):
        assert way_in_words(way) == words


def test_infinity_is_null_in_json(run, record):
    short = make_record(rounds=3, calls=40)
    found = compare(short, short, CompareSpec())
    assert found.engines[0].ways[0].p50.high == math.inf
    assert msgspec.to_builtins(found)["engines"][0]["ways"][0]["p50"]["high"] == math.inf
    assert b'"high":null' in msgspec.json.encode(found)
