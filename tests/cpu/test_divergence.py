"""Which layer of a lowered graph departs from FP32: none of a sound one, and the very one that was damaged."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest

from resnet_deploy.errors import ModelError
from resnet_deploy.onnx_files import bytes_from_onnx, onnx_from_bytes
from resnet_deploy.ort_session import open_session
from resnet_deploy.parity import first_divergence
from resnet_deploy.pipeline.lowering import Recipe, lower
from resnet_deploy.pipeline.source import read_source
from resnet_deploy.quantize.bias import correct_biases, read_corrections
from resnet_deploy.quantize.divergence import compare_steps
from resnet_deploy.verify import compare_logits


@pytest.fixture(scope="module")
def exported(deployment) -> ir.Model:
    return read_source(deployment.model).model


@pytest.fixture(scope="module")
def images(deployment) -> np.ndarray:
    return np.load(deployment.engines["int8"] / "golden.npz")["images"][:3]


def engine(deployment, precision: str) -> ir.Model:
    return onnx_from_bytes((deployment.engines[precision] / "model.onnx").read_bytes(), name=precision)


def rtx_form(deployment, precision: str) -> ir.Model:
    """The graph that TensorRT-RTX would be given, which takes no compiler to make."""
    import msgspec

    from resnet_deploy.environment import Cpu
    from resnet_deploy.quantize.calibrate import Calibration

    data = (deployment.engines["int8"] / "calibration.json").read_bytes()
    calibration = msgspec.json.decode(data, type=Calibration) if precision == "int8" else None
    spec = msgspec.structs.replace(
        deployment.int8_spec,
        backend="tensorrt-rtx",
        precision=precision,
        calibration=deployment.int8_spec.calibration if precision == "int8" else None,
    )
    return lower(Recipe(read_source(deployment.model).model, spec, Cpu("", 1), calibration)).model


def given(deployment, exported: ir.Model, make, precision: str) -> ir.Model:
    """The FP32 graph with the biases that were lowered: the INT8 engine's were corrected."""
    if make is not engine or precision != "int8":
        return exported
    return correct_biases(exported, read_corrections(deployment.engines["int8"] / "corrections.safetensors"))


def change(model: ir.Model, name: str, damage) -> ir.Model:
    """A copy whose constant ``name`` went through ``damage``."""
    copy = model.clone()
    constant = copy.graph.initializers[name]
    array = damage(constant.const_value.numpy().copy())
    constant.const_value = ir.tensor(array, name=name)
    return copy


# --- sound graphs


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("make", [engine, rtx_form], ids=["onnxruntime", "tensorrt-rtx"])
def test_no_step_of_a_sound_graph_diverges(deployment, exported, images, make, precision):
    steps = compare_steps(
        exported, make(deployment, precision), [images], corrected=given(deployment, exported, make, precision)
    )
    assert first_divergence(steps) is None
    kinds = [step.kind for step in steps]
    assert kinds.count("weights") == 21
    assert (kinds.count("grid") > 0) == (precision == "int8")
    worst = min(step.alone_db for step in steps)
    # Equal bytes compute the same; FP16 has 11 bits, some 66 dB; INT8 8 or 7, some 40.
    assert {"fp32": worst == np.inf, "fp16": 60 < worst < 75, "int8": 28 < worst < 50}[precision]


def test_what_piles_up_is_what_the_logits_show(deployment, exported, images):
    lowered = engine(deployment, "int8")
    corrected = given(deployment, exported, engine, "int8")
    last = compare_steps(exported, lowered, [images[:1], images[1:]], corrected=corrected)[-1]
    assert last.layer == "logits"
    expected, found = (
        np.concatenate(
            [
                open_session(bytes_from_onnx(model), as_written=True).run(None, {"images": one})[0]
                for one in (images[:1], images[1:2], images[2:])
            ]
        )
        for model in (exported, lowered)
    )
    # The same kernels on the same images: only the order of a sum differs.
    assert last.so_far_db == pytest.approx(compare_logits(expected, found).sqnr_db, abs=1e-6)
    assert last.so_far_db < last.alone_db - 3


def test_models_are_left_as_they_were(deployment, exported, images):
    lowered = engine(deployment, "int8")
    before = [bytes_from_onnx(model) for model in (exported, lowered)]
    compare_steps(exported, lowered, [images[:1]])
    assert [bytes_from_onnx(model) for model in (exported, lowered)] == before


# --- damaged ones


@dataclass(frozen=True)
class Damage:
    precision: str
    constant: str
    layer: str
    kind: str
    overflows: bool = False  # so large a result that the grid behind it clips, too

    @property
    def id(self) -> str:
        return f"{self.precision} {self.constant}"


def negated(array: np.ndarray) -> np.ndarray:
    """Every second channel."""
    array[::2] = -array[::2]
    return array


def first_raised(array: np.ndarray) -> np.ndarray:
    """One single weight, by eight times the largest."""
    array.flat[0] = 8 * np.abs(array).max()
    return array


def eightfold(array: np.ndarray) -> np.ndarray:
    return array * array.dtype.type(8)


DAMAGES = [
    (Damage("int8", "conv1.weight.quantized", "conv1", "weights"), negated),
    (Damage("int8", "layer2.0.conv1.weight.quantized", "layer2.0.conv1", "weights"), negated),
    (Damage("int8", "layer4.1.conv2.weight.scale", "layer4.1.conv2", "weights", overflows=True), eightfold),
    (Damage("int8", "fc.weight.quantized", "logits", "weights"), negated),
    (Damage("int8", "images.normalized.scale", "images.normalized", "grid"), eightfold),
    (Damage("int8", "layer3.0.conv1.relu.scale", "layer3.0.conv1.relu", "grid"), eightfold),
    (
        Damage("int8", "layer3.0.conv1.relu.scale", "layer3.0.conv1.relu", "grid"),
        lambda array: array / array.dtype.type(8),
    ),
    (Damage("fp16", "layer1.1.conv2.weight", "layer1.1.conv2", "weights"), first_raised),
    (Damage("fp16", "layer4.0.downsample.0.weight", "layer4.0.downsample.0", "weights"), first_raised),
]


@pytest.mark.parametrize("make", [engine, rtx_form], ids=["onnxruntime", "tensorrt-rtx"])
@pytest.mark.parametrize(("damage", "how"), DAMAGES, ids=lambda one: getattr(one, "id", None))
def test_the_damaged_layer_is_named(deployment, exported, images, make, damage, how):
    lowered = make(deployment, damage.precision)
    if damage.constant not in lowered.graph.initializers:
        pytest.skip("this form leaves that layer in floating point")
    damaged, corrected = change(lowered, damage.constant, how), given(deployment, exported, make, damage.precision)
    steps = compare_steps(exported, damaged, [images[:1]], corrected=corrected)
    found = first_divergence(steps)
    assert found is not None
    assert (found.layer, found.kind) == (damage.layer, damage.kind)
    # And it alone: what comes after computes soundly on what it is given.
    if not damage.overflows:
        assert [step.layer for step in steps if step.diverges] == [damage.layer]


def test_a_grid_says_what_it_clips(deployment, exported, images):
    name = "layer3.0.conv1.relu"
    for factor, clips in ((1, False), (1 / 8, True)):
        lowered = change(engine(deployment, "int8"), f"{name}.scale", lambda array, by=factor: array * np.float32(by))
        steps = compare_steps(exported, lowered, [images[:2]], corrected=given(deployment, exported, engine, "int8"))
        (step,) = (step for step in steps if (step.layer, step.kind) == (name, "grid"))
        # An eighth of the range leaves out most of what a ReLU lets through; the whole range, next to nothing.
        assert (step.clipped > 0.1) == clips


def test_another_model_is_refused(deployment, exported, images):
    other = exported.clone()
    other.graph.node("layer1.0.conv1").name = "layer1.0.conv9"
    with pytest.raises(ModelError, match=r"has no node layer1\.0\.conv1"):
        compare_steps(exported, other, [images])
