"""From an exported model to bundles and benchmark records: what is built, what is found again, what is refused."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")

from resnet_deploy import artifact, environment
from resnet_deploy.batching import run_once
from resnet_deploy.bench.evaluate import evaluate
from resnet_deploy.bench.measure import WARMUP_CALLS, Entrant
from resnet_deploy.bench.records import read_record
from resnet_deploy.bundle import MANIFEST, open_bundle
from resnet_deploy.datasets import find_images
from resnet_deploy.engine import load
from resnet_deploy.errors import (
    AccuracyError,
    BackendError,
    BuildError,
    BundleError,
    DataError,
    FileError,
    SpecError,
    WeightsError,
)
from resnet_deploy.images import batch_from_images
from resnet_deploy.pipeline import lowering
from resnet_deploy.pipeline.benchmarking import BenchInputs, bench, find_engines, save
from resnet_deploy.pipeline.building import RANDOM, BuildInputs, build
from resnet_deploy.protocols import Silent, TensorSpec
from resnet_deploy.specs import BatchRange, BenchSpec, BuildSpec, CalibrationSpec

SHORT = BenchSpec(batches=(1, 4), seconds=0.02, rounds=2)
FP32 = BuildSpec(backend="onnxruntime", precision="fp32")


def listing(folder):
    """Inode, size and time of every file below ``folder``."""
    found = {path: path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        path.relative_to(folder).as_posix(): (one.st_ino, one.st_size, one.st_mtime_ns) for path, one in found.items()
    }


class Case:
    """One INT8 build whose inputs a test may change; the bundle of the unchanged ones lies at its output."""

    def __init__(self, deployment, folder, monkeypatch):
        self.model = folder / "resnet18.onnx"
        self.calibration = folder / "calibration"
        self.output = folder / "bundle"
        self.spec = deployment.int8_spec
        self.samples = None
        self.monkeypatch = monkeypatch
        os.link(deployment.model, self.model)
        shutil.copytree(deployment.calibration, self.calibration, copy_function=os.link)
        shutil.copytree(deployment.engines["int8"], self.output, copy_function=os.link)

    def build(self):
        inputs = BuildInputs(self.model, self.output, str(self.calibration), self.samples)
        return build(inputs, self.spec, Silent())


@pytest.fixture
def case(deployment, tmp_path, monkeypatch):
    return Case(deployment, tmp_path, monkeypatch)


# --- what is built


def test_bundle_says_what_it_was_built_from(deployment):
    for precision, path in deployment.engines.items():
        bundle = open_bundle(path)
        bundle.verify_files()
        manifest = bundle.manifest
        data = artifact.sha256_file(deployment.model)
        assert (manifest.name, manifest.engine) == (f"resnet18-{precision}-onnxruntime", "model.onnx")
        assert manifest.card == deployment.card
        assert manifest.chain.weights == deployment.card.weights_sha256
        assert manifest.chain.onnx == data
        assert manifest.chain.engine == artifact.sha256_file(bundle.engine_path) == manifest.chain.lowered
        assert manifest.chain.calibration == manifest.files.get("calibration.json", "")
        assert bool(manifest.chain.calibration) == (precision == "int8")
        assert {one.name for one in path.iterdir()} == {*manifest.files, MANIFEST}
        assert manifest.requires.int8_dot_product == (precision == "int8" and environment.probe_cpu().has_vnni)
        assert (manifest.measured.by, manifest.measured.images) == ("engine", 8)
        assert manifest.measured.inputs == ("images" if precision == "int8" else "synthetic")


def test_engines_are_smaller_the_fewer_bits_they_have(deployment):
    sizes = {name: open_bundle(path).engine_path.stat().st_size for name, path in deployment.engines.items()}
    assert sizes["int8"] < 0.6 * sizes["fp16"] < 0.36 * sizes["fp32"]


def test_golden_images_are_real_where_there_are_real_ones(deployment, tmp_path):
    contract = deployment.card.preprocess
    some = find_images(deployment.calibration).subset(8)
    with np.load(open_bundle(deployment.engines["int8"]).golden_path) as golden:
        np.testing.assert_array_equal(golden["images"], batch_from_images(some.paths, contract))
    with np.load(open_bundle(deployment.engines["fp32"]).golden_path) as golden:
        np.testing.assert_array_equal(golden["images"], lowering.synthetic_images(contract, 8, seed=1))
    # --samples comes first.
    samples = deployment.data / "one"
    built = build(BuildInputs(deployment.model, tmp_path / "net", None, samples), FP32, Silent())
    with np.load(built.bundle.golden_path) as golden:
        np.testing.assert_array_equal(golden["images"], batch_from_images(find_images(samples).paths, contract))
    assert (built.bundle.manifest.measured.inputs, built.bundle.manifest.measured.images) == ("images", 4)


def test_calibration_says_what_it_saw(deployment):
    calibration = json.loads((deployment.engines["int8"] / "calibration.json").read_text())
    assert calibration["source"] == {
        "dataset": "calibration",
        "dataset_sha256": find_images(deployment.calibration).digest,
        "images": 12,
        "preprocess_sha256": deployment.card.preprocess.digest,
        "weights_sha256": deployment.card.weights_sha256,
        "onnx_sha256": artifact.sha256_file(deployment.model),
    }
    assert len(calibration["tensors"]) > 20


def test_calibration_takes_no_more_images_than_asked_for(case):
    case.spec = msgspec.structs.replace(case.spec, calibration=CalibrationSpec(max_images=5))
    case.build()
    calibration = json.loads((case.output / "calibration.json").read_text())
    chosen = find_images(case.calibration).subset(5)
    assert calibration["source"]["images"] == 5
    assert calibration["source"]["dataset_sha256"] == chosen.digest


def test_noise_is_no_secret(deployment, tmp_path):
    built = build(BuildInputs(deployment.model, tmp_path / "net", RANDOM), deployment.int8_spec, Silent())
    note = "calibrated on noise: the ranges suit no real image; do not deploy"
    assert note in built.bundle.manifest.notes
    assert note in (tmp_path / "net" / "build.log").read_text().splitlines()
    source = json.loads((tmp_path / "net" / "calibration.json").read_text())["source"]
    assert (source["dataset"], source["dataset_sha256"], source["images"]) == ("random", "", 32)
    assert built.bundle.manifest.measured.inputs == "synthetic"
    assert note not in open_bundle(deployment.engines["int8"]).manifest.notes


def test_folder_called_random_is_a_folder_where_it_is_written_as_one(case):
    case.calibration = case.calibration.rename(case.calibration.with_name(RANDOM))
    assert case.build().cache_hit


def test_int8_needs_images(deployment, tmp_path):
    with pytest.raises(DataError, match="INT8 needs calibration images") as caught:
        build(BuildInputs(deployment.model, tmp_path / "net"), deployment.int8_spec, Silent())
    assert "--calib" in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["torch", "null", "openvino", "tensorrt"])
def test_backend_that_builds_nothing(deployment, tmp_path, backend):
    with pytest.raises(BackendError, match=f"cannot build for {backend}") as caught:
        build(BuildInputs(deployment.model, tmp_path / "net"), BuildSpec(backend=backend, precision="fp32"), Silent())
    assert "--backend onnxruntime" in caught.value.hint
    assert not list(tmp_path.iterdir())


# --- what is found again


def test_same_request_builds_nothing(case):
    before = listing(case.output)
    built = case.build()
    assert built.cache_hit
    assert listing(case.output) == before
    assert built.bundle.manifest == open_bundle(case.output).manifest


def add_image(case):
    shutil.copy(case.calibration / "00.png", case.calibration / "another.png")


def change_image(case):
    path = case.calibration / "03.png"
    data = (case.calibration / "04.png").read_bytes()
    path.unlink()
    path.write_bytes(data)


def another_method(case):
    changed = msgspec.structs.replace(case.spec.calibration, method="max")
    case.spec = msgspec.structs.replace(case.spec, calibration=changed)


def another_percentile(case):
    changed = msgspec.structs.replace(case.spec.calibration, percentile=99.9)
    case.spec = msgspec.structs.replace(case.spec, calibration=changed)


def another_batch(case):
    case.spec = msgspec.structs.replace(case.spec, batch=BatchRange(1, 8, 32))


def another_precision(case):
    case.spec = BuildSpec(backend="onnxruntime", precision="fp16")


def another_model_byte(case):
    import onnx

    model = onnx.load(case.model)
    model.doc_string += "!"
    case.model.unlink()
    onnx.save(model, case.model)


def other_samples(case):
    case.samples = case.calibration / "00.png"


def another_library(case):
    version = environment.installed_version
    case.monkeypatch.setattr(
        environment, "installed_version", lambda name: "0.0.1" if name == "numpy" else version(name)
    )


def another_compiler_under_a_name_with_a_cuda_version(case):
    folder = case.output.parent / "site"
    (folder / "tensorrt_cu13-0.0.1.dist-info").mkdir(parents=True)
    metadata = "Metadata-Version: 2.1\nName: tensorrt-cu13\nVersion: 0.0.1\n"
    (folder / "tensorrt_cu13-0.0.1.dist-info" / "METADATA").write_text(metadata)
    case.monkeypatch.syspath_prepend(folder)


def another_package(case):
    case.monkeypatch.setattr(environment, "package_digest", lambda: "0" * 64)


def another_processor(case):
    has_vnni = environment.probe_cpu().has_vnni
    case.monkeypatch.setattr(environment.Cpu, "has_vnni", not has_vnni)


def another_gpu(case):
    gpu = environment.GpuProbe((environment.Gpu("Synthetic GPU", "8.9", 1 << 30),), "13.0")
    case.monkeypatch.setattr(environment, "probe_gpu", lambda: gpu)


CHANGES = (
    add_image,
    change_image,
    another_method,
    another_percentile,
    another_batch,
    another_precision,
    another_model_byte,
    other_samples,
    another_library,
    another_compiler_under_a_name_with_a_cuda_version,
    another_package,
    another_processor,
    another_gpu,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__)
def test_any_change_builds_anew(case, change):
    before = open_bundle(case.output).manifest
    change(case)
    built = case.build()
    assert not built.cache_hit
    assert built.bundle.manifest.cache_key != before.cache_key
    assert open_bundle(case.output).manifest.spec == case.spec
    built.bundle.verify_files()
    assert case.build().cache_hit


def test_processor_without_a_dot_product_gets_seven_bits(case):
    for has_vnni in (False, True):
        case.monkeypatch.setattr(environment.Cpu, "has_vnni", has_vnni)
        case.output = case.output.with_name(f"vnni-{has_vnni}")
        manifest = case.build().bundle.manifest
        assert manifest.requires.int8_dot_product is has_vnni
        assert any("weights are 7-bit" in note for note in manifest.notes) is not has_vnni


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", MANIFEST])
def test_damaged_bundle_is_built_anew(case, deployment, rewrite, flip_bit, name):
    if name == MANIFEST:
        rewrite(case.output / MANIFEST, (case.output / MANIFEST).read_bytes()[:-100])
    else:
        flip_bit(case.output / name)
    built = case.build()
    assert not built.cache_hit
    built.bundle.verify_files()
    # Built twice from the same, the engine is the same to the bit.
    assert built.bundle.manifest.chain == open_bundle(deployment.engines["int8"]).manifest.chain


# --- what stays as it was


def test_failed_builder_leaves_the_old_bundle(case, monkeypatch):
    def fail(lowered, spec, folder):
        (folder / "model.onnx").write_bytes(b"half of the n")
        raise BuildError("the compiler failed", hint="")

    monkeypatch.setattr("resnet_deploy.builders.ort.build_engine", fail)
    another_batch(case)
    before = listing(case.output.parent)
    with pytest.raises(BuildError, match="the compiler failed"):
        case.build()
    assert listing(case.output.parent) == before


def test_answers_that_are_no_numbers_leave_the_old_bundle(case, monkeypatch):
    fetch = "resnet_deploy.runners.ort.OrtRunner.fetch"
    monkeypatch.setattr(fetch, lambda self: np.full((len(self._feed["images"]), 10), np.nan, np.float32))
    another_batch(case)
    before = listing(case.output.parent)
    with pytest.raises(AccuracyError, match="the int8 engine gives logits that are not finite") as caught:
        case.build()
    assert "--fp32" in caught.value.hint
    assert listing(case.output.parent) == before


def test_foreign_folder_is_refused_and_left_alone(case):
    output = case.output.with_name("holiday")
    output.mkdir()
    (output / "photo.jpg").write_bytes(b"precious")
    case.output = output
    before = listing(output.parent)
    with pytest.raises(FileError, match="holiday exists and is not an engine bundle") as caught:
        case.build()
    assert "-o" in caught.value.hint
    assert listing(output.parent) == before


@pytest.mark.parametrize("text", ['{"name": "web application", "icons": []}', "not JSON"])
def test_manifest_of_somebody_else_is_no_licence_to_replace_a_folder(case, text):
    output = case.output.with_name("web")
    output.mkdir()
    (output / MANIFEST).write_text(text)
    (output / "index.html").write_text("precious")
    case.output = output
    before = listing(output.parent)
    with pytest.raises(FileError, match=r"web would be replaced, and holds index\.html, which no build made") as caught:
        case.build()
    assert "-o" in caught.value.hint
    assert listing(output.parent) == before


def test_notes_beside_an_engine_are_not_deleted(case):
    (case.output / "NOTES").write_text("precious")
    assert case.build().cache_hit
    another_batch(case)
    with pytest.raises(FileError, match="holds NOTES, which no build made"):
        case.build()
    assert (case.output / "NOTES").read_text() == "precious"


def test_file_as_output_is_refused(case):
    (case.output.parent / "file").write_text("precious")
    case.output = case.output.parent / "file"
    with pytest.raises(FileError, match="file exists and is not an engine bundle"):
        case.build()
    assert case.output.read_text() == "precious"


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


@pytest.mark.parametrize("field", ["weights_sha256", "preprocess"])
def test_engines_of_two_models_are_refused(deployment, copy_engine, tmp_path, field):
    def change(manifest):
        if field == "preprocess":
            manifest["card"]["preprocess"]["resize"] = 33
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
    outputs = evaluate(entrants, batches, "right")
    assert outputs["right"].top5 == ((0, 1, 2), (1, 2, 0), (2, 0, 1))
    assert outputs["right"].noise == ()
    assert outputs["wrong"].top5 == ((0, 1, 2), (2, 1, 0), (0, 2, 1))
    assert outputs["wrong"].noise == (0, 2, np.inf)
    assert outputs["wrong"].signal == (9, 5, 1)
    assert outputs["wrong"].max_difference == (0, 1, np.inf)
    alone = evaluate(entrants, batches, "")
    assert [one.noise for one in alone.values()] == [(), ()]
    np.testing.assert_array_equal(run_once(right, batches[0]), right.table[:2])
