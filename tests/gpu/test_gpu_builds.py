"""TensorRT's builder and ONNX Runtime's providers on a real GPU: what cannot be told from names and stand-ins."""

import numpy as np
import pytest

from resnet_deploy import artifact
from resnet_deploy.backends import find_backend
from resnet_deploy.batching import infer
from resnet_deploy.bundle import LAYERS, LOWERED, TIMINGS, open_bundle
from resnet_deploy.capabilities import backend_status
from resnet_deploy.pipeline.building import RANDOM, BuildInputs, build
from resnet_deploy.protocols import Silent
from resnet_deploy.runners import find_runner
from resnet_deploy.specs import BatchRange, BuildSpec, CalibrationSpec, ExportSpec
from resnet_deploy.trt_options import TrtOptions
from resnet_deploy.verify import compare_logits

BATCH = BatchRange(1, 4, 8)
# Decibels between logits of two engines of one FP16 graph: kernels add up in different orders, and FP16 has 66.
SAME_DB = 45.0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("torch", reason="it exports the network")
    from resnet_deploy.pipeline.exporting import export

    spec = ExportSpec(architecture="resnet18", weights="none", num_classes=10, image_size=64, resize=64)
    return export(spec, tmp_path_factory.mktemp("model") / "resnet18.onnx", Silent())


def require(backend):
    status = backend_status(find_backend(backend))
    for verb, able in (("build", status.build), ("run", status.run)):
        if not able.ok:
            pytest.skip(f"{backend} cannot {verb} here: {able.reason}")


def built(model, folder, backend="tensorrt", precision="fp16", **options):
    require(backend)
    calibration = CalibrationSpec() if precision == "int8" else None
    spec = BuildSpec(
        backend=backend, precision=precision, batch=BATCH, calibration=calibration, trt=TrtOptions(**options)
    )
    inputs = BuildInputs(model.path, folder / "engine", calib=RANDOM if calibration else None)
    bundle = build(inputs, spec, Silent()).bundle
    assert bundle.manifest.measured.by == "engine"
    return bundle


def logits(bundle):
    """What an engine answers to the golden images."""
    with np.load(bundle.golden_path) as golden:
        images, kept = golden["images"], golden["logits"]
    runner = find_runner(bundle.manifest.spec.backend)(bundle, 0)
    found = infer(runner, images)
    runner.close()
    assert compare_logits(kept, found).sqnr_db > SAME_DB  # recorded by the engine itself, when it was built
    return found


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-rtx"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_providers_agree_with_the_exported_model(model, tmp_path, backend, precision):
    bundle = built(model, tmp_path, backend, precision)
    assert bundle.manifest.measured.agreement == 1
    assert bundle.manifest.measured.sqnr_db > SAME_DB
    logits(bundle)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_tensorrt_agrees_with_the_exported_model(model, tmp_path, precision):
    least = {"fp32": 60, "fp16": SAME_DB, "bf16": 30, "int8": 15}[precision]  # INT8 on noise, of untrained weights
    assert built(model, tmp_path, precision=precision).manifest.measured.sqnr_db > least


def test_int8_fuses_as_the_documentation_says(model, tmp_path):
    from resnet_deploy.compiled.inspector import read_inspector
    from resnet_deploy.compiled.lint import Expected, lint

    bundle = built(model, tmp_path, precision="int8")
    assert LAYERS in bundle.manifest.files
    graph = read_inspector(artifact.read_bytes(bundle.path / LAYERS))
    assert lint(graph, Expected("tensorrt", "int8", frozenset({"fc"}))) == ()


def test_timings_are_kept_and_started_from(model, tmp_path):
    file = tmp_path / "timings"
    first = built(model, tmp_path / "one", timing_cache=str(file))
    assert file.read_bytes() == (first.path / TIMINGS).read_bytes()
    built(model, tmp_path / "two", timing_cache=str(file))
    assert file.stat().st_size > 0


def test_a_stripped_plan_gets_its_weights_back(model, tmp_path):
    whole, stripped = built(model, tmp_path / "one"), built(model, tmp_path / "two", strip_weights=True)
    assert stripped.engine_path.stat().st_size < whole.engine_path.stat().st_size / 2
    assert LOWERED in stripped.manifest.files
    assert compare_logits(logits(whole), logits(stripped)).sqnr_db > SAME_DB


@pytest.mark.parametrize("level", ["ampere+", "same-cc"])
def test_engines_for_other_gpus_run_here_too(model, tmp_path, level):
    bundle = built(model, tmp_path, hardware_compatibility=level)
    assert bool(bundle.manifest.requires.least_compute_capability) == (level == "ampere+")
    logits(bundle)


def test_version_compatible_engines_run(model, tmp_path):
    bundle = built(model, tmp_path, version_compatible=True)
    assert bundle.manifest.requires.later_versions
    logits(open_bundle(bundle.path))
