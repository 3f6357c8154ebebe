"""Equalization: the network computes the same to the last bit, its channels have one range, what is not is named."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hostile import make_hostile
from int8_subjects import FLOAT32, UINT8, blocks, convolution_names, int8_ranges, logits, tiny, tiny_logits
from slim import slim
from torch import nn

from resnet_deploy.errors import ModelError
from resnet_deploy.export import export_onnx
from resnet_deploy.models import create_model
from resnet_deploy.onnx_files import bytes_from_onnx, read_card
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.quantize import equalize as equalizing
from resnet_deploy.quantize.equalize import EqualizationReport, equalize
from resnet_deploy.quantize.graph import add_constant, with_outputs
from resnet_deploy.specs import ModelCard, Preprocess

# Binary logarithms. Factors are rounded to the nearest power of two, so either side of a group may be half a power off,
# and the other way round, and so may the tensor's largest channel, which all are measured against.
ROUNDED = 2.0


@cache  # no test changes what it is given, which is tested too
def exported(architecture: str, preprocess: Preprocess = UINT8, *, biases: bool = True, whole: bool = True) -> ir.Model:
    """A hostile network, with the biases that a trained one would have; a slim one where that is enough."""
    network = (create_model(architecture, 10) if whole else slim(create_model(architecture, 10))).eval()
    generator = torch.Generator().manual_seed(3)
    for part in network.modules():
        if biases and isinstance(part, nn.BatchNorm2d):
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
    expected: np.ndarray
    equalized: ir.Model
    report: EqualizationReport


SUBJECTS = [("resnet18", UINT8), ("resnet50", FLOAT32), ("plain18", UINT8), ("plain18", FLOAT32)]


@pytest.fixture(scope="module", params=SUBJECTS, ids=lambda one: f"{one[0]}-{one[1].dtype}")
def subject(request) -> Subject:
    architecture, preprocess = request.param
    model = exported(architecture, preprocess)
    expected = answers(model, preprocess)
    return Subject(architecture, preprocess, model, bytes_from_onnx(model), expected, *equalize(model))


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return exported("resnet18", whole=False)


def answers(model: ir.Model, preprocess: Preprocess = UINT8) -> np.ndarray:
    return logits(bytes_from_onnx(model), synthetic_images(preprocess, 4, seed=1))


def constant(model: ir.Model, name: str) -> np.ndarray:
    return model.graph.initializers[name].const_value.numpy().copy()


def with_constant(model: ir.Model, name: str, change: Callable[[np.ndarray], np.ndarray]) -> ir.Model:
    """A copy in which one constant is changed."""
    changed = model.clone()
    changed.graph.initializers[name].const_value = ir.tensor(change(constant(model, name)), name=name)
    return changed


# --- the same function


def test_the_function_is_kept_to_the_last_bit(subject):
    assert np.isfinite(subject.expected).all()
    np.testing.assert_array_equal(answers(subject.equalized, subject.preprocess), subject.expected)


def test_a_factor_that_nothing_takes_up_shows(subject):
    """The twin of the one above: the smallest factor that there is, in one layer."""
    broken = with_constant(subject.equalized, "layer4.1.conv1.weight", lambda weights: 2 * weights)
    assert not np.array_equal(answers(broken, subject.preprocess), subject.expected)


def test_what_is_given_is_left_as_it_was_and_the_card_is_kept(subject):
    assert bytes_from_onnx(subject.model) == subject.data
    data = bytes_from_onnx(subject.equalized)
    onnx.checker.check_model(data, full_check=True)
    assert bytes_from_onnx(equalize(subject.model)[0]) == data
    assert read_card(subject.equalized, name="equalized") == read_card(subject.model, name="exported")
    kept = {
        name
        for name in subject.model.graph.initializers
        if np.array_equal(constant(subject.model, name), constant(subject.equalized, name))
    }
    # Neither input nor logits are scaled; with normalised tensors as its input there is nothing to normalise.
    assert kept == {"fc.bias", *({"mean", "reciprocal_std"} if subject.preprocess is UINT8 else ())}


# --- which tensors share their factors

COUNTS = {
    "resnet18": 8 + 4,  # inside each block; one stream from the stem through stage 1, and one in each later stage
    "resnet50": 16 * 2 + 1 + 4,  # twice inside each block; stage 1 has a projection, so the stem is on its own
    "plain18": 17,  # one behind each convolution
}


def test_groups_are_those_of_the_architecture(subject):
    groups = subject.report.groups
    assert len(groups) == COUNTS[subject.architecture]
    convolutions = convolution_names(subject.architecture)
    assert sorted(name for group in groups for name in group.makers) == sorted(convolutions)
    assert sorted(name for group in groups for name in group.readers) == sorted({*convolutions, "fc"} - {"conv1"})
    assert len(subject.report.skipped) == 2
    assert "logits" in subject.report.skipped
    assert "the network's input is what it is given" in subject.report.skipped.values()


def test_a_stage_is_one_group():
    _, report = equalize(exported("resnet50", FLOAT32))
    (stream,) = [group for group in report.groups if "layer1.0.conv3" in group.makers]
    made = {last for name, last, _ in blocks("resnet50") if name.startswith("layer1.")}
    assert set(stream.makers) == {"layer1.0.downsample.0", *made}
    assert set(stream.readers) == {"layer1.1.conv1", "layer1.2.conv1", "layer2.0.conv1", "layer2.0.downsample.0"}
    assert stream.channels == 256
    (last,) = [group for group in report.groups if "fc" in group.readers]
    assert last.readers == ("layer4.1.conv1", "layer4.2.conv1", "fc")
    assert last.channels == 2048


def test_factors_reported_are_those_applied(subject):
    for group in subject.report.groups:
        # A bias is divided by its own channels' factors alone, weights are multiplied by those of their inputs too.
        before, after = (constant(one, f"{group.makers[0]}.bias") for one in (subject.model, subject.equalized))
        exponents = np.log2(before / after)
        assert (exponents.min(), exponents.max()) == (group.smallest, group.largest)
        assert group.largest - group.smallest > 6  # four decades are 13 powers of two; more than half are taken back


# --- one range


def imbalance(model: ir.Model, report: EqualizationReport) -> float:
    """Largest difference, in powers of two, between a channel's share of what makes it and of what reads it."""
    differences = []
    for group in report.groups:
        parts = [f"{name}.{part}" for name in group.makers for part in ("weight", "bias")]
        made = [constant(model, name) for name in parts if name in model.graph.initializers]
        read = [constant(model, f"{name}.weight").swapaxes(0, 1) for name in group.readers]
        shares = [
            np.max([peaks / peaks.max() for peaks in (np.abs(w).reshape(group.channels, -1).max(1) for w in side)], 0)
            for side in (made, read)
        ]
        differences.append(np.abs(np.log2(shares[0] / shares[1])).max())
    return float(max(differences))


def test_channels_have_the_same_share_on_both_sides(subject):
    assert imbalance(subject.equalized, subject.report) < ROUNDED
    assert imbalance(subject.model, subject.report) > 2 * ROUNDED


def test_equalizing_again_changes_next_to_nothing(subject):
    again, report = equalize(subject.equalized)
    for group in report.groups:  # those that rounding left just beyond a factor of two
        assert max(abs(group.smallest), abs(group.largest)) <= ROUNDED
    assert len(report.groups) < len(subject.report.groups)
    np.testing.assert_array_equal(answers(again, subject.preprocess), subject.expected)


def test_a_network_in_balance_is_left_alone(resnet18):
    """As a trained network is that nothing has rescaled."""
    equalized, report = equalize(resnet18.model)
    assert report.groups == ()
    assert list(report.skipped.values()).count("its channels are within a factor of two of balance") == 12
    assert bytes_from_onnx(equalized) == resnet18.data


@pytest.mark.parametrize(("ratio", "factors"), [(4, None), (16, (-2, 0))], ids=["2", "4"])
def test_a_factor_of_two_is_balance_and_one_of_four_is_not(ratio, factors):
    """Two kinds of channels, made in that ratio and read alike: the square root is what either side gets."""
    model, _, images = tiny(int8_ranges)
    made = np.ones((4, 3, 3, 3), np.float32)
    made[1::2] /= ratio
    for name, array in (("conv1.weight", made), ("conv2.weight", np.ones((2, 4, 1, 1), np.float32))):
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    model.graph.initializers["conv1.bias"].const_value = ir.tensor(np.zeros(4, np.float32), name="conv1.bias")
    equalized, report = equalize(model)
    assert [(group.smallest, group.largest) for group in report.groups] == ([] if factors is None else [factors])
    np.testing.assert_array_equal(tiny_logits(equalized, images), tiny_logits(model, images))


def several(made: tuple[float, float], read: tuple[float, float]) -> ir.Model:
    """Two layers make a tensor and two read it: by layer, how much less every second channel has than the others."""
    model, _, _ = tiny(int8_ranges)
    graph = model.graph

    def weights(name: str, out: int, channels: int, less: float, *, axis: int) -> ir.Value:
        array = np.ones((out, channels, 1, 1), np.float32)
        array.swapaxes(0, axis)[1::2] /= less
        return add_constant(graph, name, array)

    def layer(source: ir.Value, name: str, *shape: int, less: float, axis: int) -> ir.Value:
        node = ir.node("Conv", [source, weights(f"{name}.weight", *shape, less, axis=axis)], name=name)
        node.outputs[0].name = name
        graph.append(node)
        return node.outputs[0]

    def added(values: list[ir.Value], name: str) -> ir.Value:
        node = ir.node("Add", values, name=name)
        node.outputs[0].name = name
        graph.append(node)
        return node.outputs[0]

    (logits_of_tiny,) = graph.outputs
    made_by = [layer(graph.inputs[0], f"make{i}", 4, 3, less=less, axis=0) for i, less in enumerate(made)]
    stream = added(made_by, "stream")
    read_by = [layer(stream, f"read{i}", 2, 4, less=less, axis=1) for i, less in enumerate(read)]
    total = added([logits_of_tiny, *read_by[:1]], "sum")
    result = added([total, read_by[1]], "result")
    graph.outputs[:] = [result]
    return model


@pytest.mark.parametrize(
    ("made", "read", "factors"),
    [
        ((16, 16), (1, 1), (-2, 0)),  # channels that no layer makes large
        ((1, 16), (1, 1), None),  # and those that one does
        ((16, 1), (1, 1), None),
        ((1, 1), (16, 16), (0, 2)),
        ((1, 1), (1, 16), None),
        ((1, 1), (16, 1), None),
        ((16, 16), (16, 16), None),
        ((256, 16), (1, 256), (-2, 0)),
    ],
)
def test_of_several_layers_the_largest_share_counts(made, read, factors):
    _, report = equalize(several(made, read))
    found = [(group.smallest, group.largest) for group in report.groups if "make0" in group.makers]
    assert found == ([] if factors is None else [factors])


# --- channels that are dead, weights that are none


def silence(axis: int, channel: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(weights: np.ndarray) -> np.ndarray:
        weights.swapaxes(0, axis)[channel] = 0
        return weights

    return change


MADE, READ, BIAS = "layer2.0.conv1.weight", "layer2.0.conv2.weight", "layer2.0.conv1.bias"
DEAD = {
    "nothing feeds it": {MADE: silence(0, 5), BIAS: silence(0, 5)},
    "it is constant": {MADE: silence(0, 5)},
    "nothing reads it": {READ: silence(1, 5)},
    "neither": {MADE: silence(0, 5), READ: silence(1, 5)},
    "all are constant": {MADE: np.zeros_like},
    "nothing feeds any": {MADE: np.zeros_like, BIAS: np.zeros_like},
    "nothing reads any": {READ: np.zeros_like},
}


@pytest.mark.parametrize("case", DEAD)
def test_dead_channels_do_no_harm(model, case):
    for name, change in DEAD[case].items():
        model = with_constant(model, name, change)
    equalized, report = equalize(model)
    np.testing.assert_array_equal(answers(equalized), answers(model))
    assert len(report.groups) == COUNTS["resnet18"] - case.endswith("any")
    for group in report.groups:
        # Four decades are 13 powers of two; a channel that is dead counts as one 24 below the largest, and no less.
        assert max(-group.smallest, group.largest) <= 24 + 14
        for name in (*group.makers, *group.readers):
            for part in ("weight", "bias"):
                before, after = (np.abs(constant(one, f"{name}.{part}")).max() for one in (model, equalized))
                # Hostile factors are up to 100 and one over 100 on either side: what goes beyond was blown up.
                assert after <= 1e4 * before, name


def test_layers_without_a_bias_are_scaled_too():
    model = exported("resnet18", biases=False, whole=False)
    assert BIAS not in model.graph.initializers  # the exporter leaves zeros out
    equalized, report = equalize(model)
    assert len(report.groups) == COUNTS["resnet18"]
    np.testing.assert_array_equal(answers(equalized), answers(model))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", [MADE, BIAS])
def test_weights_that_are_not_finite_are_refused_by_name(model, name, value):
    with pytest.raises(ModelError, match=f"{name} has a value that is not finite"):
        equalize(with_constant(model, name, lambda weights: np.full_like(weights, value)))


# --- what a factor does not pass through


@pytest.mark.parametrize("constant_first", [False, True], ids=["x + constant", "constant + x"])
def test_a_constant_that_is_added_is_a_reason_against(model, constant_first):
    changed = model.clone()
    relu = changed.graph.node("layer2.0.conv1.relu")
    offset = add_constant(changed.graph, "offset", np.full((1, 32, 1, 1), 0.25, np.float32))
    operands = [relu.inputs[0], offset]
    add = ir.node("Add", operands[::-1] if constant_first else operands, name="offset.add")
    add.outputs[0].name = "offset.sum"
    changed.graph.insert_before(relu, add)
    relu.replace_input_with(0, add.outputs[0])
    equalized, report = equalize(changed)
    np.testing.assert_array_equal(answers(equalized), answers(changed))
    assert report.skipped["layer2.0.conv1"] == "a constant is added to it"
    assert len(report.groups) == COUNTS["resnet18"] - 1


def test_what_the_network_gives_is_a_reason_against(model):
    tapped = with_outputs(model, ["layer2.0.conv1.relu"])
    equalized, report = equalize(tapped)
    assert report.skipped["layer2.0.conv1"] == "logits are what the network promises"
    assert len(report.groups) == COUNTS["resnet18"] - 1
    assert "layer2.0.conv1" not in {name for group in report.groups for name in group.makers}
    # A bias would be divided by its channels' factors.
    np.testing.assert_array_equal(constant(equalized, BIAS), constant(tapped, BIAS))


def test_what_nothing_reads_is_left_alone(model):
    changed = model.clone()
    relu, layer = (changed.graph.node(name) for name in ("layer2.0.conv1.relu", "layer2.0.conv2"))
    idle = ir.node("Conv", [relu.outputs[0], layer.inputs[1]], attributes={"pads": [1, 1, 1, 1]}, name="idle")
    idle.outputs[0].name = "idle"
    changed.graph.insert_after(relu, idle)
    _, report = equalize(changed)
    assert report.skipped["idle"] == "nothing reads it"


MADE_OTHERWISE = "it is made by something that a factor does not pass through"
READ_OTHERWISE = "it is read by something that a factor does not pass through"


@pytest.mark.parametrize("kind", ["Sigmoid", "Clip"])
@pytest.mark.parametrize(
    ("relu", "skipped"),
    [
        # Between the two convolutions of a block: what the first makes, and what the second reads.
        ("layer2.0.conv1.relu", {"layer2.0.conv1": READ_OTHERWISE, "layer2.0.conv1.relu": MADE_OTHERWISE}),
        # Within the stream of a stage, which it parts in two: layers make and layers read either.
        ("layer1.0.relu", {"conv1": READ_OTHERWISE, "layer1.0.relu": MADE_OTHERWISE}),
    ],
    ids=["inside a block", "in the stream"],
)
def test_other_activation_functions_are_reasons_against(model, kind, relu, skipped):
    changed = model.clone()
    node = changed.graph.node(relu)
    node.op_type = kind
    if kind == "Clip":
        node.resize_inputs(3)
        for index, limit in ((1, 0), (2, 6)):
            node.replace_input_with(index, add_constant(changed.graph, f"limit{index}", np.array(limit, np.float32)))
    equalized, report = equalize(changed)
    expected = answers(changed)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(answers(equalized), expected)
    reasons = {name: reason for name, reason in report.skipped.items() if reason in (MADE_OTHERWISE, READ_OTHERWISE)}
    assert reasons == skipped
    assert len(report.groups) == COUNTS["resnet18"] - 1


def test_no_sum_of_a_range_and_a_factor_overflows():
    ranges = equalizing._steps(np.array([-np.inf, -149, 0, 128]), *equalizing._EXPONENTS)[:, None]
    factors = equalizing._steps(np.array([-1e9, 1e9]), -equalizing._MOST, equalizing._MOST)
    assert (ranges + factors).tolist() == (ranges.astype(int) + factors).tolist()
    assert (ranges - factors).tolist() == (ranges.astype(int) - factors).tolist()
