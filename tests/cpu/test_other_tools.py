"""Our ONNX files are ordinary ones: OpenVINO, which shares no code with ONNX Runtime, opens and runs every form."""

from dataclasses import dataclass

import numpy as np
import pytest

openvino = pytest.importorskip("openvino")

from resnet_deploy import models  # noqa: E402
from resnet_deploy.export import export_onnx  # noqa: E402
from resnet_deploy.onnx_files import bytes_from_onnx  # noqa: E402
from resnet_deploy.ort_session import open_session  # noqa: E402
from resnet_deploy.pipeline.synthetic import synthetic_images  # noqa: E402
from resnet_deploy.precision import lower_to_float16  # noqa: E402
from resnet_deploy.quantize.calibrate import CalibrationSource, calibration_from, observe  # noqa: E402
from resnet_deploy.quantize.qdq import FORMS, insert_qdq  # noqa: E402
from resnet_deploy.specs import CalibrationSpec, ModelCard, Preprocess  # noqa: E402
from resnet_deploy.verify import compare_logits  # noqa: E402

PREPROCESS = Preprocess(image_size=64, resize=64)


@dataclass(frozen=True)
class Forms:
    """Serialized graphs by name, and the FP32 logits that they approximate."""

    graphs: dict[str, bytes]
    images: np.ndarray
    expected: np.ndarray


@pytest.fixture(scope="module")
def forms() -> Forms:
    loaded = models.load_model("resnet18", None, num_classes=10)
    card = ModelCard(architecture="resnet18", num_classes=10, weights="none", weights_sha256="", preprocess=PREPROCESS)
    model = export_onnx(loaded.module, card)
    histograms, count = observe(model, [synthetic_images(PREPROCESS, 16)])
    source = CalibrationSource(
        dataset="generated",
        dataset_sha256="",
        images=count,
        preprocess_sha256=PREPROCESS.digest,
        weights_sha256="",
        onnx_sha256="",
    )
    calibration = calibration_from(histograms, CalibrationSpec(), source)
    graphs = {"fp32": model, "fp16": lower_to_float16(model)[0]}
    for target, form in FORMS.items():
        quantized = insert_qdq(model, calibration, form)[0]
        is_half = form.scale_dtype == "float16"
        graphs[f"int8 for {target}"] = lower_to_float16(quantized)[0] if is_half else quantized
    images = synthetic_images(PREPROCESS, 8, seed=1)
    data = {name: bytes_from_onnx(graph) for name, graph in graphs.items()}
    (expected,) = open_session(data["fp32"]).run(["logits"], {"images": images})
    return Forms(data, images, expected)


# Decibels against FP32. FP32 itself only sums in another order, FP16 has 11 bits of mantissa; for INT8 31 to 35 were
# measured, and the margin is for other CPUs. A wrong input (below) gives 13.
FLOORS = {
    "fp32": 90.0,
    "fp16": 50.0,
    "int8 for onnxruntime": 22.0,
    "int8 for tensorrt": 22.0,
    "int8 for tensorrt-rtx": 22.0,
}


@pytest.mark.parametrize("name", sorted(FLOORS))
def test_openvino_agrees(forms: Forms, name: str) -> None:
    assert compare_logits(forms.expected, run_openvino(forms.graphs[name], forms.images)).sqnr_db > FLOORS[name]


@pytest.mark.parametrize("name", sorted(FLOORS))
def test_openvino_notices_a_wrong_input(forms: Forms, name: str) -> None:
    swapped = np.ascontiguousarray(forms.images[..., ::-1])  # BGR
    assert compare_logits(forms.expected, run_openvino(forms.graphs[name], swapped)).sqnr_db < FLOORS[name]


def run_openvino(graph: bytes, images: np.ndarray) -> np.ndarray:
    core = openvino.Core()
    # By default OpenVINO computes in bfloat16 where the CPU has it.
    compiled = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([images])["logits"])
