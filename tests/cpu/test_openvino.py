"""The OpenVINO backend: what it builds, runs and refuses, held against the exported model on ONNX Runtime."""

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from resnet_deploy.batching import infer, run_once
from resnet_deploy.bundle import open_bundle
from resnet_deploy.engine import load
from resnet_deploy.errors import BuildError, FeedError, SpecError
from resnet_deploy.openvino_session import open_compiled
from resnet_deploy.ort_session import open_session
from resnet_deploy.pipeline.building import BuildInputs, build
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.protocols import Silent
from resnet_deploy.runners import find_model_runner, open_several
from resnet_deploy.runners.openvino import OpenVinoRunner
from resnet_deploy.runners.ort import OrtRunner
from resnet_deploy.specs import BatchRange, BuildSpec, CalibrationSpec
from resnet_deploy.verify import compare_logits

BATCH = BatchRange(1, 2, 4)
# Decibels against the exported model: FP32 adds up in another order, FP16 has weights of 11 bits; INT8 keeps 20 or
# more of an untrained network on images like noise. Images with their colours swapped leave less than 15.
FLOORS = {"fp32": 100.0, "fp16": 55.0, "int8": 20.0}
WRONG_DB = 15.0


@pytest.fixture(scope="module", params=FLOORS)
def bundle(request, deployment, tmp_path_factory):
    precision = request.param
    calibration = CalibrationSpec() if precision == "int8" else None
    spec = BuildSpec(backend="openvino", precision=precision, batch=BATCH, calibration=calibration)
    calib = str(deployment.calibration) if calibration else None
    folder = tmp_path_factory.mktemp(precision) / "engine"
    return build(BuildInputs(deployment.model, folder, calib=calib), spec, Silent()).bundle


@pytest.fixture
def images(deployment):
    return synthetic_images(deployment.card.preprocess, 7, seed=3)


@pytest.fixture
def expected(deployment, images):
    return open_session(deployment.model).run(["logits"], {"images": images})[0]


def test_answers_are_those_of_the_exported_model(bundle, images, expected):
    with load(bundle.path) as engine:
        found, swapped = engine(images), engine(np.ascontiguousarray(images[..., ::-1]))
    assert compare_logits(expected, found).sqnr_db > FLOORS[bundle.manifest.spec.precision]
    assert compare_logits(expected, swapped).sqnr_db < WRONG_DB


def test_a_bundle_says_what_the_engine_itself_answered(bundle):
    manifest = bundle.manifest
    assert (manifest.engine, manifest.requires.library, manifest.measured.by) == ("model.onnx", "openvino", "engine")
    assert manifest.toolchain["openvino"]
    assert manifest.measured.sqnr_db > FLOORS[manifest.spec.precision]
    assert (manifest.measured.speedup is None) == (manifest.spec.precision == "fp32")
    assert manifest.measured.latency_s > 0
    bundle.verify_files()


def test_what_was_fetched_stays_as_it_was(bundle, images):
    runner = OpenVinoRunner.open(bundle, 1)
    first = run_once(runner, images[:2])
    kept = first.copy()
    second = run_once(runner, images[2:4])
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(run_once(runner, images[:2]), kept)
    assert runner.device == "CPU"
    runner.close()
    runner.close()


def test_every_batch_size_has_the_same_answers(bundle, images):
    runner = OpenVinoRunner.open(bundle, 1)
    whole = infer(runner, images)
    alone = np.concatenate([run_once(runner, images[index : index + 1]) for index in range(len(images))])
    # Kernels for another batch size add up in another order, which INT8 rounds to other integers here and there.
    least = {"fp32": 100.0, "fp16": 100.0, "int8": 30.0}[bundle.manifest.spec.precision]
    assert compare_logits(whole, alone).sqnr_db > least
    runner.close()


def test_a_batch_that_does_not_fit_is_refused(bundle, images):
    runner = OpenVinoRunner.open(bundle, 1)
    with pytest.raises(FeedError, match="batch of 5"):
        runner.load(images[:5])
    with pytest.raises(FeedError, match="dtype float32"):
        runner.load(images[:1].astype(np.float32))
    runner.close()


def test_fp32_is_computed_in_fp32(deployment):
    """Where a CPU has instructions for BF16, OpenVINO takes that by itself."""
    compiled = open_compiled(deployment.model, threads=1)
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_a_model_that_it_refuses_is_one_line():
    with pytest.raises(BuildError, match="OpenVINO refuses the model: ") as caught:
        open_compiled(b"no model")
    assert "\n" not in caught.value.message


def test_models_are_opened_without_a_bundle_on_this_cpu_alone():
    assert find_model_runner("openvino") is OpenVinoRunner
    assert find_model_runner("onnxruntime") is OrtRunner
    for name in ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "torch", "null"):
        assert find_model_runner(name) is None


def test_a_search_measures_on_openvino(deployment, tmp_path):
    spec = BuildSpec(backend="openvino", precision="int8", batch=BATCH, calibration=CalibrationSpec(), max_drop=100.0)
    inputs = BuildInputs(deployment.model, tmp_path / "engine", calib=str(deployment.calibration), data=deployment.data)
    found = build(inputs, spec, Silent()).bundle
    assert '"cost": "seconds"' in (found.path / "search.json").read_text()


@pytest.mark.parametrize("requests", [2, 3])
def test_requests_side_by_side_answer_as_one_does(bundle, images, requests):
    many = np.concatenate([images] * 4)  # seven batches of 4: more than there are requests
    with load(bundle.path, threads=2) as engine:
        alone = engine(many)
        assert engine.notes == ()
    with load(bundle.path, threads=2, requests=requests) as engine:
        together = engine(many)
        assert f"THROUGHPUT: {requests} requests in" in engine.notes[0]
        assert engine(many[:0]).shape == (0, 10)
    # Another number of threads may add up in another order; answers to other images are far off.
    least = {"fp32": 100.0, "fp16": 100.0, "int8": 30.0}[bundle.manifest.spec.precision]
    assert compare_logits(alone, together).sqnr_db > least
    assert compare_logits(alone, np.roll(together, 4, axis=0)).sqnr_db < WRONG_DB


def test_runners_of_one_engine_share_the_compiled_model(bundle, images):
    first, second = open_several(bundle, 1, 2)
    assert first._compiled is second._compiled
    cores = len(os.sched_getaffinity(0))  # of which OpenVINO takes no more threads than there are
    assert first._compiled.get_property("INFERENCE_NUM_THREADS") == min(2, cores)  # one each
    assert first._compiled.get_property("PERFORMANCE_HINT") == "THROUGHPUT"
    (only,) = open_several(bundle, 2, 1)
    assert only._compiled.get_property("PERFORMANCE_HINT") == "LATENCY"
    first.load(images[:1])
    second.load(images[1:2])
    first.enqueue()
    second.enqueue()
    for runner in (second, first):
        runner.synchronize()
    ones = np.concatenate([first.fetch(), second.fetch()])
    assert compare_logits(infer(only, images[:2]), ones).sqnr_db > 30.0  # INT8 rounds otherwise at another batch size
    assert compare_logits(infer(only, images[:2]), ones[::-1]).sqnr_db < WRONG_DB
    first.close()
    second.load(images[:1])  # which does without the first
    for runner in (second, only):
        runner.close()


def test_other_backends_take_one_request_at_a_time(deployment):
    with pytest.raises(SpecError, match="onnxruntime runs one request at a time"):
        load(deployment.engines["fp32"], requests=2)
    with pytest.raises(SpecError, match="0 requests"):
        load(deployment.engines["fp32"], requests=0)
    runners = open_several(open_bundle(deployment.engines["fp32"]), 1, 2)
    assert len(runners) == 2
    assert runners[0]._session is not runners[1]._session
    for runner in runners:
        assert runner._session.get_session_options().intra_op_num_threads == 1
        runner.close()


def executed(bundle):
    """What OpenVINO runs of an engine after its fusions: how many layers of each kind, and how many on integers."""
    kinds, integer = Counter(), Counter()
    for node in open_compiled(bundle.engine_path).get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        kind, precision = (str(facts[key].astype(str)) for key in ("layerType", "runtimePrecision"))
        kinds[kind] += 1
        integer[kind] += precision in ("u8", "i8")
    return kinds, integer


def test_int8_runs_on_integers_and_fuses_sums_and_relus(bundle):
    """As NNCF's models do: every convolution in INT8, sums and ReLU inside it, one quantization, that of the input."""
    kinds, integer = executed(bundle)
    assert kinds["Convolution"] == 20
    assert kinds["Eltwise"] <= 2  # of the normalisation; the eight sums are fused
    is_int8 = bundle.manifest.spec.precision == "int8"
    assert integer["Convolution"] == (20 if is_int8 else 0)
    assert integer["FullyConnected"] == (1 if is_int8 else 0)
    assert kinds["FakeQuantize"] == (1 if is_int8 else 0)


SIGNALS = """
import gc, os, pathlib, signal, sys, threading
from resnet_deploy.openvino_session import open_compiled

def end(models):
    models.clear()
    gc.collect()

model = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGUSR1, lambda *_: print("heard"))
first, second = [open_compiled(model)], [open_compiled(model)]
end(first)
end(second)  # opened last, and not closed first
os.kill(os.getpid(), signal.SIGUSR1)
elsewhere = [open_compiled(model)]
thread = threading.Thread(target=end, args=[elsewhere])
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_are_heard_once_engines_have_ended_in_any_order_and_thread(deployment):
    """OpenVINO leaves the thread with a stack for signal handlers that is gone, if its core goes."""
    command = [sys.executable, "-c", SIGNALS, deployment.model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\nheard\n"), done.stderr
