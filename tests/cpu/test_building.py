"""From an exported model to bundles: what is built, what is found again, what is refused."""

import errno
import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from build_case import another_batch, listing

from resnet_deploy import artifact, environment
from resnet_deploy.backends import find_backend
from resnet_deploy.bundle import MANIFEST, open_bundle
from resnet_deploy.capabilities import backend_status
from resnet_deploy.datasets import find_images
from resnet_deploy.errors import (
    AccuracyError,
    BackendError,
    BuildError,
    DataError,
    FileError,
    ModelError,
)
from resnet_deploy.images import batch_from_images
from resnet_deploy.pipeline import lowering
from resnet_deploy.pipeline.building import BuildInputs, build
from resnet_deploy.pipeline.calibrating import RANDOM
from resnet_deploy.pipeline.exporting import export
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.protocols import Silent
from resnet_deploy.specs import BuildSpec, CalibrationSpec, ExportSpec

FP32 = BuildSpec(backend="onnxruntime", precision="fp32")


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
        assert manifest.measured.inputs == ("calibration images" if precision == "int8" else "synthetic images")


def test_engines_are_smaller_the_fewer_bits_they_have(deployment):
    sizes = {name: open_bundle(path).engine_path.stat().st_size for name, path in deployment.engines.items()}
    assert sizes["int8"] < 0.6 * sizes["fp16"] < 0.36 * sizes["fp32"]


def test_bundles_are_named_after_the_whole_name_of_their_model(deployment, tmp_path):
    names = []
    for name in ("m.v1", "m.v2.onnx"):
        os.link(deployment.model, tmp_path / name)
        names.append(build(BuildInputs(tmp_path / name), FP32, Silent()).bundle.path.name)
    assert names == ["m.v1-fp32-onnxruntime", "m.v2-fp32-onnxruntime"]


def test_golden_images_are_real_where_there_are_real_ones(deployment, tmp_path):
    contract = deployment.card.preprocess
    some = find_images(deployment.calibration).subset(8)
    with np.load(open_bundle(deployment.engines["int8"]).golden_path) as golden:
        np.testing.assert_array_equal(golden["images"], batch_from_images(some.paths, contract))
    with np.load(open_bundle(deployment.engines["fp32"]).golden_path) as golden:
        np.testing.assert_array_equal(golden["images"], synthetic_images(contract, 8, seed=1))
    # --samples comes first.
    samples = deployment.data / "one"
    built = build(BuildInputs(deployment.model, tmp_path / "net", None, samples), FP32, Silent())
    with np.load(built.bundle.golden_path) as golden:
        np.testing.assert_array_equal(golden["images"], batch_from_images(find_images(samples).paths, contract))
    assert (built.bundle.manifest.measured.inputs, built.bundle.manifest.measured.images) == ("images", 4)


def test_golden_images_are_none_that_the_engine_was_calibrated_on(case):
    """On those it was, an engine that was calibrated on fewer images looks better."""
    case.spec = msgspec.structs.replace(case.spec, calibration=CalibrationSpec(max_images=5, correct_biases=False))
    built = case.build()
    images = find_images(case.calibration)
    used = {path.name for path in images.subset(5).paths}
    others = [path for path in images.paths if path.name not in used]
    assert len(others) == 7
    contract = built.bundle.manifest.card.preprocess
    with np.load(built.bundle.golden_path) as golden:
        np.testing.assert_array_equal(golden["images"], batch_from_images(others, contract))
    assert (built.bundle.manifest.measured.inputs, built.bundle.manifest.measured.images) == ("images", 7)


@pytest.mark.parametrize(("count", "words"), [(1, "1 image"), (5, "5 images")])
def test_few_calibration_images_are_said_to_be_few(case, count, words):
    case.spec = msgspec.structs.replace(case.spec, calibration=CalibrationSpec(max_images=count, correct_biases=False))
    notes = case.build().bundle.manifest.notes
    assert f"calibrated on {words}: a few hundred give ranges that suit others too" in notes


def test_calibration_says_what_it_saw(deployment):
    calibration = json.loads((deployment.engines["int8"] / "calibration.json").read_text())
    assert calibration["source"] == {
        "dataset": "calibration",
        "dataset_sha256": find_images(deployment.calibration).digest,
        "images": 12,
        "skipped": [],
        "device": "cpu",
        "preprocess_sha256": deployment.card.preprocess.digest,
        "weights_sha256": deployment.card.weights_sha256,
        "onnx_sha256": artifact.sha256_file(deployment.model),
    }
    assert len(calibration["tensors"]) > 20


def test_calibration_takes_no_more_images_than_asked_for(case):
    case.spec = msgspec.structs.replace(case.spec, calibration=CalibrationSpec(max_images=5, correct_biases=False))
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
    assert built.bundle.manifest.measured.inputs == "synthetic images"
    assert note not in open_bundle(deployment.engines["int8"]).manifest.notes


def test_folder_called_random_is_a_folder_where_it_is_written_as_one(case):
    case.calibration = case.calibration.rename(case.calibration.with_name(RANDOM))
    assert case.build().cache_hit


def test_int8_needs_images(deployment, tmp_path):
    with pytest.raises(DataError, match="INT8 and FP8 need calibration images") as caught:
        build(BuildInputs(deployment.model, tmp_path / "net"), deployment.int8_spec, Silent())
    assert "--calib" in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["torch", "null"])
def test_backend_that_builds_nothing(deployment, tmp_path, backend):
    with pytest.raises(BackendError, match=f"cannot build for {backend}") as caught:
        build(BuildInputs(deployment.model, tmp_path / "net"), BuildSpec(backend=backend, precision="fp32"), Silent())
    assert "--backend onnxruntime" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_tensorrt_wants_itself_and_a_gpu(deployment, tmp_path):
    if backend_status(find_backend("tensorrt")).build.ok:
        pytest.skip("TensorRT builds here")
    with pytest.raises(BackendError, match="cannot build for tensorrt: ") as caught:
        build(
            BuildInputs(deployment.model, tmp_path / "net"), BuildSpec(backend="tensorrt", precision="fp32"), Silent()
        )
    assert caught.value.message.endswith("tensorrt is not installed") or "no NVIDIA GPU" in caught.value.message
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


# --- damaged images


def damage(case, *names):
    """Cut calibration images short, the files linked elsewhere left whole."""
    for name in names:
        path = case.calibration / name
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data[:60])


def test_damaged_calibration_image_stops_the_build(case):
    damage(case, "03.png")
    before = listing(case.output)
    with pytest.raises(DataError, match=r"calibration/03\.png: damaged image"):
        case.build()
    assert listing(case.output) == before


def test_damaged_calibration_images_are_named_where_they_may_be_skipped(case):
    names = sorted(path.name for path in case.calibration.iterdir())
    damage(case, names[0], names[3])
    built = case.build(skip_corrupt=True)
    manifest = built.bundle.manifest
    source = json.loads((case.output / "calibration.json").read_text())["source"]
    assert source["images"] == len(names) - 2
    assert source["skipped"] == [names[0], names[3]]
    assert f"2 damaged images left out of the calibration: {names[0]}, {names[3]}" in manifest.notes
    assert 0 < manifest.measured.images <= 8
    assert case.build(skip_corrupt=True).cache_hit


def test_nothing_but_damaged_calibration_images(case):
    damage(case, *[path.name for path in case.calibration.iterdir()])
    before = listing(case.output)
    with pytest.raises(DataError, match="no calibration images"):
        case.build(skip_corrupt=True)
    assert listing(case.output) == before


# --- what stays as it was


def test_failed_builder_leaves_the_old_bundle(case, monkeypatch):
    def fail(lowered, spec, folder, progress):
        (folder / "model.onnx").write_bytes(b"half of the n")
        raise BuildError("the compiler failed", hint="")

    monkeypatch.setattr("resnet_deploy.builders.ort.build_engine", fail)
    another_batch(case)
    before = listing(case.output.parent)
    with pytest.raises(BuildError, match="the compiler failed"):
        case.build()
    assert listing(case.output.parent) == before


def test_graph_that_lowering_would_break_leaves_the_old_bundle(case, monkeypatch):
    right = lowering.lower
    assert not case.spec.calibration.correct_biases  # which would run the graph before

    def break_one_node(*arguments):
        lowered = right(*arguments)
        lowered.model.graph.node("conv1").op_type = "Convolution"
        return lowered

    monkeypatch.setattr(lowering, "lower", break_one_node)
    another_batch(case)
    before = listing(case.output.parent)
    with pytest.raises(ModelError, match=r"the graph lowered to int8 is not valid ONNX: .*Convolution") as caught:
        case.build()
    assert caught.value.hint
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


def test_model_and_weights_are_replaced_together_or_not_at_all(deployment, shallow, tmp_path, monkeypatch):
    """The ONNX file, which is renamed last, is the one that there is no room for."""
    paths = {tmp_path / "net.onnx": deployment.model, tmp_path / "net.safetensors": deployment.reference}
    for path, original in paths.items():
        os.link(original, path)
    before, replace = listing(tmp_path), Path.replace

    def fail(path, target):
        if Path(target).suffix == ".onnx":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, target)

    spec = ExportSpec(architecture="resnet18", weights="none", num_classes=3, image_size=32)
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(FileError, match=r"net\.onnx: no space left"):
        export(spec, tmp_path / "net.onnx", Silent())
    assert listing(tmp_path) == before
    monkeypatch.undo()
    export(spec, tmp_path / "net.onnx", Silent())
    assert listing(tmp_path).keys() == before.keys()
    assert not listing(tmp_path).items() & before.items()
