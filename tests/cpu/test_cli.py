"""The command line: the whole way once as its user types it, help, and what is no refusal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import SHORT, assert_refused

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")
pytest.importorskip("torch", reason="PyTorch is the reference")
pytest.importorskip("plotly", reason="the report has plots")

import torch

from resnet_deploy.bench.records import read_record
from resnet_deploy.bundle import open_bundle
from resnet_deploy.cli import COMMANDS

COMMAND = Path(sys.executable).with_name("resnet-deploy")


# --- the whole way, once in processes of its own and once in this one


@pytest.fixture
def shell(tmp_path):
    """Run the installed command in an empty folder; it must end well and without a word on stderr."""
    if not COMMAND.exists():
        pytest.skip(f"{COMMAND} does not exist: the package is not installed")

    # A CI that forces colour would have rich draw its spinners into the pipe.
    plain = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_INTERACTIVE")}

    def run(*arguments):
        command = [COMMAND, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=plain, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


def test_from_weights_to_a_report(shell, deployment, tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join(deployment.card.labels))
    size = ("--arch", "resnet18", "--image-size", "32")
    out = shell("export", *size, "--weights", "none", "--num-classes", "10", "--labels", "labels.txt")
    assert "engines/resnet18.onnx: 44.7 MB, 10 classes" in out
    assert "input uint8 NHWC 32x32x3, any batch size" in out
    assert "largest difference from PyTorch" in out

    build = ("build", "engines/resnet18.onnx", "--backend", "onnxruntime")
    out = shell(*build, "--fp16")
    assert out.startswith("engines/resnet18-fp16-onnxruntime/: 22.")
    assert "agrees with the exported FP32 model on" in out
    assert "unchanged, nothing to build (cache hit)" in shell(*build, "--fp16")
    out = shell(*build, "--int8", "--calib", str(deployment.calibration))
    assert "21 layers and 32 activations quantized" in out

    out = shell("bench", "--data", str(deployment.data), *SHORT)
    assert "pytorch" in out
    (path,) = (tmp_path / "benchmarks" / "results").glob("*.json")
    assert f"raw samples: benchmarks/results/{path.name}" in out
    record = read_record(path)
    assert [one.name for one in record.engines] == [
        "pytorch",
        "resnet18-fp16-onnxruntime",
        "resnet18-int8-onnxruntime",
    ]
    assert all(one.name in out for one in record.engines)
    assert len(record.dataset.labels) == 40
    assert "Plotly" in path.with_suffix(".html").read_text()

    image = str(deployment.data / "three" / "1.png")
    out = shell("predict", image, "--engine", "engines/resnet18-int8-onnxruntime", "--top", "3")
    first, *predictions = out.splitlines()
    assert first == image
    shares = [float(line.split("%")[0]) for line in predictions]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True)
    assert all(line.split()[-1] in deployment.card.labels for line in predictions)

    out = shell("report", f"benchmarks/results/{path.name}", "--html", "again.html")
    assert "resnet18-int8-onnxruntime" in out
    assert (tmp_path / "again.html").read_text() == path.with_suffix(".html").read_text()


def test_run_does_it_all(invoke, deployment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke(
        *("run", "--arch", "resnet18", "--weights", str(deployment.reference), "--image-size", "32"),
        *("--backend", "onnxruntime", "--calib", str(deployment.calibration), "--data", str(deployment.data)),
        *("-o", "out", *SHORT),
    )
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    bundles = {path.name: open_bundle(path) for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert sorted(bundles) == [f"resnet18-{precision}-onnxruntime" for precision in ("fp16", "fp32", "int8")]
    for bundle in bundles.values():
        bundle.verify_files()
        assert bundle.manifest.card.weights_sha256 == deployment.card.weights_sha256
        in_sample = bundle.manifest.spec.precision == "int8"
        assert bundle.manifest.measured.inputs == ("calibration images" if in_sample else "images")
        assert str(bundle.path.relative_to(tmp_path)) in done.stdout
    (path,) = (tmp_path / "out").glob("*.json")
    record = read_record(path)
    assert len(record.engines) == 4
    assert record.dataset.images == 40
    assert path.with_suffix(".html").exists()


# --- help


def test_the_list_of_commands_cuts_none_short(invoke):
    out = invoke("--help").stdout
    lines = dict(line.split(maxsplit=1) for line in out[out.index("Make engines:") :].splitlines() if line[:2] == "  ")
    assert sorted(lines) == sorted(COMMANDS)
    assert all(line.endswith(".") and not line.endswith("...") for line in lines.values())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(invoke, command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: main {command}")
    assert "Warning" not in result.output


def _exhaust_memory(path, threads):
    raise MemoryError


def _exhaust_pytorch(path, threads):
    torch.empty(1 << 60, dtype=torch.uint8)  # an exbibyte, which no address space holds


@pytest.mark.parametrize("exhaust", [_exhaust_memory, _exhaust_pytorch])
def test_exhausted_memory_is_no_bug(invoke, workplace, monkeypatch, exhaust):
    monkeypatch.setattr("resnet_deploy.engine.load", exhaust)
    assert_refused(invoke("predict", "image.png"), "more memory than there is", "smaller")


def test_bugs_keep_their_traceback(invoke, workplace, monkeypatch):
    monkeypatch.setattr("resnet_deploy.engine.load", lambda path, threads: 1 / 0)
    result = invoke("predict", "image.png")
    assert isinstance(result.exception, ZeroDivisionError)


def test_so_do_pytorchs_that_have_nothing_to_do_with_memory(invoke, workplace, monkeypatch):
    monkeypatch.setattr("resnet_deploy.engine.load", lambda path, threads: torch.empty(2) @ torch.empty(3))
    result = invoke("predict", "image.png")
    assert type(result.exception) is RuntimeError


@pytest.mark.parametrize("command", ["bench", "evaluate", "loadgen", "predict", "verify"])
def test_the_default_number_of_threads_is_told_as_it_is(invoke, command):
    out = " ".join(invoke(command, "--help").stdout.split())
    assert "one per physical core, within a container's quota" in out
    assert "all cores" not in out
