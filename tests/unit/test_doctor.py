import importlib
import json
import os
import signal
import subprocess
import sys

import msgspec
import pytest
from click.testing import CliRunner

from resnet_deploy.backends import BACKENDS
from resnet_deploy.capabilities import BackendStatus, Capability
from resnet_deploy.driver import Gpu, GpuProbe
from resnet_deploy.environment import _INT8_DOT_PRODUCTS, Cpu, Environment, Library

module = importlib.import_module("resnet_deploy.cli.doctor")

HERE = Environment(
    os="Ubuntu 24.04.2 LTS",
    kernel="6.8.0-1021-generic-with-a-name-that-is-quite-long",
    python="3.12.3",
    machine="x86_64",
    cpu=Cpu("AMD EPYC 9354 32-Core Processor", 32, ("avx2", "avx512_vnni")),
    memory_bytes=64 << 30,
    gpu=GpuProbe(reason="libcuda.so.1 not found: no NVIDIA driver"),
    libraries=(Library("torch", "2.10.0+cpu"), Library("onnxruntime", "1.27.0")),
)
STATUSES = {
    "torch": BackendStatus("torch", Capability(False, "nothing to build: PyTorch runs it"), Capability(True)),
    "tensorrt-rtx": BackendStatus(
        "tensorrt-rtx",
        Capability(False, "onnx-ir is not installed", 'pip install "resnet-deploy[export,rtx]"'),
        Capability(False, "a reason of many words " * 8, "a command longer than the terminal is wide " * 3 + "end"),
    ),
    "tensorrt": BackendStatus(
        "tensorrt", Capability(False, "no NVIDIA GPU", "use another"), Capability(False, "no NVIDIA GPU", "use another")
    ),
}


@pytest.fixture
def invoke(monkeypatch):
    """Run the command on a pretended machine, in a terminal 80 columns wide."""

    def run(*arguments, environment=HERE):
        monkeypatch.setattr(module, "collect", lambda: environment)
        return CliRunner().invoke(module.doctor, arguments, env={"COLUMNS": "80", "FORCE_COLOR": None})

    return run


@pytest.fixture
def pretended_statuses(monkeypatch):
    def status(backend, environment, *, import_failure):
        able = Capability(True)
        return STATUSES.get(backend.name, BackendStatus(backend.name, able, able))

    monkeypatch.setattr(module, "backend_status", status)


@pytest.mark.usefixtures("pretended_statuses")
def test_report_for_a_person(invoke):
    result = invoke()
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.output.splitlines()]
    assert "\x1b" not in result.output
    assert "  CPU     AMD EPYC 9354 32-Core Processor, 32 usable cores" in lines
    assert "  INT8    AVX-512 VNNI: full-range INT8" in lines
    assert "  memory  64.0 GiB" in lines
    assert "  GPU     none: libcuda.so.1 not found: no NVIDIA driver" in lines
    assert "  torch            2.10.0+cpu" in lines
    assert "  pycuda           not installed" in lines
    words = [" ".join(line.split()) for line in lines]  # columns are as wide as the longest name
    assert "onnxruntime can build: yes can run: yes" in words
    assert "torch can build: no can run: yes" in words
    assert "    build: nothing to build: PyTorch runs it" in lines


@pytest.mark.usefixtures("pretended_statuses")
def test_nothing_is_cut_off_and_commands_copy_as_one_line(invoke):
    lines = [line.rstrip() for line in invoke().output.splitlines()]
    fix = STATUSES["tensorrt-rtx"].run.fix
    assert '    -> pip install "resnet-deploy[export,rtx]"' in lines
    assert f"    -> {fix}" in lines
    assert all(len(line) <= 80 for line in lines if fix not in line)
    assert " ".join(" ".join(lines).split()).count("a reason of many words") == 8
    assert "…" not in "".join(lines)


@pytest.mark.usefixtures("pretended_statuses")
def test_a_shared_reason_is_printed_once(invoke):
    lines = [line.rstrip() for line in invoke().output.splitlines()]
    assert lines.count("    build and run: no NVIDIA GPU") == 1
    assert lines.count("    -> use another") == 1


@pytest.mark.usefixtures("pretended_statuses")
def test_two_onnx_runtimes_are_warned_of(invoke):
    both = msgspec.structs.replace(HERE, libraries=(*HERE.libraries, Library("onnxruntime-gpu", "1.27.0")))
    assert "pip uninstall onnxruntime onnxruntime-gpu" in invoke(environment=both).output
    assert "pip uninstall" not in invoke().output


@pytest.mark.usefixtures("pretended_statuses")
@pytest.mark.parametrize(
    ("reason", "words"), [("", "C memory"), ("it is so", "NumPy, not in C, and takes longer: it is so memory")]
)
def test_says_in_what_calibration_counts(invoke, monkeypatch, reason, words):
    monkeypatch.setattr("resnet_deploy.quantize.counting.NOT_NATIVE", reason)
    assert f"calibration counts in {words}" in " ".join(invoke().output.split())
    assert json.loads(invoke("--json").output)["calibration_not_in_c"] == reason


@pytest.mark.usefixtures("pretended_statuses")
def test_json(invoke):
    result = invoke("--json")
    assert result.exit_code == 0
    diagnosis = msgspec.json.decode(result.output, type=module.Diagnosis)
    assert diagnosis.environment == HERE
    assert [status.backend for status in diagnosis.backends] == [backend.name for backend in BACKENDS]
    raw = json.loads(result.output)
    assert raw["environment"]["gpu"]["reason"] == "libcuda.so.1 not found: no NVIDIA driver"
    rtx = next(status for status in raw["backends"] if status["backend"] == "tensorrt-rtx")
    assert rtx["build"] == {
        "ok": False,
        "reason": "onnx-ir is not installed",
        "fix": 'pip install "resnet-deploy[export,rtx]"',
    }


def test_each_library_is_tried_once_and_a_broken_one_is_reported(invoke, monkeypatch):
    tried = []

    def try_import(name):
        tried.append(name)
        return f"importing {name} crashed: Segmentation fault"

    monkeypatch.setattr(module, "try_import", try_import)
    monkeypatch.setattr("resnet_deploy.capabilities._is_installed", lambda name: True)
    result = invoke("--json")
    assert result.exit_code == 0
    assert {"torch", "onnx", "onnxruntime"} <= set(tried)
    assert len(tried) == len(set(tried))
    backends = {status["backend"]: status for status in json.loads(result.output)["backends"]}
    assert backends["onnxruntime"]["run"] == {
        "ok": False,
        "reason": "importing onnxruntime crashed: Segmentation fault",
        "fix": 'pip install --force-reinstall "resnet-deploy[cpu]"',
    }
    assert backends["null"]["run"]["ok"]


@pytest.mark.parametrize(
    ("cpu", "words"),
    [
        (Cpu("Zen 4", 2, ("avx2", "avx512_vnni")), "AVX-512 VNNI: full-range INT8"),
        (Cpu("Alder Lake", 2, ("avx2", "avx_vnni")), "AVX-VNNI: full-range INT8"),
        (Cpu("Sapphire Rapids", 2, ("avx512_vnni", "amx_int8")), "AMX, AVX-512 VNNI: full-range INT8"),
        (Cpu("Neoverse", 2, ("asimddp", "i8mm")), "I8MM, SDOT and UDOT: full-range INT8"),
        (Cpu("Milan", 2, ("avx2",)), "no VNNI: INT8 weights are reduced to 7 bits on ONNX Runtime"),
        (
            Cpu("arm", 2, reason="unreadable"),
            "unknown (unreadable), taken for no VNNI: INT8 weights are reduced to 7 bits on ONNX Runtime",
        ),
    ],
    ids=lambda value: value.model if isinstance(value, Cpu) else "",
)
def test_int8_in_words(cpu, words):
    assert module.int8_in_words(cpu) == words


def test_there_are_words_for_each_int8_feature_and_no_other():
    assert set(module._INT8_WORDS) == set(_INT8_DOT_PRODUCTS)


def test_gpu_in_words():
    h100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 80 << 30, "identity")
    assert module.gpu_in_words(GpuProbe((h100, h100), "13.0", "", "580.65.06")) == (
        "NVIDIA H100 80GB HBM3, compute capability 9.0, 80.0 GiB",
        "NVIDIA H100 80GB HBM3, compute capability 9.0, 80.0 GiB",
        "driver 580.65.06, supports CUDA 13.0",
    )
    assert module.gpu_in_words(GpuProbe((), "12.4", "no CUDA device is visible")) == (
        "none: no CUDA device is visible",
        "driver of unknown version, supports CUDA 12.4",
    )


@pytest.fixture
def modules(tmp_path, monkeypatch):
    sources = {
        "sound": "",
        "broken": "raise ImportError('libfoo.so.1: cannot open shared object file')",
        "silent": "raise SystemExit(3)",
        "crashing": f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})",
        "hanging": "import time; time.sleep(60)",
        "chatty": "print('hello')",
    }
    for name, source in sources.items():
        (tmp_path / f"probe_{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("probe_sound", ""),
        ("probe_chatty", ""),
        (
            "probe_broken",
            "importing probe_broken failed: ImportError: libfoo.so.1: cannot open shared object file",
        ),
        ("probe_silent", "importing probe_silent failed: exit status 3"),
        ("probe_crashing", f"importing probe_crashing crashed: {signal.strsignal(signal.SIGKILL)}"),
        (
            "probe_absent",
            "importing probe_absent failed: ModuleNotFoundError: No module named 'probe_absent'",
        ),
    ],
)
def test_try_import(name, reason, capfd):
    assert module.try_import(name) == reason
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("modules")
def test_try_import_gives_up_on_a_library_that_hangs():
    assert module.try_import("probe_hanging", timeout_s=0.5) == "importing probe_hanging took more than 0.5 s"


def test_try_import_without_an_interpreter(monkeypatch):
    monkeypatch.setattr(module.sys, "executable", "/nonexistent/python")
    assert module.try_import("json").startswith("importing json could not be tried: ")


def test_the_command_loads_nothing_heavy_before_it_runs():
    code = "import json, sys, resnet_deploy.cli.doctor; print(json.dumps(sorted(sys.modules)))"
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=paths, capture_output=True, text=True, check=True)
    assert not set(json.loads(done.stdout)) & {"torch", "onnx", "onnxruntime", "openvino", "numpy", "rich"}
