"""Every precision for every GPU generation of TensorRT-RTX: what its compiler takes, and what it refuses and why.

As in ``test_rtx_builds``, this proves compilation and nothing of what the plans compute. The network has one of each
thing that a ResNet is made of, with channels enough for FP8.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
from synthetic_calibration import calibration_on_noise

try:
    import tensorrt_rtx as trt
except (ImportError, OSError) as reason:  # OSError: installed, but its libraries do not load
    pytest.skip(f"TensorRT-RTX cannot be imported: {reason}", allow_module_level=True)

import onnx_ir as ir
import torch

from resnet_deploy import trt_api
from resnet_deploy.builders import find_builder
from resnet_deploy.capabilities import RTX_COMPUTE_CAPABILITIES, RTX_WITHOUT
from resnet_deploy.environment import Cpu
from resnet_deploy.errors import BuildError
from resnet_deploy.export import export_onnx
from resnet_deploy.models import create_model
from resnet_deploy.onnx_files import bytes_from_onnx
from resnet_deploy.pipeline.building import BuildInputs, build
from resnet_deploy.pipeline.calibrating import RANDOM
from resnet_deploy.pipeline.lowering import Recipe, lower
from resnet_deploy.precision import lower_to_float16
from resnet_deploy.protocols import Silent
from resnet_deploy.quantize.calibrate import Calibration
from resnet_deploy.quantize.qdq import FLOAT8_FORMS, insert_qdq
from resnet_deploy.simulation import BFLOAT16_NOTE
from resnet_deploy.specs import (
    PRECISIONS,
    QUANTIZED,
    BatchRange,
    BuildSpec,
    CalibrationSpec,
    ModelCard,
    Precision,
    Preprocess,
)
from resnet_deploy.trt_options import TrtOptions

BACKEND = "tensorrt-rtx"
BATCH = BatchRange(1, 2, 4)


def spec(precision: Precision) -> BuildSpec:
    calibration = CalibrationSpec() if precision in QUANTIZED else None
    return BuildSpec(backend=BACKEND, precision=precision, batch=BATCH, calibration=calibration)


@dataclass(frozen=True)
class Network:
    model: ir.Model
    calibration: Calibration
    graphs: dict[Precision, bytes]


@pytest.fixture(scope="module")
def network() -> Network:
    torch.set_num_threads(2)
    preprocess = Preprocess(image_size=32, resize=32)
    card = ModelCard(architecture="resnet18", num_classes=10, weights="none", weights_sha256="", preprocess=preprocess)
    model = export_onnx(create_model("resnet18", 10).eval(), card)
    calibration = calibration_on_noise(model, preprocess)
    graphs = {}
    for precision in PRECISIONS:
        ranges = calibration if precision in QUANTIZED else None
        graphs[precision] = bytes_from_onnx(lower(Recipe(model, spec(precision), Cpu("", 1), ranges)).model)
    return Network(model, calibration, graphs)


def compile_for(graph: bytes, precision: Precision, targets: tuple[str, ...], folder: Path) -> bytes:
    """Compile with the package's own builder."""
    asked = msgspec.structs.replace(spec(precision), trt=TrtOptions(targets=targets))
    find_builder(BACKEND)(graph, asked, folder, Silent())
    return (folder / "model.plan").read_bytes()


# Of the 30, the compiler refuses these five: Turing has no FP32 kernel for the classifier, and the others fail by the
# type that the generation lacks.
REFUSED = {
    ("fp32", "7.5"): "Cannot compile operation 'fc' for Turing (SM75): FP32 GEMM is not supported",
    ("bf16", "7.5"): "Cannot compile for target(s) sm75, because the model contains HW-specific datatypes: b16",
    ("fp8", "7.5"): "Cannot compile for target(s) sm75, because the model contains HW-specific datatypes: fp8_e4m3",
    ("fp8", "8.0"): "Cannot compile for target(s) sm80, because the model contains HW-specific datatypes: fp8_e4m3",
    ("fp8", "8.6"): "Cannot compile for target(s) sm86, because the model contains HW-specific datatypes: fp8_e4m3",
}
# What constants are nearly all of, as a share of FP32's; convolutions but the stem, which is 0.1 % of a ResNet-18, are
# 8-bit in INT8 and FP8. The rest is the sources of kernels: 2 MB, and 5 where Turing dequantizes INT8 first.
SHARES = {"fp32": 1.0, "fp16": 0.5, "bf16": 0.5, "int8": 0.25, "fp8": 0.25}


@pytest.mark.parametrize("target", RTX_COMPUTE_CAPABILITIES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_for_every_target(network, tmp_path, precision, target):
    graph = network.graphs[precision]
    if (precision, target) in REFUSED:
        with pytest.raises(BuildError) as caught:
            compile_for(graph, precision, (target,), tmp_path)
        assert REFUSED[precision, target] in caught.value.message
        assert "\n" not in caught.value.message
        return
    plan = compile_for(graph, precision, (target,), tmp_path)
    whole = 4 * sum(parameter.numel() for parameter in create_model("resnet18", 10).parameters())
    assert SHARES[precision] * whole < len(plan) < SHARES[precision] * whole + 6e6
    # Types of tensors, in the plan's own words: 19 constants and the 16 activations that these layers read.
    assert plan.count(b"type=fp8_e4m3") == (35 if precision == "fp8" else 0)


def test_the_table_that_the_package_goes_by_is_what_was_refused():
    assert {(precision, target) for precision, targets in RTX_WITHOUT.items() for target in targets} == set(REFUSED)


@pytest.mark.parametrize("target", ["8.7", "9.0", "10.0", "10.3"])
def test_other_generations_have_no_target(target):
    """The library has no name for them; that what it lacks is what the package thinks is the other half."""
    named = {name for name in dir(trt.ComputeCapability) if name.startswith("SM")}
    assert f"SM{target.replace('.', '')}" not in named
    assert {f"SM{one.replace('.', '')}" for one in RTX_COMPUTE_CAPABILITIES} <= named


def test_one_target_without_the_hardware_refuses_all(network, tmp_path):
    with pytest.raises(BuildError, match="sm86"):
        compile_for(network.graphs["fp8"], "fp8", trt_api.RTX_DEFAULT_TARGETS, tmp_path)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_default_targets_are_compiled_for_recorded_and_noted(network, tmp_path, precision):
    built = find_builder(BACKEND)(network.graphs[precision], spec(precision), tmp_path, Silent())
    expected = ("8.9", "12.0") if precision == "fp8" else ("8.6", "8.9", "12.0")
    assert built.requires.compute_capabilities == expected
    said = "compiled for compute capabilities 8.9 and 12.0, and not for 8.6, which has no FP8"
    assert (said in built.notes) == (precision == "fp8")
    assert any("fast precision" in note for note in built.notes) == (precision in QUANTIZED)


def test_every_form_of_fp8_compiles(network, tmp_path):
    """A quantized shortcut and scales per channel are what TensorRT is given; its RTX edition takes them too."""
    for shortcut in (True, False):
        for per_channel in (True, False):
            form = replace(FLOAT8_FORMS[BACKEND], shortcut=shortcut, per_channel=per_channel)
            quantized, _ = insert_qdq(network.model, network.calibration, form)
            plan = compile_for(bytes_from_onnx(lower_to_float16(quantized)[0]), "fp8", ("8.9",), tmp_path)
            # Per channel, convolutions write FP32, which is scaled in a kernel of its own.
            assert (plan.count(b"type=float") > 60) == per_channel, (shortcut, per_channel)  # measured 84 and 46


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_bundle_says_what_was_compiled_and_what_was_simulated(network, tmp_path, precision):
    model = tmp_path / "model.onnx"
    model.write_bytes(bytes_from_onnx(network.model))
    calib = RANDOM if precision in QUANTIZED else None
    bundle = build(BuildInputs(model, tmp_path / "engine", calib=calib), spec(precision), Silent()).bundle
    manifest = bundle.manifest
    assert (manifest.engine, manifest.spec.precision) == ("model.plan", precision)
    assert manifest.requires.compute_capabilities == trt_api.default_targets(precision)
    assert (manifest.measured.by, manifest.measured.latency_s) == ("simulation", None)
    # Untrained and on noise, FP8 keeps some 15 dB, BF16 some 40: neither is the other, nor FP32.
    assert {"bf16": 30 < manifest.measured.sqnr_db < 50, "fp8": 8 < manifest.measured.sqnr_db < 30}[precision]
    assert (BFLOAT16_NOTE in manifest.notes) == (precision == "bf16")
    assert any("not for 8.6" in note for note in manifest.notes) == (precision == "fp8")
    assert ("calibration.json" in manifest.files) == (precision == "fp8")
    assert "lowered.onnx" in manifest.files
