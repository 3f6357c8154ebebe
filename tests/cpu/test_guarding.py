"""The guard over speed: what is measured, what is said, and what fails a build."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import assert_refused

from resnet_deploy.backends import find_backend
from resnet_deploy.bundle import open_bundle
from resnet_deploy.capabilities import backend_status
from resnet_deploy.environment import usable_cpus
from resnet_deploy.errors import SpeedError
from resnet_deploy.onnx_files import onnx_from_bytes
from resnet_deploy.ort_session import profile_nodes
from resnet_deploy.pipeline import guarding
from resnet_deploy.pipeline.guarding import Pace, measure_pace, median_seconds, require_speedup, seconds_by_layer
from resnet_deploy.pipeline.source import read_source
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.runners.ort import OrtRunner

INT8 = "build engines/resnet18.onnx --int8 --backend onnxruntime --calib calibration -o engine"
FP16 = "build engines/resnet18.onnx --fp16 --backend onnxruntime -o engine"


def test_kernels_belong_to_the_layer_with_the_longest_name():
    kernels = {"conv1.relu_nchwc": 1.0, "layer1.0.conv1_token_7": 2.0, "layer1.0.conv10": 4.0, "fc": 8.0, "add": 16.0}
    layers = ["conv1", "layer1.0.conv1", "layer1.0.conv10", "fc", "layer1"]
    assert seconds_by_layer(kernels, layers) == {
        "conv1": 1.0,
        "layer1.0.conv1": 2.0,
        "layer1.0.conv10": 4.0,
        "fc": 8.0,
        "layer1": 0.0,
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_layer_is_found_in_the_profile(deployment, precision):
    feed = synthetic_images(deployment.card.preprocess, 1)
    engine = deployment.engines[precision] / "model.onnx"
    graph = onnx_from_bytes(deployment.model.read_bytes(), name="model").graph
    layers = [str(node.name) for node in graph if node.op_type in ("Conv", "Gemm")]
    found = seconds_by_layer(profile_nodes(engine, feed, calls=2), layers)
    assert len(found) == 21
    assert min(found.values()) > 0


def pace_of(engine, source, images):
    bundle = open_bundle(engine)
    return measure_pace(OrtRunner.open(bundle, 1), bundle, source, images)


class Cores:
    """A call takes 1 ms, and 4 ms while the threads of another session spin, until one waits for them."""

    def __init__(self):
        self.now, self.last = 0.0, None

    def call(self, runner):
        self.now += 1e-3 if self.last in (None, runner) else 4e-3
        self.last = self.last or runner

    def wait(self):
        self.last = None


@pytest.mark.parametrize(("waits", "seconds"), [(True, [1e-3, 1e-3]), (False, [1e-3, 4e-3])])
def test_threads_of_the_session_before_are_not_timed(monkeypatch, waits, seconds):
    cores = Cores()
    monkeypatch.setattr(guarding, "wait_until_quiet", cores.wait if waits else lambda: None)
    monkeypatch.setattr(guarding, "run_once", lambda runner, _: cores.call(runner))
    monkeypatch.setattr(guarding, "time", SimpleNamespace(perf_counter=lambda: cores.now))
    assert median_seconds(["engine", "model"], None, 20) == pytest.approx(seconds)


def test_an_engine_is_held_against_the_model_it_was_made_from(deployment):
    source, images = read_source(deployment.model), synthetic_images(deployment.card.preprocess, 1)
    pace = pace_of(deployment.engines["int8"], source, images)
    assert pace.latency_s > 0
    assert 0.2 < pace.speedup < 10  # of either kind of kernel, whatever the machine
    assert pace.notes == () or pace.speedup < 1.05 or pace.elsewhere > 0.2


def test_a_slow_engine_is_named_with_its_layers(deployment, monkeypatch):
    source, images = read_source(deployment.model), synthetic_images(deployment.card.preprocess, 1)
    monkeypatch.setattr(guarding, "_FASTER", 1000.0)
    profiles = [{"conv1_token": 5e-6, "fc_quant": 9e-6, "layer1.0.conv1": 1e-6}, {"conv1": 3e-6, "fc": 1e-6}]
    monkeypatch.setattr("resnet_deploy.ort_session.profile_nodes", lambda *_, **__: profiles.pop(0))
    pace = pace_of(deployment.engines["int8"], source, images)
    said = pace.notes[0]
    assert "slower than in FP32: fc by 8 us, conv1 by 2 us, layer1.0.conv1 by 1 us" in said
    assert f"({pace.speedup:.2f} times its speed)" in said


def test_an_engine_that_cannot_run_here_is_not_built_to_be_measured(invoke, workplace):
    if backend_status(find_backend("tensorrt-rtx")).run.ok:
        pytest.skip("TensorRT-RTX runs here")
    line = "build engines/resnet18.onnx --fp16 --backend tensorrt-rtx --require-speedup 1.2 -o engine"
    result = invoke(*line.split())
    assert result.exit_code == 2
    assert not (workplace / "engine").exists()


@pytest.mark.parametrize(("elsewhere", "said"), [(None, ""), (0.2, ""), (0.21, "21%"), (1.0, "100%")])
def test_a_machine_that_others_use_is_told(elsewhere, said):
    told = f"timed while other processes took {said} of the cores: its times may be far off"
    assert Pace(1.0, elsewhere=elsewhere).notes == ((told,) if said else ())


def test_a_build_sees_what_others_take(deployment):
    source, images = read_source(deployment.model), synthetic_images(deployment.card.preprocess, 1)
    with contextlib.ExitStack() as stack:
        for _ in usable_cpus():
            command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
            busy = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(busy.kill)
            busy.stdout.readline()
        pace = pace_of(deployment.engines["int8"], source, images)
    # One for each core takes half of them, give or take what a clock of hundredths of a second does not see.
    assert pace.elsewhere > 0.2
    assert "timed while other processes took" in pace.notes[-1]


def test_fp32_is_held_against_nothing():
    assert Pace(1.0).notes == ()
    with pytest.raises(SpeedError, match="cannot run here"):
        require_speedup(None, 1.2)
    with pytest.raises(SpeedError, match=r"it is 1\.19 times as fast as FP32, 1\.2 is required"):
        require_speedup(1.19, 1.2)
    require_speedup(1.2, 1.2)
    require_speedup(None, None)


def test_too_slow_an_engine_is_not_kept(workplace, invoke):
    result = invoke(*f"{INT8} --require-speedup 1000".split())
    assert result.exit_code == 1
    assert "times as fast as FP32, 1000 is required" in result.stderr
    assert not Path("engine").exists()
    assert invoke(*f"{INT8} --require-speedup 0.001".split()).exit_code == 0
    measured = json.loads(Path("engine/manifest.json").read_text())["measured"]
    assert measured["speedup"] > 0.001
    again = invoke(*f"{INT8} --require-speedup 1000".split())
    assert again.exit_code == 1
    assert f"it is {measured['speedup']:.2f} times as fast" in again.stderr
    assert Path("engine").exists()  # it was there before, and is what was asked for then


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_speeds_that_are_none_are_refused(workplace, invoke, value):
    assert_refused(invoke(*f"{FP16} --require-speedup {value}".split()), "a speed-up of", "1.2")


def test_fp32_takes_no_speedup(workplace, invoke):
    command = "build engines/resnet18.onnx --fp32 --backend onnxruntime --require-speedup 1"
    assert_refused(invoke(*command.split()), "--require-speedup has no effect with --fp32", "FP32")
