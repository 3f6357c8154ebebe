"""From engines to a benchmark record: who takes part, what is kept of each, what is refused."""

import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")

from resnet_deploy import artifact
from resnet_deploy.batching import run_once
from resnet_deploy.bench.loops import WARMUP_CALLS
from resnet_deploy.bench.outputs import collect_outputs
from resnet_deploy.bench.records import read_record
from resnet_deploy.bench.statistics import summarize
from resnet_deploy.bench.ways import Entrant
from resnet_deploy.bench_spec import BenchSpec
from resnet_deploy.bundle import open_bundle
from resnet_deploy.datasets import find_images
from resnet_deploy.engine import load
from resnet_deploy.errors import (
    BackendError,
    BundleError,
    DataError,
    FileError,
    SpecError,
    WeightsError,
)
from resnet_deploy.pipeline.benchmarking import bench, save
from resnet_deploy.pipeline.building import BuildInputs, build
from resnet_deploy.pipeline.lineup import BenchInputs
from resnet_deploy.pipeline.matching import find_engines
from resnet_deploy.protocols import Silent, TensorSpec
from resnet_deploy.specs import BatchRange, BuildSpec

SHORT = BenchSpec(batches=(1, 4), seconds=0.02, rounds=2)
FP32 = BuildSpec(backend="onnxruntime", precision="fp32")


# --- benchmark records


@pytest.fixture(scope="module")
def record(deployment):
    """PyTorch and the three engines on all images."""
    inputs = BenchInputs(engines=find_engines(deployment.model.parent), data=deployment.data)
    return bench(inputs, SHORT, threads=1, progress=Silent())


def test_record_has_everybody_the_reference_first(record):
    names = ["pytorch", "resnet18-fp16-onnxruntime", "resnet18-fp32-onnxruntime", "resnet18-int8-onnxruntime"]
    assert [one.name for one in record.engines] == names
    assert record.reference == "pytorch"
    assert [(one.backend, one.precision) for one in record.engines] == [
        ("torch", "fp32"),
        *(("onnxruntime", precision) for precision in ("fp16", "fp32", "int8")),
    ]
    assert record.not_run == ()


def test_record_says_what_each_engine_is(record, deployment):
    reference, *engines = record.engines
    assert reference.sha256 == deployment.card.weights_sha256 == record.weights_sha256
    assert reference.size_bytes == deployment.reference.stat().st_size
    for one in engines:
        path = open_bundle(deployment.engines[one.precision]).engine_path
        assert (one.sha256, one.size_bytes) == (artifact.sha256_file(path), path.stat().st_size)
        assert one.device == "CPUExecutionProvider"
    assert record.preprocess == deployment.card.preprocess
    assert (record.threads, record.seed, record.warmup_calls) == (1, 0, WARMUP_CALLS)


def test_record_has_an_answer_for_every_image(record, deployment):
    assert record.dataset.images == 40
    assert record.dataset.digest == find_images(deployment.data).digest
    # Folders in the order of their names, labels in the order of the logits.
    names = sorted(deployment.card.labels)
    assert record.dataset.labels == tuple(deployment.card.labels.index(name) for name in names for _ in range(4))
    for one in record.engines:
        assert len(one.outputs.top5) == 40
        assert all(len(set(best)) == 5 for best in one.outputs.top5)
        counts = {len(getattr(one.outputs, name)) for name in ("noise", "signal", "max_difference")}
        assert counts == ({0} if one.name == "pytorch" else {40})


def test_record_answers_are_those_of_the_engines(record, deployment):
    paths = find_images(deployment.data).paths
    for one in record.engines[1:]:
        with load(deployment.engines[one.precision], threads=1) as engine:
            best = engine.classify(paths, top=5)
        # A different batch size may exchange two classes that are equal but for rounding.
        same = [[p.index for p in row] == list(top) for row, top in zip(best, one.outputs.top5, strict=True)]
        assert sum(same) >= 38
        shuffled = [[p.index for p in row] == list(top) for row, top in zip(best, one.outputs.top5[::-1], strict=True)]
        assert sum(shuffled) < 38


def test_record_tells_precisions_apart_by_their_noise(record):
    noise = {one.name.split("-")[1]: sum(one.outputs.noise) for one in record.engines[1:]}
    assert noise["fp32"] < noise["fp16"] < noise["int8"] < sum(record.engines[1].outputs.signal)


def test_record_has_samples_of_everybody_and_of_the_harness(record):
    for latency in (record.harness, *(one.latency for one in record.engines)):
        assert [samples.batch for samples in latency] == [1, 4]
        for samples in latency:
            assert set(samples.rounds) == {0, 1}
            assert samples.scope == "host"


def test_record_comes_back_from_its_file(record, tmp_path):
    path = save(record, tmp_path / "results")
    assert path.name.startswith("resnet18-20")
    assert path.suffix == ".json"
    assert ":" not in path.name
    assert read_record(path) == record
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_bench_without_images_or_without_pytorch(deployment):
    engines = (deployment.engines["int8"],)
    record = bench(BenchInputs(engines=engines, pytorch=False), SHORT, threads=1, progress=Silent())
    assert (record.dataset, record.reference) == (None, "")
    assert [one.outputs for one in record.engines] == [None]
    record = bench(
        BenchInputs(engines=engines, pytorch=False, data=deployment.data / "one"), SHORT, threads=1, progress=Silent()
    )
    assert record.dataset.labels == ()
    assert [len(one.outputs.top5) for one in record.engines] == [4]
    assert record.engines[0].outputs.noise == ()


def test_engine_that_cannot_run_here_is_listed_with_the_reason(deployment, copy_engine, tmp_path):
    def change(manifest):
        manifest["requires"] |= {"library": "numpy", "version": "0.0.1"}

    engines = (copy_engine("fp16", to=tmp_path / "misfit", change=change), deployment.engines["int8"])
    record = bench(BenchInputs(engines=engines, pytorch=False), SHORT, threads=1, progress=Silent())
    assert [one.name for one in record.engines] == ["resnet18-int8-onnxruntime"]
    (missing,) = record.not_run
    assert (missing.name, missing.backend, missing.precision) == ("misfit", "onnxruntime", "fp16")
    assert "requires.version is numpy 0.0.1" in missing.reason
    with pytest.raises(BackendError, match="none of the engines can run here: misfit") as caught:
        bench(BenchInputs(engines=engines[:1], pytorch=False), SHORT, threads=1, progress=Silent())
    assert "resnet-deploy doctor" in caught.value.hint


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_tensorrt_rtx_engine_is_built_and_listed(deployment, tmp_path):
    spec = BuildSpec(backend="tensorrt-rtx", precision="fp16")
    built = build(BuildInputs(deployment.model, tmp_path / "rtx"), spec, Silent())
    assert built.bundle.manifest.measured.by == "simulation"
    assert built.bundle.manifest.measured.latency_s is None
    assert {"model.plan", "lowered.onnx"} < set(built.bundle.manifest.files)
    engines = (built.bundle.path, deployment.engines["fp32"])
    record = bench(BenchInputs(engines=engines, pytorch=False), SHORT, threads=1, progress=Silent())
    assert [one.name for one in record.engines] == ["resnet18-fp32-onnxruntime"]
    assert [(one.name, one.backend) for one in record.not_run] == [("rtx", "tensorrt-rtx")]
    assert record.not_run[0].size_bytes == built.bundle.engine_path.stat().st_size


# --- damaged images


@pytest.fixture
def damaged_data(deployment, tmp_path, rewrite):
    """The images, two of them cut short."""
    data = tmp_path / "data"
    shutil.copytree(deployment.data, data, copy_function=os.link)
    for name in ("five/0.png", "two/3.png"):
        rewrite(data / name, (data / name).read_bytes()[:60])
    return data


def test_damaged_image_stops_the_bench(deployment, damaged_data):
    inputs = BenchInputs(engines=(deployment.engines["int8"],), data=damaged_data, pytorch=False)
    with pytest.raises(DataError, match=r"five/0\.png"):
        bench(inputs, SHORT, threads=1, progress=Silent())


def test_damaged_images_are_counted_and_named_when_they_may_be_skipped(deployment, damaged_data):
    inputs = BenchInputs(engines=(deployment.engines["int8"],), data=damaged_data, pytorch=False, skip_corrupt=True)
    record = bench(inputs, SHORT, threads=1, progress=Silent())
    assert record.dataset.images == 38
    assert sorted(record.dataset.skipped) == ["five/0.png", "two/3.png"]
    assert [len(one.outputs.top5) for one in record.engines] == [38]
    labels = list(record.dataset.labels)
    assert {index: labels.count(index) for index in range(10)} == {
        index: 3 if index in (2, 5) else 4 for index in range(10)
    }


def test_nothing_but_damaged_images(deployment, damaged_data):
    only = damaged_data.parent / "only"
    for name in ("five/0.png", "two/3.png"):
        (only / name).parent.mkdir(parents=True)
        shutil.copy(damaged_data / name, only / name)
    inputs = BenchInputs(engines=(deployment.engines["int8"],), data=only, pytorch=False, skip_corrupt=True)
    with pytest.raises(DataError, match="only: every image is damaged") as caught:
        bench(inputs, SHORT, threads=1, progress=Silent())
    assert caught.value.hint


# --- what has nothing to do with each other


@pytest.mark.parametrize("field", ["weights_sha256", "preprocess", "labels", "folders"])
def test_engines_of_two_models_are_refused(deployment, copy_engine, tmp_path, field):
    def change(manifest):
        if field == "preprocess":
            manifest["card"]["preprocess"]["resize"] = 33
        elif field in ("labels", "folders"):
            manifest["card"][field] = manifest["card"]["labels"][::-1]
        else:
            manifest["card"]["weights_sha256"] = "0" * 64

    other = copy_engine("fp16", to=tmp_path / "other", change=change)
    with pytest.raises(SpecError, match=rf"are of different models: {field} differs") as caught:
        bench(BenchInputs(engines=(deployment.engines["int8"], other)), SHORT, threads=1, progress=Silent())
    assert caught.value.hint


@pytest.mark.parametrize("name", ["resnet18-int8-onnxruntime", "pytorch", "null"])
def test_engines_need_names_of_their_own(deployment, copy_engine, tmp_path, name):
    twin = copy_engine("fp16", to=tmp_path / name)
    with pytest.raises(SpecError, match=rf"more than one engine would appear as '{name}'") as caught:
        bench(BenchInputs(engines=(deployment.engines["int8"], twin)), SHORT, threads=1, progress=Silent())
    assert caught.value.hint


def test_current_folder_has_a_name(deployment, monkeypatch):
    monkeypatch.chdir(deployment.engines["int8"])
    record = bench(BenchInputs(engines=(Path(),)), SHORT, threads=1, progress=Silent())
    assert [one.name for one in record.engines] == ["pytorch", "resnet18-int8-onnxruntime"]


def test_engine_of_which_no_batch_is_measured(copy_engine):
    def change(manifest):
        manifest["spec"]["batch"] = {"min": 2, "opt": 2, "max": 3}

    inputs = BenchInputs(engines=(copy_engine("int8", change=change),), pytorch=False)
    with pytest.raises(SpecError, match="takes batches of 2 to 3, none of which is measured") as caught:
        bench(inputs, SHORT, threads=1, progress=Silent())
    assert "--batches 2" in caught.value.hint


def test_reference_of_other_weights_is_refused(deployment, tmp_path):
    import torch

    from resnet_deploy.models import create_model

    torch.save(create_model("resnet18", 10, seed=1).state_dict(), tmp_path / "other.pth")
    torch.save(create_model("resnet18", 10).state_dict(), tmp_path / "same.pth")
    engines = (deployment.engines["int8"],)
    with pytest.raises(WeightsError, match=r"other\.pth holds other weights than the engines") as caught:
        bench(BenchInputs(engines=engines, reference=tmp_path / "other.pth"), SHORT, threads=1, progress=Silent())
    assert "--reference" in caught.value.hint
    record = bench(BenchInputs(engines=engines, reference=tmp_path / "same.pth"), SHORT, threads=1, progress=Silent())
    assert record.reference == "pytorch"


def test_reference_that_is_nowhere(copy_engine):
    with pytest.raises(FileError, match="the PyTorch weights of resnet18 are not beside the engines") as caught:
        bench(BenchInputs(engines=(copy_engine("int8"),)), SHORT, threads=1, progress=Silent())
    assert "--no-pytorch" in caught.value.hint


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_altered_engine_stops_the_bench(copy_engine, flip_bit, name):
    path = copy_engine("int8")
    flip_bit(path / name)
    inputs = BenchInputs(engines=(path,), pytorch=False)
    with pytest.raises(BundleError, match=rf"{name} was altered"):
        bench(inputs, SHORT, threads=1, progress=Silent())
    (path / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} is missing"):
        bench(inputs, SHORT, threads=1, progress=Silent())


# --- answers on a data set


def test_evaluation_compares_everybody_with_the_reference():
    class Fixed:
        """Answers from a table, by the number in each image."""

        def __init__(self, table):
            self.table = np.array(table, np.float32)
            self.input, self.output = TensorSpec("images", "uint8", (1,)), TensorSpec("logits", "float32", (3,))
            self.batch = BatchRange(1, 2, 2)

        def load(self, feed):
            self.rows = feed[:, 0]

        def enqueue(self):
            pass

        synchronize = close = enqueue

        def fetch(self):
            return self.table[self.rows]

    right = Fixed([[3, 0, 0], [0, 2, 1], [0, 0, 1]])
    wrong = Fixed([[3, 0, 0], [0, 1, 2], [np.inf, 0, 1]])
    entrants = [Entrant("right", right), Entrant("wrong", wrong)]
    batches = [np.array([[0], [1]], np.uint8), np.array([[2]], np.uint8)]
    outputs = collect_outputs(entrants, batches, "right")
    assert outputs["right"].top5 == ((0, 1, 2), (1, 2, 0), (2, 0, 1))
    assert outputs["right"].noise == ()
    assert outputs["wrong"].top5 == ((0, 1, 2), (2, 1, 0), ())  # infinity is no best class
    assert outputs["wrong"].noise == (0, 2, np.inf)
    assert outputs["wrong"].signal == (9, 5, 1)
    assert outputs["wrong"].max_difference == (0, 1, np.inf)
    alone = collect_outputs(entrants, batches, "")
    assert [one.noise for one in alone.values()] == [(), ()]
    np.testing.assert_array_equal(run_once(right, batches[0]), right.table[:2])


def test_images_that_an_engine_was_calibrated_on_are_noticed(deployment):
    engines = tuple(deployment.engines.values())
    for data, expected in ((deployment.calibration, {"int8"}), (deployment.data, set())):
        inputs = BenchInputs(engines=engines, data=data, pytorch=False)
        record = bench(inputs, SHORT, threads=1, progress=Silent())
        assert {one.precision for one in record.engines if one.in_sample} == expected
        warned = {row.engine.precision for row in summarize(record) if any("very images" in w for w in row.warnings)}
        assert warned == expected
