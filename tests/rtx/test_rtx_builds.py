"""TensorRT-RTX's own compiler, ahead of time: our graphs become plans, on any machine.

These tests prove compilation, not execution: without an RTX GPU no plan can be loaded, let alone be right or fast. What
the graphs compute is tested on ONNX Runtime (tests/cpu).
"""

import sys
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from synthetic_calibration import calibration_on_noise

try:
    import tensorrt_rtx as trt
except (ImportError, OSError) as reason:  # OSError: installed, but its libraries do not load
    pytest.skip(f"TensorRT-RTX cannot be imported: {reason}", allow_module_level=True)

from resnet_deploy import trt_api
from resnet_deploy.builders import BuiltEngine, find_builder
from resnet_deploy.errors import BackendError, BuildError, SpecError
from resnet_deploy.export import export_onnx
from resnet_deploy.models import create_model
from resnet_deploy.onnx_files import bytes_from_onnx
from resnet_deploy.precision import lower_to_float16
from resnet_deploy.protocols import Silent
from resnet_deploy.quantize.qdq import FORMS, insert_qdq
from resnet_deploy.specs import BatchRange, BuildSpec, CalibrationSpec, ModelCard, Precision, Preprocess

BACKEND = "tensorrt-rtx"
BATCH = BatchRange(1, 4, 8)


def spec(precision: Precision = "fp32", batch: BatchRange = BATCH) -> BuildSpec:
    calibration = CalibrationSpec() if precision == "int8" else None
    return BuildSpec(backend=BACKEND, precision=precision, batch=batch, calibration=calibration)


@pytest.fixture(scope="module")
def build():
    compile_silently = find_builder(BACKEND)
    return lambda lowered, spec, folder: compile_silently(lowered, spec, folder, Silent())


# --- the networks


@dataclass(frozen=True)
class Plans:
    """What was built of one network, by precision."""

    architecture: str
    parameters: int
    built: dict[Precision, BuiltEngine]
    plans: dict[Precision, bytes]


def graphs(architecture: str, side: int) -> dict[Precision, bytes]:
    preprocess = Preprocess(image_size=side, resize=side)
    card = ModelCard(
        architecture=architecture, num_classes=10, weights="none", weights_sha256="", preprocess=preprocess
    )
    model = export_onnx(create_model(architecture, 10).eval(), card)
    calibration = calibration_on_noise(model, preprocess)
    quantized, _ = insert_qdq(model, calibration, FORMS[BACKEND])
    lowered = {"fp32": model, "fp16": lower_to_float16(model)[0], "int8": lower_to_float16(quantized)[0]}
    return {precision: bytes_from_onnx(graph) for precision, graph in lowered.items()}


@pytest.fixture(scope="module", params=[("resnet18", 64), ("resnet50", 224)], ids=["resnet18 at 64", "resnet50 at 224"])
def plans(request, build, tmp_path_factory: pytest.TempPathFactory) -> Plans:
    torch.set_num_threads(2)
    architecture, side = request.param
    built, data = {}, {}
    for precision, graph in graphs(architecture, side).items():
        folder = tmp_path_factory.mktemp(precision)
        built[precision] = build(graph, spec(precision), folder)
        assert [path.name for path in folder.iterdir()] == [built[precision].file] == ["model.plan"]
        data[precision] = (folder / "model.plan").read_bytes()
    parameters = sum(parameter.numel() for parameter in create_model(architecture, 10).parameters())
    return Plans(architecture, parameters, built, data)


def test_plans_hold_the_weights_in_their_precision(plans):
    sizes = {precision: len(plan) for precision, plan in plans.plans.items()}
    assert tuple(sizes) == ("fp32", "fp16", "int8")
    # Constants are nearly all of a plan; kernels are compiled where it runs. Measured 1.007 and 1.004.
    assert sizes["fp32"] == pytest.approx(4 * plans.parameters, rel=0.02)
    assert sizes["fp16"] == pytest.approx(sizes["fp32"] / 2, rel=0.02)
    # Convolutions are INT8 and the first one's and the classifier's share is small: 0.30 and 0.33.
    assert 0.25 * sizes["fp32"] < sizes["int8"] < 0.4 * sizes["fp32"]


class Silence(trt.ILogger):
    def __init__(self) -> None:
        super().__init__()

    def log(self, severity: object, message: str) -> None:
        pass


def diagnose(plan: bytes) -> int:
    """What the runtime finds wrong with a plan's header; a missing GPU is no entry."""
    logger = Silence()
    runtime = trt.Runtime(logger)
    _, diagnostics = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    return int(diagnostics)


def test_headers_are_well_formed_and_of_this_version(plans):
    wrong = trt.EngineInvalidityDiagnostics
    for plan in plans.plans.values():
        assert not diagnose(plan) & (int(wrong.MALFORMED_ENGINE) | int(wrong.VERSION_MISMATCH))
        damaged = bytes([plan[0] ^ 1]) + plan[1:]
        assert diagnose(damaged) & int(wrong.MALFORMED_ENGINE)


def test_what_is_recorded_of_a_build(plans):
    for precision, built in plans.built.items():
        assert built.toolchain == {BACKEND: trt.__version__}
        assert (built.requires.library, built.requires.version) == (BACKEND, trt.__version__)
        assert built.requires.compute_capabilities == trt_api.RTX_DEFAULT_TARGETS
        assert any("FP16" in note for note in built.notes) == (precision == "int8")


def test_the_compilers_log_is_kept(plans):
    for built in plans.built.values():
        assert any("Engine generation completed" in line for line in built.log)
        assert {line.partition(" ")[0] for line in built.log} <= {"INFO", "WARNING"}


# --- graphs that it refuses

WEIGHTS = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "weights")


def graph_of(
    *nodes: onnx.NodeProto, dtype: int = TensorProto.FLOAT, shape: tuple = ("batch", 3, 8, 8), images: str = "images"
) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info(images, dtype, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [WEIGHTS],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("elsewhere", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def node(kind: str, inputs: list[str], output: str, name: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name, **attributes)


CONV = node("Conv", ["images", "weights"], "logits", "conv1")
FIRST = node("Conv", ["images", "weights"], "conv1", "conv1")  # for another node to follow
TO_NCHW = {"perm": [0, 3, 1, 2]}
CAST_FIRST = graph_of(
    node("Cast", ["images"], "cast", "images.cast", to=TensorProto.FLOAT),
    node("Transpose", ["cast"], "nchw", "images.transposed", **TO_NCHW),
    node("Conv", ["nchw", "weights"], "logits", "conv1"),
    dtype=TensorProto.UINT8,
    shape=("batch", 8, 8, 3),
)


@dataclass(frozen=True)
class Refused:
    graph: bytes
    what: str  # part of the message, in our words
    why: str = ""  # another, in the library's


REFUSED = {
    "uint8 into Transpose": Refused(
        graph_of(
            node("Transpose", ["images"], "nchw", "images.transposed", **TO_NCHW),
            node("Cast", ["nchw"], "cast", "images.cast", to=TensorProto.FLOAT),
            node("Conv", ["cast", "weights"], "logits", "conv1"),
            dtype=TensorProto.UINT8,
            shape=("batch", 8, 8, 3),
        ),
        "cannot parse node images.transposed (Transpose)",
        "has type UInt8 but must have",
    ),
    "an operator it lacks": Refused(
        graph_of(FIRST, node("Bernoulli", ["conv1"], "logits", "dice")),
        "cannot parse node dice (Bernoulli)",
    ),
    "an operator nobody knows": Refused(
        graph_of(
            FIRST,
            node("Frobnicate", ["conv1"], "logits", "odd", domain="elsewhere"),
        ),
        "cannot parse node odd (Frobnicate)",
        "Plugin not found",
    ),
    "FP32 plus FP16, for networks are strongly typed": Refused(
        graph_of(
            FIRST,
            node("Cast", ["conv1"], "half", "half", to=TensorProto.FLOAT16),
            node("Add", ["conv1", "half"], "logits", "mixed"),
        ),
        "cannot parse node mixed (Add)",
        "types Float and Half",
    ),
    "channels that do not fit": Refused(
        graph_of(CONV, shape=("batch", 5, 8, 8)), "cannot parse node conv1 (Conv)", "Kernel weight dimension"
    ),
    "a fixed batch outside the range": Refused(
        graph_of(CONV, shape=(2, 3, 8, 8)),
        "failed to build",
        "dimensions are [2,3,8,8] but profile dimensions are [1,3,8,8]",
    ),
    "another input": Refused(
        graph_of(node("Conv", ["pictures", "weights"], "logits", "conv1"), images="pictures"),
        "the graph has no input images",
    ),
    "no ONNX": Refused(b"junk", "cannot parse the model", "Failed to parse the ONNX model"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_graph_it_refuses_is_a_build_error_that_says_where(build, tmp_path, case):
    with pytest.raises(BuildError) as caught:
        build(case.graph, spec(), tmp_path)
    assert case.what in caught.value.message
    assert case.why in caught.value.message
    assert "\n" not in caught.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("graph", "batch"),
    [
        pytest.param(CAST_FIRST, BATCH, id="uint8 into Cast"),
        pytest.param(graph_of(CONV), BATCH, id="the convolution alone"),
        pytest.param(graph_of(CONV, shape=(2, 3, 8, 8)), BatchRange(2, 2, 2), id="a fixed batch in its range"),
    ],
)
def test_the_graphs_beside_those_are_built(build, tmp_path, graph, batch):
    built = build(graph, spec(batch=batch), tmp_path)
    assert (tmp_path / built.file).stat().st_size > 1000


# --- requests that never reach it


@pytest.mark.parametrize("text", ["0:1:1", "2:1:4", "1:8:4", "1:2", "a:b:c", "-1", ""])
def test_a_senseless_batch_range_is_refused_before_anything_is_built(text):
    with pytest.raises(SpecError, match="batch range"):
        BatchRange.parse(text)


def test_without_the_library_it_says_what_to_install(build, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendError, match="tensorrt-rtx cannot be imported") as caught:
        build(graph_of(CONV), spec(), tmp_path)
    assert "resnet-deploy[rtx]" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_targets_are_named_one_by_one():
    api = trt_api.load(BACKEND)
    assert (api.backend, api.version, api.ahead_of_time) == (BACKEND, trt.__version__, True)
    for target in trt_api.RTX_DEFAULT_TARGETS:
        assert hasattr(trt.ComputeCapability, f"SM{target.replace('.', '')}")
