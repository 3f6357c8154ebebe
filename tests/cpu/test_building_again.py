"""What a build finds again, and what makes it build anew."""

import pickle
import shutil

import msgspec
import pytest
from build_case import Case, another_batch, listing

from resnet_deploy import driver, environment
from resnet_deploy.bundle import MANIFEST, open_bundle
from resnet_deploy.pipeline import calibrating
from resnet_deploy.quantize import torch_observe
from resnet_deploy.specs import BuildSpec

FP32 = BuildSpec(backend="onnxruntime", precision="fp32")


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
    inputs = (deployment.model, deployment.calibration)
    case = Case(inputs, deployment.engines["int8"], tmp_path, monkeypatch)
    assert case.spec.calibration.correct_biases
    flip_bit(case.output / "model.onnx")
    built = case.build()
    assert not built.cache_hit
    built.bundle.verify_files()
    assert built.bundle.manifest.chain == open_bundle(deployment.engines["int8"]).manifest.chain
