"""Equalization: the network computes the same, its channels have one range, and what cannot be scaled is named."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hostile import make_hostile
from torch import nn

from resnet_deploy.errors import ModelError
from resnet_deploy.export import export_onnx
from resnet_deploy.models import create_model
from resnet_deploy.onnx_files import bytes_from_onnx, read_card, read_exported
from resnet_deploy.ort_session import open_session
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.quantize.equalize import EqualizationReport, equalize
from resnet_deploy.specs import ModelCard, Preprocess
from resnet_deploy.verify import compare_logits

UINT8 = Preprocess(image_size=32, resize=32)
FLOAT32 = Preprocess(image_size=32, resize=32, dtype="float32", layout="NCHW")
# Every weight is rounded once more, by up to 6e-8 of itself, and so is every sum: measured 120 dB and more. One factor
# of ten that is not taken up again leaves 40 at most (below).
FLOOR_DB = 100
# The groups settle to 0.01 octaves each, and what one does last moves the shares of its neighbours by as much.
SETTLED_OCTAVES = 0.05


@pytest.fixture(autouse=True, scope="module")
def two_threads():
    torch.set_num_threads(2)


def exported(architecture: str, preprocess: Preprocess = UINT8) -> ir.Model:
    """A hostile network with biases, which an untrained one would not have."""
    network = create_model(architecture, 10).eval()
    generator = torch.Generator().manual_seed(3)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.bias, -0.2, 0.2, generator=generator)
    card = ModelCard(
        architecture=architecture, num_classes=10, weights="none", weights_sha256="abc", preprocess=preprocess
    )
    return export_onnx(make_hostile(network, stream=True), card)


@dataclass(frozen=True)
class Subject:
    architecture: str
    preprocess: Preprocess
    model: ir.Model
    data: bytes
    equalized: ir.Model
    report: EqualizationReport


SUBJECTS = [(name, contract) for name in ("resnet18", "resnet50", "plain18") for contract in (UINT8, FLOAT32)]


@pytest.fixture(scope="module", params=SUBJECTS, ids=lambda one: f"{one[0]}-{one[1].dtype}")
def subject(request) -> Subject:
    model = exported(*request.param)
    return Subject(*request.param, model, bytes_from_onnx(model), *equalize(model))


@pytest.fixture(scope="module")
def resnet18() -> ir.Model:
    return exported("resnet18")


def logits(model: ir.Model, images: np.ndarray) -> np.ndarray:
    (found,) = open_session(bytes_from_onnx(model), threads=2, as_written=True).run(["logits"], {"images": images})
    return found


def with_constant(model: ir.Model, name: str, change: Callable[[np.ndarray], np.ndarray]) -> ir.Model:
    """A copy in which one constant is changed."""
    changed = model.clone()
    value = changed.graph.initializers[name]
    value.const_value = ir.tensor(change(constant(model, name)), name=name)
    return changed


def constant(model: ir.Model, name: str) -> np.ndarray:
    return model.graph.initializers[name].const_value.numpy().copy()


# --- the same function


def test_the_function_is_kept(subject):
    images = synthetic_images(subject.preprocess, 4, seed=1)
    expected = logits(subject.model, images)
    assert compare_logits(expected, logits(subject.equalized, images)).sqnr_db > FLOOR_DB

    def scale_a_row(weights: np.ndarray) -> np.ndarray:
        weights[0] *= 10
        return weights

    broken = with_constant(subject.equalized, "layer4.1.conv1.weight", scale_a_row)
    assert compare_logits(expected, logits(broken, images)).sqnr_db < FLOOR_DB - 40


def test_the_input_is_left_alone_and_the_card_with_it(subject):
    assert bytes_from_onnx(subject.model) == subject.data
    data = bytes_from_onnx(subject.equalized)
    onnx.checker.check_model(data, full_check=True)
    assert bytes_from_onnx(equalize(subject.model)[0]) == data
    assert read_card(subject.equalized, name="equalized") == read_card(subject.model, name="exported")
    changed = {name for name in subject.model.graph.initializers if not is_kept(subject, name)}
    assert changed == set(subject.model.graph.initializers) - {"mean", "reciprocal_std", "fc.bias"}
    with pytest.raises(ModelError, match=r"weights .* are not those that its model card names"):
        read_exported(data, name="equalized.onnx")  # it is a lowered graph, not an export


def is_kept(subject: Subject, name: str) -> bool:
    return np.array_equal(constant(subject.model, name), constant(subject.equalized, name))


# --- which tensors share their factors

COUNTS = {
    "resnet18": 8 + 4,  # inside each block, and one stream from the stem through stage 1, one in each later stage
    "resnet50": 16 * 2 + 1 + 4,  # stage 1 has a projection, so the stem is on its own
    "plain18": 17,  # one behind each convolution
}


def test_groups_are_those_of_the_architecture(subject):
    groups = subject.report.groups
    assert len(groups) == COUNTS[subject.architecture]
    layers = [node.name for node in subject.model.graph if node.op_type in ("Conv", "Gemm")]
    assert sorted(name for group in groups for name in group.producers) == sorted(set(layers) - {"fc"})
    assert sorted(name for group in groups for name in group.consumers) == sorted(set(layers) - {"conv1"})
    door = "images" if subject.preprocess.dtype == "float32" else "images.normalized"
    assert list(subject.report.skipped) == [door, "logits"]
    assert "output" in subject.report.skipped["logits"]


def test_a_stage_is_one_group():
    _, report = equalize(exported("resnet50"))
    (stream,) = [group for group in report.groups if "layer1.0.conv3" in group.producers]
    assert set(stream.producers) == {"layer1.0.downsample.0", *(f"layer1.{block}.conv3" for block in range(3))}
    assert set(stream.consumers) == {"layer1.1.conv1", "layer1.2.conv1", "layer2.0.conv1", "layer2.0.downsample.0"}
    assert (stream.channels, report.groups[-1].consumers) == (256, ("fc",))


def test_factors_reported_are_those_applied(resnet18):
    equalized, report = equalize(resnet18)
    for group in report.groups:
        before, after = (
            np.abs(constant(model, f"{group.producers[0]}.weight")).reshape(group.channels, -1).max(1)
            for model in (resnet18, equalized)
        )
        # float32 rounds each weight by 6e-8 of itself.
        np.testing.assert_allclose(
            [(before / after).min(), (before / after).max()], [group.smallest, group.largest], 1e-6
        )
        assert group.largest / group.smallest > 100  # the channels were four decades apart


# --- one range


def imbalance(model: ir.Model, report: EqualizationReport) -> float:
    """Largest difference, in octaves, between a channel's share of what makes it and of what reads it."""
    differences = []
    for group in report.groups:
        made = [constant(model, f"{name}.{part}") for name in group.producers for part in ("weight", "bias")]
        read = [constant(model, f"{name}.weight").swapaxes(0, 1) for name in group.consumers]
        shares = [
            np.max([peaks / peaks.max() for peaks in (np.abs(w).reshape(group.channels, -1).max(1) for w in side)], 0)
            for side in (made, read)
        ]
        differences.append(np.abs(np.log2(shares[0] / shares[1])).max())
    return float(max(differences))


def test_channels_have_the_same_share_on_both_sides(subject):
    assert imbalance(subject.equalized, subject.report) < SETTLED_OCTAVES
    assert imbalance(subject.model, subject.report) > 6  # four decades are 13 octaves, half of them on either side


def test_equalizing_again_changes_next_to_nothing(subject):
    _, again = equalize(subject.equalized)
    assert again.sweeps < subject.report.sweeps
    for group in again.groups:
        assert abs(np.log2([group.smallest, group.largest])).max() < SETTLED_OCTAVES


# --- channels that are dead, weights that are none


def silence(axis: int, channel: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(weights: np.ndarray) -> np.ndarray:
        weights.swapaxes(0, axis)[channel] = 0
        return weights

    return change


DEAD = {
    "nothing feeds it": {"layer2.0.conv1.weight": silence(0, 5), "layer2.0.conv1.bias": silence(0, 5)},
    "it is constant": {"layer2.0.conv1.weight": silence(0, 5)},
    "nothing reads it": {"layer2.0.conv2.weight": silence(1, 5)},
    "neither": {"layer2.0.conv1.weight": silence(0, 5), "layer2.0.conv2.weight": silence(1, 5)},
    "a layer of zeros": {"layer2.0.conv1.weight": np.zeros_like, "layer2.0.conv1.bias": np.zeros_like},
}


@pytest.mark.parametrize("case", DEAD)
def test_dead_channels_do_no_harm(resnet18, case):
    model = resnet18
    for name, change in DEAD[case].items():
        model = with_constant(model, name, change)
    equalized, report = equalize(model)
    images = synthetic_images(UINT8, 4, seed=1)
    assert compare_logits(logits(model, images), logits(equalized, images)).sqnr_db > FLOOR_DB
    for group in report.groups:
        for name in (*group.producers, *group.consumers):
            for part in ("weight", "bias"):
                before, after = (np.abs(constant(one, f"{name}.{part}")).max() for one in (model, equalized))
                assert np.isfinite(after)
                # The hostile factors were up to 100 and one over 100 on either side: what goes beyond was blown up.
                assert after <= 1e4 * before, name


def test_a_layer_without_a_bias_is_scaled_too():
    card = ModelCard(architecture="resnet18", num_classes=10, weights="none", weights_sha256="", preprocess=UINT8)
    model = export_onnx(make_hostile(create_model("resnet18", 10).eval(), stream=True), card)
    assert "layer2.0.conv1.bias" not in model.graph.initializers  # the exporter leaves zeros out
    equalized, report = equalize(model)
    assert len(report.groups) == COUNTS["resnet18"]
    images = synthetic_images(UINT8, 4, seed=1)
    assert compare_logits(logits(model, images), logits(equalized, images)).sqnr_db > FLOOR_DB


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["layer2.0.conv1.weight", "layer2.0.conv1.bias"])
def test_weights_that_are_not_finite_are_refused_by_name(resnet18, name, value):
    model = with_constant(resnet18, name, lambda weights: np.full_like(weights, value))
    with pytest.raises(ModelError, match=f"{name} has a value that is not finite"):
        equalize(model)
