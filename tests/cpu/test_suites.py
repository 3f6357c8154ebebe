"""Suites: what files may say, and that one command does what they say."""

from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="engines of the suites are ONNX Runtime's")

from resnet_deploy import artifact, capabilities
from resnet_deploy.bench.records import NotRun, read_record
from resnet_deploy.bench_spec import BenchSpec
from resnet_deploy.errors import BackendError, FileError, SpecError
from resnet_deploy.pipeline import suites
from resnet_deploy.pipeline.lineup import BenchInputs
from resnet_deploy.pipeline.peers import choose_peers
from resnet_deploy.pipeline.suites import read_suite, run_suite
from resnet_deploy.protocols import Silent

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODEL = '[model]\narchitecture = "resnet18"\nweights = "none"\n'
ENGINES = '[[engines]]\nbackend = "onnxruntime"\nprecisions = ["fp32"]\n'


@pytest.fixture
def write_suite(tmp_path):
    def write(text):
        path = tmp_path / "suite.toml"
        path.write_text(text)
        return path

    return write


def test_committed_suites_can_be_read():
    paths = sorted(BENCHMARKS.glob("*.toml"))
    assert {"cpu.toml", "digits.toml", "smoke.toml"} <= {path.name for path in paths}
    for path in paths:
        suite = read_suite(path)
        assert suite.builds
        choose_peers(BenchInputs(engines=(), peers=suite.peers, peer_calib=suite.calib))


def test_the_suite_for_cpus_is_what_its_claims_rest_on():
    suite = read_suite(BENCHMARKS / "cpu.toml")
    assert (suite.model.architecture, suite.model.image_size, suite.peers) == ("resnet50", 224, ("all",))
    wanted = {("onnxruntime", one) for one in ("fp32", "fp16", "int8")} | {
        ("openvino", one) for one in ("fp32", "int8")
    }
    assert {(spec.backend, spec.precision) for spec in suite.builds} == wanted


def test_what_is_not_said_is_as_on_the_command_line(write_suite):
    suite = read_suite(write_suite(MODEL + ENGINES))
    assert suite.timing == BenchSpec()
    assert (suite.pytorch, suite.peers, suite.data, suite.threads) == (True, (), None, 0)
    (spec,) = suite.builds
    assert (spec.backend, spec.precision, str(spec.batch), spec.calibration) == ("onnxruntime", "fp32", "1:8:64", None)


@pytest.mark.parametrize(
    ("text", "kind", "match"),
    [
        ("= 3", FileError, "is no suite: "),
        ("\xff", FileError, "is no suite: "),
        (ENGINES, FileError, "missing required field `model`"),
        (MODEL, FileError, "missing required field `engines`"),
        (MODEL + "[[engines]]\nbackend = 'onnxruntime'\nprecisions = []", FileError, "length >= 1"),
        (MODEL + ENGINES + "[timing]\nsecond = 3", FileError, "unknown field `second`.*timing"),
        ("sed = 1\n" + MODEL + ENGINES, FileError, "unknown field `sed`"),
        (MODEL + ENGINES.replace("fp32", "int7"), FileError, "Invalid enum value 'int7'"),
        (MODEL + ENGINES + "[timing]\nbatches = 'many'", FileError, "Expected `array`"),
        (MODEL + ENGINES + "[timing]\nrounds = 0", SpecError, "0 rounds"),
        (MODEL + ENGINES.replace("fp32", "int8"), SpecError, "names no images to calibrate on"),
        ("peers = ['all']\n" + MODEL + ENGINES, SpecError, "names no images to calibrate on"),
        ("calib = 'random'\n" + MODEL + ENGINES, SpecError, "quantizes nothing"),
        (MODEL + ENGINES + ENGINES, SpecError, "names an engine twice"),
    ],
)
def test_mistakes_are_one_line(write_suite, text, kind, match):
    path = write_suite("")
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(kind, match=match) as caught:
        read_suite(path)
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "kind", "match"),
    [
        ("peers = ['torch-slow']\n" + MODEL + ENGINES, SpecError, "unknown peer 'torch-slow'"),
        ("data = 'nowhere'\n" + MODEL + ENGINES, FileError, "nowhere"),
        ("labels_file = 'labels.txt'\n" + MODEL + ENGINES, SpecError, "--labels-file has no effect"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_made(write_suite, tmp_path, text, kind, match):
    suite = read_suite(write_suite(text))
    with pytest.raises(kind, match=match):
        run_suite(suite, "", tmp_path / "work", Silent())
    assert not (tmp_path / "work").exists()


def test_an_engine_that_cannot_be_built_here_is_listed(write_suite, deployment, monkeypatch):
    is_installed = capabilities._is_installed
    monkeypatch.setattr(capabilities, "_is_installed", lambda module: module != "openvino" and is_installed(module))
    suite = read_suite(write_suite(MODEL + ENGINES.replace("onnxruntime", "openvino")))
    failed = suites._build(suite, suite.builds[0], deployment.model, Silent())
    assert isinstance(failed, NotRun)
    assert (failed.name, failed.backend, failed.precision) == ("resnet18-fp32-openvino", "openvino", "fp32")
    assert failed.reason.startswith("not built: cannot build for openvino: openvino is not installed: pip install")
    monkeypatch.setattr(suites, "export", lambda *_: None)
    with pytest.raises(BackendError, match="none of the engines can be built here: not built"):
        run_suite(suite, "", deployment.model.parent, Silent())


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The record that one command leaves."""
    libraries = capabilities.have_modules({"torch": "", "openvino": "", "nncf": ""})
    if not libraries.ok:
        pytest.skip(libraries.reason)
    from click.testing import CliRunner

    from resnet_deploy.cli import main

    folder = tmp_path_factory.mktemp("smoke")
    command = [
        "bench",
        "--suite",
        BENCHMARKS / "smoke.toml",
        "--work",
        folder / "work",
        "-o",
        folder / "out",
        "--no-html",
    ]
    result = CliRunner().invoke(main, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    (path,) = (folder / "out").iterdir()
    return read_record(path), folder / "work"


def test_one_command_does_it_all(smoke):
    record, work = smoke
    assert [(one.name, one.role, one.precision) for one in record.engines] == [
        ("resnet18-int8-onnxruntime", "engine", "int8"),
        ("resnet18-int8-openvino", "engine", "int8"),
        ("onnxruntime-plain", "peer", "fp32"),
        ("openvino-nncf", "peer", "int8"),
    ]
    assert record.not_run == ()
    assert (record.architecture, record.reference) == ("resnet18", "")
    for one in record.engines:
        assert [samples.batch for samples in one.latency] == [1, 4]
    assert {path.name for path in work.iterdir()} >= {"resnet18.onnx", "resnet18-int8-openvino"}


def test_the_record_names_the_very_file(smoke):
    path = BENCHMARKS / "smoke.toml"
    assert smoke[0].suite == f"smoke.toml sha256:{artifact.sha256_file(path)}"


@pytest.mark.parametrize("given", [["--seconds", "3"], ["--data", "x"], ["--peers", "all"], ["--no-pytorch"], ["x"]])
def test_nothing_is_said_besides_a_suite(invoke, given):
    result = invoke("bench", "--suite", BENCHMARKS / "smoke.toml", "--no-html", *given)
    assert result.exit_code == 2
    assert "has no effect with --suite" in result.stderr
    assert "say it in the file" in result.stderr


def test_a_place_for_the_work_needs_a_suite(invoke):
    result = invoke("bench", "--work", "x", "--no-html")
    assert result.exit_code == 2
    assert "--work has no effect" in result.stderr


def test_a_suite_that_is_nowhere(invoke):
    result = invoke("bench", "--suite", "nowhere.toml", "--no-html")
    assert result.exit_code == 2
    assert "nowhere.toml" in result.stderr
