"""Engines under MLCommons' LoadGen itself, for a second or so each."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import assert_refused, files

pytest.importorskip("mlperf_loadgen", reason="it has wheels for x86-64 only")
pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")

from resnet_deploy import artifact
from resnet_deploy.batching import infer
from resnet_deploy.bench.loadgen_logs import ACCURACY, DETAIL, SUMMARY, read_answers, read_detail
from resnet_deploy.bench.loadgen_records import EngineFacts, read_loadgen_record
from resnet_deploy.bench.loadgen_spec import LoadgenPlan, LoadgenSpec, PeakSpec
from resnet_deploy.bundle import open_bundle
from resnet_deploy.datasets import BatchReader, find_dataset
from resnet_deploy.errors import DataError
from resnet_deploy.pipeline import loadgen_session
from resnet_deploy.pipeline.loadgen import LoadgenInputs, Run, find_peaks, run_scenarios
from resnet_deploy.pipeline.loadgen_session import Session, SystemUnderTest
from resnet_deploy.pipeline.loadgen_verdicts import Systems, judge
from resnet_deploy.protocols import Silent
from resnet_deploy.runners.ort import OrtRunner
from resnet_deploy.verify import best_class

ROOT = Path(__file__).parents[2]
SECONDS, NULL_SECONDS = 0.2, 0.02


@pytest.fixture(autouse=True, scope="module")
def short_overhead():
    """Measure what LoadGen costs by itself for a moment: half a second of it is hundreds of thousands of answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loadgen_session, "_NULL_SECONDS", NULL_SECONDS)
        yield


def system(path, batch=4):
    bundle = open_bundle(path)
    precision = bundle.manifest.spec.precision
    tested = EngineFacts(name=path.name, backend="onnxruntime", precision=precision, size_bytes=1, sha256="0" * 64)
    return SystemUnderTest(bundle, batch, tested)


@pytest.fixture
def dataset(deployment):
    return find_dataset(deployment.data, deployment.card)


@pytest.fixture
def session(dataset, tmp_path):
    (tmp_path / "logs").mkdir()
    return Session(tmp_path / "logs", dataset, 1, Silent())


def own_answers(path, dataset):
    """The classes that our own evaluation finds."""
    bundle = open_bundle(path)
    (batch,) = BatchReader(dataset, bundle.manifest.card.preprocess, len(dataset))
    runner = OrtRunner.open(bundle, 1)
    answers = best_class(infer(runner, batch.images))
    runner.close()
    return answers


# --- performance


@pytest.fixture(scope="module")
def finished(deployment, tmp_path_factory):
    """All scenarios of one engine, and where the record and the logs are."""
    inputs = LoadgenInputs(engines=(deployment.engines["int8"],), data=deployment.data)
    spec = LoadgenSpec(
        scenarios=("singlestream", "multistream", "offline", "server"),
        seconds=SECONDS,
        qps=40.0,
        latency_s=0.25,
        batch=4,
    )
    return run_scenarios(inputs, spec, Run(tmp_path_factory.mktemp("results"), 1, Silent()))


def test_all_scenarios_are_measured(finished):
    tests = [one for one in finished.record.tests if one.purpose == "performance"]
    assert [one.result.scenario for one in tests] == ["singlestream", "multistream", "offline", "server"]
    for one in tests:
        result = one.result
        assert result.errors == ()
        assert result.seconds > 0
        assert result.valid in (True, False)
        assert one.device == "CPUExecutionProvider"
        values = list(result.percentiles.values())
        assert values == sorted(values)
        assert bool(values) == (result.scenario != "offline")
    single, multi, offline, server = (one.result for one in tests)
    assert single.queries == single.samples > 0
    assert multi.samples == 8 * multi.queries > 0
    assert (offline.queries, offline.metric.value > 0) == (1, True)
    assert server.metric.value > 0


def test_loadgen_did_what_it_was_told(finished):
    for one in finished.record.tests:
        settings = one.result.settings
        assert settings["min_duration_ms"] == 1000 * (NULL_SECONDS if one.purpose == "overhead" else SECONDS)
        assert settings["performance_sample_count"] == 40  # all images of the data set
        assert settings["schedule_rng_seed"] != 0  # MLPerf's own configuration was read
    server = finished.record.tests[-1].result
    assert (server.settings["target_qps"], server.settings["target_latency_ns"]) == (40, 250_000_000)


def test_overhead_is_measured_without_the_engine(finished):
    overhead = [one for one in finished.record.tests if one.purpose == "overhead"]
    assert [(one.engine, one.result.scenario) for one in overhead] == [("null", "singlestream"), ("null", "offline")]
    assert {one.device for one in overhead} == {"none"}


def test_record_and_logs_are_kept_and_match(finished):
    assert read_loadgen_record(finished.path) == finished.record
    folder = finished.path.with_suffix("")
    kept = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert kept == {path for one in finished.record.tests for path in one.logs}
    for one in finished.record.tests:
        assert {Path(name).name for name in one.logs} == {SUMMARY, DETAIL}
        for name, digest in one.logs.items():
            assert artifact.sha256_file(folder / name) == digest
        detail = next(name for name in one.logs if name.endswith(DETAIL))
        assert read_detail(folder / detail) == one.result
    assert {path.name for path in finished.path.parent.iterdir()} == {finished.path.name, folder.name}


def test_verdict_is_that_of_the_summary(finished):
    """The summary is written for people, and says the same as the log that we read."""
    folder = finished.path.with_suffix("")
    for one in finished.record.tests:
        (name,) = [name for name in one.logs if name.endswith(SUMMARY)]
        assert f"Result is : {'VALID' if one.result.valid else 'INVALID'}\n" in (folder / name).read_text()


def test_search_says_why_there_is_no_rate(deployment, tmp_path):
    inputs = LoadgenInputs(engines=(deployment.engines["int8"],))
    record = find_peaks(inputs, PeakSpec(latency_s=1e-6, seconds=0.2), Run(tmp_path, 1, Silent())).record
    assert [one.purpose for one in record.tests] == ["overhead", "overhead", "capacity", "capacity"]
    (peak,) = record.peaks
    assert peak.rate is None
    assert peak.reason.startswith("one image alone takes ")


def test_a_probe_is_the_rate_that_was_asked_for(session, deployment):
    plan = LoadgenPlan(scenario="server", batch=4, seconds=0.1, queries=20, qps=50.0, latency_s=60.0, most_waiting=1000)
    for number in (1, 2):
        probe = session.test(system(deployment.engines["int8"]), plan, "probe")
        assert {Path(name).parent.name for name in probe.logs} == {
            f"resnet18-int8-onnxruntime-server-probe-{number:02}"
        }
        assert probe.result.queries >= 20
        assert probe.result.late == 0
        settings = probe.result.settings
        assert (settings["target_qps"], settings["max_async_queries"]) == (50, 1000)
        assert settings["target_latency_ns"] == 60_000_000_000


# --- accuracy


# As LoadGen logs them: an accuracy run has the settings of a performance run, and not its duration.
OFFICIAL = {
    "singlestream": {"min_query_count": 100, "target_latency_percentile": 0.9},
    "multistream": {"min_query_count": 662, "target_latency_percentile": 0.99, "samples_per_query": 8},
    "offline": {"min_query_count": 1},
    "server": {"min_query_count": 100, "target_latency_percentile": 0.99, "target_latency_ns": 15_000_000},
}


@pytest.mark.parametrize("scenario", OFFICIAL)
def test_answers_through_loadgen_are_our_own_and_settings_mlperfs(session, deployment, dataset, scenario):
    engine = deployment.engines["fp32"]
    plan = LoadgenPlan(scenario=scenario, batch=4, accuracy=True, official=True, qps=200.0)
    record = session.test(system(engine), plan, "accuracy")
    expected = own_answers(engine, dataset)
    assert len(set(expected.tolist())) > 1
    (name,) = [name for name in record.logs if name.endswith(ACCURACY)]
    np.testing.assert_array_equal(read_answers(session.folder / name, len(dataset)), expected)
    assert record.accuracy.correct == sum(expected == dataset.labels)
    assert record.accuracy.images == 40
    settings = record.result.settings
    wanted = {"min_duration_ms": 600_000, **OFFICIAL[scenario]}
    assert {key: settings[key] for key in wanted} == wanted
    assert settings["qsl_rng_seed"] != 0
    assert scenario != "offline" or settings["min_sample_count"] >= 24_576


@pytest.fixture
def broken(deployment, tmp_path, copy_engine, rewrite):
    """The FP32 engine with a classifier that always finds class 3."""
    import onnx
    from onnx import numpy_helper

    path = tmp_path / "broken" / "resnet18-int8-onnxruntime"
    original = deployment.engines["fp32"] / "model.onnx"
    model = onnx.load(original)
    (bias,) = [one for one in model.graph.initializer if list(one.dims) == [10]]
    values = numpy_helper.to_array(bias).copy()
    values[3] += 1000
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    data = model.SerializeToString()

    def change(manifest):
        manifest["files"]["model.onnx"] = artifact.sha256_bytes(data)

    copy_engine("fp32", to=path, change=change)
    rewrite(path / "model.onnx", data)
    return path


def test_an_engine_with_wrong_answers_misses_the_target(session, deployment, dataset, broken):
    """The labels are the sound engine's answers, so that its accuracy is 100 %."""
    from dataclasses import replace

    import msgspec

    sound = deployment.engines["fp32"]
    session.dataset = replace(dataset, labels=tuple(own_answers(sound, dataset).tolist()))
    plan = LoadgenPlan(scenario="offline", batch=4, seconds=0.2)
    fast = session.test(system(sound), plan, "performance")
    for path in (sound, broken):
        session.test(system(path), msgspec.structs.replace(plan, accuracy=True), "accuracy")
    systems = Systems((system(sound),), (), deployment.card, session.dataset, None)
    good, bad = judge(systems, [*session.tests, msgspec.structs.replace(fast, engine=broken.name)])
    assert (good.engine, good.accuracy, good.target) == (sound.name, 1.0, 0.99)
    assert not any(line.startswith("accuracy") for line in good.unmet)
    assert bad.engine == broken.name
    assert bad.accuracy == sum(label == 3 for label in session.dataset.labels) / 40 < 0.99
    assert any(line.startswith("accuracy is ") for line in bad.unmet)


def test_a_damaged_image_ends_the_test_with_its_name(session, deployment, tmp_path):
    """It is the last one, which warming up does not read: LoadGen asks for it."""
    (tmp_path / "images").mkdir()
    names = []
    for number, path in enumerate(sorted(deployment.data.rglob("*.png"))[:12]):
        names.append(tmp_path / "images" / f"{number:02}.png")
        names[-1].write_bytes(path.read_bytes())
    names[-1].write_bytes(b"no image")
    session.dataset = find_dataset(tmp_path / "images", deployment.card)
    plan = LoadgenPlan(scenario="singlestream", batch=4, seconds=SECONDS)
    with pytest.raises(DataError, match=r"11\.png"):
        session.test(system(deployment.engines["int8"]), plan, "performance")
    assert session.tests == []
    assert list(session.folder.iterdir()) == []


# --- the command


def test_command_prints_a_table(invoke, workplace):
    result = invoke("loadgen", "--scenario", "offline", "--seconds", SECONDS, "--threads", 1, "-o", "out")
    assert result.exit_code == 0, result.output
    assert "Offline, batch 8" in result.stdout
    assert "LoadGen-based, not an MLPerf result" in result.stdout
    (record,) = Path("out").glob("*.json")
    assert f"record: {record}\n" in result.stdout
    assert record.name.startswith("resnet18-loadgen-")


def test_command_prints_the_record(invoke, workplace, finished, monkeypatch):
    monkeypatch.setattr("resnet_deploy.cli.loadgen._run", lambda *_: finished)
    result = invoke("loadgen", "--scenario", "offline", "-o", "out", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads(finished.path.read_text())


REFUSED = [
    ("--qps 4", "--qps has no effect with singlestream, multistream, offline"),
    ("--latency-bound 4ms", "--latency-bound has no effect"),
    ("--scenario server", "needs a rate"),
    ("--scenario singlestream --batch 4", "--batch has no effect with singlestream"),
    ("--p99 4ms", "--p99 has no effect"),
    ("--find-max-qps --qps 4", "--qps has no effect with --find-max-qps"),
    ("--find-max-qps --scenario offline", "--scenario has no effect with --find-max-qps"),
    ("--find-max-qps --mlperf-rules", "--mlperf-rules has no effect with --find-max-qps"),
    ("--find-max-qps --p99 4", "'4' is not a duration such as 15ms"),
    ("--mlperf-rules", "--mlperf-rules needs labelled images"),
    ("--mlperf-rules --seconds 5", "--seconds has no effect with --mlperf-rules"),
    ("--reference-accuracy 70", "--reference-accuracy has no effect"),
    ("--mlperf-rules --reference-accuracy 170", "--reference-accuracy 170 is no percentage"),
    ("--labels-file x", "--labels-file has no effect"),
    ("--mlperf-rules --labels-file x", "--labels-file has no effect without --data"),
    ("--batch 65", "takes batches of 1 to 64, not of 65"),
    ("--scenario server --qps 0", "--qps is 0"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_what_would_have_no_effect_is_refused(invoke, workplace, line, message):
    before = files(workplace)
    assert_refused(invoke("loadgen", *line.split()), message)
    assert files(workplace) == before


# --- the end of the parent


def children(folder):
    """Processes that work below ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink().is_relative_to(folder):
                found.append(int(entry.name))
        except OSError:  # noqa: PERF203
            pass  # it has ended, or is another user's
    return found


@pytest.fixture
def testing(workplace):
    """A command that is in the middle of a test of a minute, and the process of that test."""
    # Shells have what they start in the background ignore SIGINT.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from resnet_deploy.pipeline.loadgen_session import Session; Session.measure_overhead = lambda *_: None\n"
    code += "from resnet_deploy.cli import main; main(prog_name='resnet-deploy')"
    line = ("loadgen", "--scenario", "singlestream", "--seconds", "60", "--threads", "1", "-o", "out/there")
    process = subprocess.Popen(
        [sys.executable, "-c", code, *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    out = workplace.resolve() / "out"
    deadline = time.monotonic() + 120
    while not list(Path("out").glob("there/.*/*-int8-*/mlperf_log_detail.txt")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (child,) = children(out)
    yield process, child
    process.kill()
    process.communicate()
    for left in children(out):
        os.kill(left, signal.SIGKILL)


def wait_for_the_end_of(pid):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return  # nobody has asked for its status
        time.sleep(0.05)
    pytest.fail(f"process {pid} is still there")


@pytest.mark.parametrize(
    ("number", "status", "last_word"), [(signal.SIGINT, 130, b"interrupted\n"), (signal.SIGTERM, 143, b"")]
)
def test_told_to_end_leaves_neither_files_nor_processes(testing, workplace, number, status, last_word):
    process, child = testing
    process.send_signal(number)
    assert process.communicate(timeout=30) == (b"", last_word)
    assert process.returncode == status
    assert not Path("out").exists()
    wait_for_the_end_of(child)


def test_killed_leaves_no_process(testing):
    process, child = testing
    process.kill()
    process.communicate()
    wait_for_the_end_of(child)


def test_a_test_whose_process_is_killed_is_one_error(testing, workplace):
    process, child = testing
    os.kill(child, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    error, hint = errors.decode().splitlines()
    assert error == "error: the process of LoadGen's test ended by signal 9"
    assert hint.startswith("hint: ")
    assert not Path("out").exists()
