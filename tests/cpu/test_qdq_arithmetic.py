"""A quantized graph computes what the definition says: one small network, in NumPy."""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import pytest
from int8_subjects import (
    ORT,
    RTX,
    SEVEN_BITS,
    TENSORRT,
    Graph,
    int8_ranges,
    logits,
    lower,
    tiny,
    tiny_logits,
    uint8_ranges,
)
from numpy.lib.stride_tricks import sliding_window_view

from resnet_deploy.errors import ModelError
from resnet_deploy.onnx_files import bytes_from_onnx
from resnet_deploy.quantize.qdq import QdqForm, insert_qdq, weight_scales


def convolve(images: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Stride 1, zero-padded to the same size, in double precision."""
    side = weights.shape[2]
    padded = np.pad(images, [(0, 0), (0, 0), (side // 2,) * 2, (side // 2,) * 2])
    windows = sliding_window_view(padded, (side, side), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weights) + bias.reshape(-1, 1, 1)


def on_grid(values: np.ndarray, scale: np.ndarray | float, low: int, high: int, zero_point: int = 0) -> np.ndarray:
    return (np.clip(np.rint(values / scale) + zero_point, low, high) - zero_point) * scale


def by_hand(model: ir.Model, images: np.ndarray, form: QdqForm) -> np.ndarray:
    """The quantized network from its definition; the scales are spelt out, not computed."""
    unsigned = form.activation == "uint8"
    constants = {name: value.const_value.numpy().astype(np.float64) for name, value in model.graph.initializers.items()}
    limit = 127 if form.weight_bits == 8 else 63
    grids = {"conv1": (1 / 64, 128 if unsigned else 0), "conv2": (1 / 16 if unsigned else 1 / 8, 0)}
    x = images.astype(np.float64)
    for layer, (scale, zero_point) in grids.items():
        x = on_grid(x, scale, *((0, 255) if unsigned else (-128, 127)), zero_point)
        weights, bias = constants[f"{layer}.weight"], constants[f"{layer}.bias"]
        channels = np.resize([1 / 128, 2 / 128] if form.per_channel else 2 / 128, len(weights)).reshape(-1, 1, 1, 1)
        if form.everywhere:
            bias = on_grid(bias, scale * channels.ravel(), -(2**31), 2**31 - 1)
        x = convolve(x, on_grid(weights, channels, -limit, limit), bias)
        x = np.maximum(x, 0) if layer == "conv1" else x
    return x


@dataclass(frozen=True)
class Tiny:
    form: QdqForm
    ranges: dict[str, tuple[float, float]]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Tiny(ORT, uint8_ranges), id="uint8, per channel, INT32 bias"),
        pytest.param(Tiny(SEVEN_BITS, uint8_ranges), id="uint8, 7-bit weights"),
        pytest.param(Tiny(replace(TENSORRT, scale_dtype="float32"), int8_ranges), id="int8, per channel"),
        pytest.param(Tiny(replace(RTX, scale_dtype="float32"), int8_ranges), id="int8, per tensor"),
    ],
)
def test_the_simulation_is_the_arithmetic_of_the_definition(case):
    model, calibration, images = tiny(case.ranges, bits=case.form.weight_bits)
    data, _ = lower(model, calibration, case.form)
    found = logits(data, images)
    assert np.array_equal(found, by_hand(model, images, case.form))  # bit for bit: every number is exact
    # The twins: the next weight grid, unquantized weights, and images rounded down.
    other = replace(case.form, per_channel=not case.form.per_channel)
    assert not np.array_equal(found, by_hand(model, images, other))
    assert not np.array_equal(found, tiny_logits(model, images))
    assert not np.array_equal(found, by_hand(model, images - 1 / 128, case.form))


def scaled(model: ir.Model, name: str, factors: list[float]) -> ir.Model:
    """A copy in which the first channels of a constant, as many as there are factors, are multiplied."""
    changed = model.clone()
    array = changed.graph.initializers[name].const_value.numpy().copy()
    for channel, factor in enumerate(factors):
        array[channel] *= np.float32(factor)
    changed.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return changed


@dataclass(frozen=True)
class Faint:
    per_channel: bool
    factors: list[float]  # of the first layer's weights, by output channel
    steps: tuple[int, int]  # least and most that are left of the first channel's largest weight


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Faint(True, [1e-12], (0, 0)), id="per channel"),
        pytest.param(Faint(True, [1e-6], (2, 126)), id="per channel, some steps left"),
        pytest.param(Faint(False, [1e-6] * 4, (2, 126)), id="per tensor"),
    ],
)
def test_a_bias_beyond_the_accumulator_makes_the_scale_coarser(case):
    """A channel whose weights all but vanished, as folding a dying BatchNorm leaves it, keeps its bias."""
    model, calibration, _ = tiny(uint8_ranges)
    model = scaled(model, "conv1.weight", case.factors)
    originals = Graph(bytes_from_onnx(model)).constants
    weights, bias = originals["conv1.weight"], originals["conv1.bias"].astype(np.float64)
    assert len(set(np.abs(bias))) == 4  # where each would need another scale, one for all must be the largest
    graph = Graph(lower(model, calibration, replace(ORT, per_channel=case.per_channel))[0])
    layer = next(node for node in graph.all("Conv") if node.name == "conv1")
    integers, scales, _, _ = graph.stored(layer.input[1])
    assert scales.shape == ((4,) if case.per_channel else ())
    steps = np.asarray(scales, np.float64).reshape(-1, 1, 1, 1)
    assert (np.abs(integers * steps - weights) <= 0.51 * steps).all()
    fewest, most = case.steps
    assert fewest <= np.abs(integers[0].astype(int)).max() <= most
    bias_integers, bias_scales, _, _ = graph.stored(layer.input[2])
    found = bias_integers * bias_scales.astype(np.float64)
    # Half a step, and what rounding scales to single precision makes of the largest integer.
    assert (np.abs(found - bias) <= 0.51 * bias_scales + 1e-6 * np.abs(bias)).all()
    needing = 0 if case.per_channel else int(np.abs(bias).argmax())
    assert abs(int(bias_integers[needing])) > 2**29  # it was the bias that made the scale


BIAS_DIGITS = 1e-6  # of integers near 2**30, whose scales are rounded to single precision: 1e-7, and once more as much


@pytest.mark.parametrize("bias", [0.0, 0.1, -3e4, 1e-30], ids=str)
def test_the_bias_of_a_pruned_channel_is_kept(bias):
    """Without weights nothing but the bias asks for a scale; at 1, the scale of zeros, 0.1 would be rounded to 0."""
    model, calibration, _ = tiny(uint8_ranges | {"images": (-50.0, 52.0)})  # a scale of 0.4
    model = scaled(model, "conv1.weight", [1, 0])
    model.graph.initializers["conv1.weight"].const_value.numpy()[0, 1] = 0
    value = model.graph.initializers["conv1.bias"]
    biases = value.const_value.numpy().copy()
    biases[1] = bias
    value.const_value = ir.tensor(biases, name=value.name)
    graph = Graph(lower(model, calibration, ORT)[0])
    (integers, scales, _, _), (steps, step_scales, _, _) = (
        graph.stored(f"conv1.{part}.dequantized") for part in ("weight", "bias")
    )
    assert not integers[1].any()
    found = steps * step_scales.astype(np.float64)
    assert found[1] == pytest.approx(bias, rel=BIAS_DIGITS)
    assert (scales >= np.finfo(np.float32).smallest_normal).all()
    if bias == 0:
        assert scales[1] == 1
    # The others have the scales that they would have without a bias, some weights of zero or none.
    weights = Graph(bytes_from_onnx(model)).constants["conv1.weight"]
    assert not weights[0].all()
    np.testing.assert_array_equal(np.delete(scales, 1), np.delete(weight_scales(weights, ORT), 1))


def test_a_bias_of_next_to_nothing_has_a_step_that_single_precision_holds():
    """Divided by a step that underflowed to zero it would be infinite, or not a number."""
    model, calibration, _ = tiny(uint8_ranges | {"images": (-2e-30, 2e-30)})
    value = model.graph.initializers["conv1.bias"]
    value.const_value = ir.tensor(np.float32([1e-37, -1e-40, 0, 1]), name=value.name)
    graph = Graph(lower(scaled(model, "conv1.weight", [0, 1e-20, 1, 1]), calibration, ORT)[0])
    steps, scales, _, _ = graph.stored("conv1.bias.dequantized")
    smallest = float(np.finfo(np.float32).smallest_normal)
    # The floor is itself rounded to single precision, and so is its product with the input's scale.
    assert (scales >= smallest * (1 - 1e-6)).all()
    # Half the smallest step for those that are next to nothing; the digits of single precision for the other.
    np.testing.assert_allclose(steps[:3] * scales[:3].astype(np.float64), [1e-37, -1e-40, 0], atol=0.51 * smallest)
    assert steps[3] * float(scales[3]) == pytest.approx(1, rel=BIAS_DIGITS)


@pytest.mark.parametrize("bias", [0.0, 0.1], ids=str)
def test_a_pruned_channel_does_not_change_the_scale_that_others_share(bias):
    model, calibration, _ = tiny(uint8_ranges)
    form = replace(ORT, per_channel=False)
    whole = Graph(lower(model, calibration, form)[0]).constants["conv1.weight.scale"]
    pruned = scaled(scaled(model, "conv1.weight", [0]), "conv1.bias", [bias])
    assert Graph(lower(pruned, calibration, form)[0]).constants["conv1.weight.scale"] == whole


@pytest.mark.parametrize("name", ["conv1.weight", "conv1.bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_finite_number_is_refused(name, value):
    model, calibration, _ = tiny(uint8_ranges)
    with pytest.raises(ModelError, match=r"conv1\.weight has values that no float32 scale covers"):
        insert_qdq(scaled(model, name, [1, value]), calibration, ORT)


def test_biases_behind_a_tensor_of_zeros_are_kept():
    """What is all zero in calibration asks for no scale: at 1, biases would be rounded to multiples of the weights'."""
    model, calibration, _ = tiny(uint8_ranges | {"conv1.relu": (0.0, 0.0)})
    graph = Graph(lower(model, calibration, ORT)[0])
    (_, scales, _, _), (steps, step_scales, _, _) = (
        graph.stored(f"conv2.{part}.dequantized") for part in ("weight", "bias")
    )
    exact = Graph(bytes_from_onnx(model)).constants["conv2.bias"].astype(np.float64)
    # As behind a tensor that reaches 1: half a step of its 255, and rounding to single precision.
    assert (np.abs(steps * step_scales.astype(np.float64) - exact) <= 0.51 * scales / 255).all()


def test_a_bias_leaves_the_sum_that_it_is_added_to_room():
    """Fused kernels add it to the INT32 sum of products, and what goes beyond an INT32 gets the other sign."""
    model, calibration, images = tiny(uint8_ranges, bits=7)
    model = scaled(model, "conv1.weight", [1e-6])  # some steps of the scale that its bias needs
    bias = model.graph.initializers["conv1.bias"]
    bias.const_value = ir.tensor(np.float32([3, 1, 1, 1]), name="conv1.bias")
    data, _ = lower(model, calibration, SEVEN_BITS)
    graph = Graph(data)
    steps = graph.constants["conv1.weight.quantized"][0].astype(int)
    assert 2 < np.abs(steps).max() < 63
    written, fused = (logits(data, images, as_written=as_written) for as_written in (True, False))
    # A sum at half a step of the inner grid, 1/16, may be rounded either way; each is read with its weight.
    weights = model.graph.initializers["conv2.weight"].const_value.numpy()
    np.testing.assert_allclose(fused, written, rtol=0, atol=np.abs(weights).reshape(2, -1).sum(1).max() / 16)
    # The twin: a bias that wraps is 3 below zero, which the ReLU makes 3 less than there should be.
    assert np.abs(3 * weights[:, 0]).max() > 4 * np.abs(weights).reshape(2, -1).sum(1).max() / 16


# --- values that half precision does not reach


@dataclass(frozen=True)
class Edge:
    """A range whose ends half precision just reaches, and that of the next scale."""

    covered: tuple[float, float]
    beyond: tuple[float, float]


@pytest.mark.parametrize(
    "case",
    [
        # Scales beyond 512 are multiples of a half: 515.5 * 127 is 65468.5 and 516 * 127 is 65532; half precision ends
        # at 65504.
        pytest.param(Edge((0.0, 127 * 515.5), (0.0, 127 * 516)), id="int8 after ReLU"),
        # There is an integer more below zero: 511.75 * 128 is 65504.
        pytest.param(Edge((-127 * 511.75, 1.0), (-127 * 512, 1.0)), id="int8 below zero"),
    ],
)
def test_activations_that_half_precision_cannot_dequantize_are_refused(case):
    model, calibration, _ = tiny(int8_ranges | {"conv1.relu": case.covered})
    scale = Graph(lower(model, calibration, TENSORRT)[0]).constants["conv1.relu.scale"]
    assert np.isfinite(scale * np.float16(127))
    model, calibration, _ = tiny(int8_ranges | {"conv1.relu": case.beyond})
    with pytest.raises(ModelError, match=r"conv1\.relu has values that no float16 scale covers"):
        insert_qdq(model, calibration, TENSORRT)


@pytest.mark.parametrize("form", [TENSORRT, RTX], ids=["per channel", "per tensor"])
def test_weights_that_half_precision_cannot_dequantize_are_refused(form):
    model, calibration, _ = tiny(int8_ranges)
    value = model.graph.initializers["conv2.weight"]
    for largest, is_covered in ((127 * 515.5, True), (127 * 516.0, False)):
        weights = value.const_value.numpy().copy()
        weights[1, 2] = largest
        value.const_value = ir.tensor(weights, name=value.name)
        if is_covered:
            integers, scales, _, _ = Graph(lower(model, calibration, form)[0]).stored("conv2.weight.dequantized")
            assert np.isfinite(scales * integers.max().astype(np.float16)).all()
        else:
            with pytest.raises(ModelError, match=r"conv2\.weight has values that no float16 scale covers"):
                insert_qdq(model, calibration, form)
