"""From an exported model to bundles: what is built, what is found again, what is refused."""

import errno
import json
import os
import pickle
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")

from resnet_deploy import artifact, driver, environment
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
from resnet_deploy.pipeline import calibrating, lowering
from resnet_deploy.pipeline.building import BuildInputs, build
from resnet_deploy.pipeline.calibrating import RANDOM
from resnet_deploy.pipeline.exporting import export
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.protocols import Silent
from resnet_deploy.quantize import torch_observe
from resnet_deploy.specs import BatchRange, BuildSpec, CalibrationSpec, ExportSpec

FP32 = BuildSpec(backend="onnxruntime", precision="fp32")


def listing(folder):
    """Inode, size and time of every file below ``folder``."""
    found = {path: path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        path.relative_to(folder).as_posix(): (one.st_ino, one.st_size, one.st_mtime_ns) for path, one in found.items()
    }


class Case:
    """One INT8 build whose inputs a test may change; ``bundle``, of the unchanged ones, lies at its output."""

    def __init__(self, deployment, bundle, folder, monkeypatch):
        self.model = folder / "resnet18.onnx"
        self.calibration = folder / "calibration"
        self.output = folder / "bundle"
        self.spec = open_bundle(bundle).manifest.spec
        self.samples = None
        self.monkeypatch = monkeypatch
        os.link(deployment.model, self.model)
        shutil.copytree(deployment.calibration, self.calibration, copy_function=os.link)
        shutil.copytree(bundle, self.output, copy_function=os.link)

    def build(self, **changes):
        inputs = BuildInputs(self.model, self.output, str(self.calibration), self.samples, **changes)
        return build(inputs, self.spec, Silent())


@pytest.fixture(scope="module")
def uncorrected(deployment, tmp_path_factory):
    """An INT8 engine whose biases are not corrected, which takes as long again as the rest of a build."""
    calibration = msgspec.structs.replace(deployment.int8_spec.calibration, correct_biases=False)
    spec = msgspec.structs.replace(deployment.int8_spec, calibration=calibration)
    inputs = BuildInputs(deployment.model, tmp_path_factory.mktemp("uncorrected") / "net", str(deployment.calibration))
    return build(inputs, spec, Silent()).bundle.path


@pytest.fixture
def case(deployment, uncorrected, tmp_path, monkeypatch):
    return Case(deployment, uncorrected, tmp_path, monkeypatch)


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


# --- what is found again


def test_same_request_builds_nothing(case):
    before = listing(case.output)
    built = case.build()
    assert built.cache_hit
    assert listing(case.output) == before
    assert built.bundle.manifest == open_bundle(case.output).manifest


def test_equal_request_from_another_process_builds_nothing(case):
    """`prebuild` sends specs to its workers, where no string is the same object as a default."""
    case.spec = pickle.loads(pickle.dumps(case.spec))
    assert case.build().cache_hit


def test_what_a_killed_build_left_goes_though_the_engine_is_there(case):
    """Killed when the new folder was in its place, and the old one still under the temporary name."""
    left = case.output.with_name(f".{case.output.name}.abcdefgh.tmp")
    left.mkdir()
    assert case.build().cache_hit
    assert not left.exists()


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
    gpu = driver.GpuProbe((driver.Gpu("Synthetic GPU", "8.9", 1 << 30),), "13.0")
    case.monkeypatch.setattr(environment, "probe_gpu", lambda: gpu)


def another_device(case):
    """As where PyTorch has come to see a GPU: here its CPU device, under another name."""
    observe = torch_observe.observe
    case.monkeypatch.setattr(torch_observe, "observe", lambda model, images, device: observe(model, images, "cpu"))
    case.monkeypatch.setattr(calibrating, "find_device", lambda asked: "cuda")


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
    another_device,
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
def test_damaged_bundle_is_built_anew(case, rewrite, flip_bit, name):
    before = open_bundle(case.output).manifest.chain
    if name == MANIFEST:
        rewrite(case.output / MANIFEST, (case.output / MANIFEST).read_bytes()[:-100])
    else:
        flip_bit(case.output / name)
    built = case.build()
    assert not built.cache_hit
    built.bundle.verify_files()
    # Built twice from the same, the engine is the same to the bit.
    assert built.bundle.manifest.chain == before


def test_damaged_engine_of_corrected_biases_is_built_anew(deployment, tmp_path, monkeypatch, flip_bit):
    case = Case(deployment, deployment.engines["int8"], tmp_path, monkeypatch)
    assert case.spec.calibration.correct_biases
    flip_bit(case.output / "model.onnx")
    built = case.build()
    assert not built.cache_hit
    built.bundle.verify_files()
    assert built.bundle.manifest.chain == open_bundle(deployment.engines["int8"]).manifest.chain


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


def test_model_and_weights_are_replaced_together_or_not_at_all(deployment, tmp_path, monkeypatch):
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
