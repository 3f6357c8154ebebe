"""The integer grids: zero is exact, scales are what their data type holds, and rounding costs half a step at most."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_deploy.quantize.qdq import FORMS, QdqForm, _on_weight_grid, activation_grid, weight_scales
from resnet_deploy.quantize.ranges import Range

unhurried = settings(deadline=None)  # other work may share the machine

UINT8, INT8, RTX = FORMS["onnxruntime"], FORMS["tensorrt"], FORMS["tensorrt-rtx"]
SMALLEST_HALF = 2.0**-14  # normal: below it, FP16 has fewer than 11 bits
# The grid's step, halved, and what rounding the scale to single precision adds at the far end of 255 steps.
HALF_STEP = 0.5 + 1e-4

magnitudes = st.one_of(st.floats(0, 8), st.floats(0, 1e-6), st.floats(0, 5e4), st.sampled_from([0.0, 1e-30]))
ranges = st.builds(lambda low, high: Range(-low, high), magnitudes, magnitudes)
forms = st.sampled_from([UINT8, INT8, RTX, replace(INT8, scale_dtype="float32")])
weights = st.lists(
    st.lists(st.floats(-100, 100, width=32) | st.floats(-(2**-14), 2**-14, width=32), min_size=3, max_size=3),
    min_size=1,
    max_size=8,
).map(lambda rows: np.array(rows, np.float32))


def limits(form: QdqForm) -> tuple[int, int]:
    return (0, 255) if form.activation == "uint8" else (-128, 127)


def round_trip(values: np.ndarray, scale: float, zero_point: int, form: QdqForm) -> np.ndarray:
    """QuantizeLinear and DequantizeLinear by their definition, in double precision."""
    integers = np.clip(np.rint(values / scale) + zero_point, *limits(form))
    return (integers - zero_point) * scale


# --- activations


@dataclass(frozen=True)
class Grid:
    chosen: Range
    form: QdqForm
    scale: float
    zero_point: int


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Grid(Range(0, 255), UINT8, 1, 0), id="uint8 after ReLU"),
        pytest.param(Grid(Range(-255, 0), UINT8, 1, 255), id="uint8 below zero"),
        pytest.param(Grid(Range(-51, 204), UINT8, 1, 51), id="uint8 of either sign"),
        pytest.param(Grid(Range(-1.2, 3.9), UINT8, float(np.float32(5.1 / 255)), 60), id="uint8 rounded to float32"),
        pytest.param(Grid(Range(0, 127), INT8, 1, 0), id="int8 after ReLU"),
        pytest.param(Grid(Range(-254, 127), INT8, 2, 0), id="int8 of either sign"),
        pytest.param(Grid(Range(0, 12.7), INT8, float(np.float16(0.1)), 0), id="int8 rounded to float16"),
        pytest.param(Grid(Range(0, 0), UINT8, float(np.float32(1 / 255)), 0), id="uint8 of zeros"),
        pytest.param(Grid(Range(0, 0), INT8, float(np.float16(1 / 127)), 0), id="int8 of zeros"),
        pytest.param(Grid(Range(0, 1e-6), INT8, SMALLEST_HALF, 0), id="int8 of tiny values"),
        pytest.param(Grid(Range(-1e-42, 1e-42), UINT8, 2.0**-126, 0), id="uint8 of denormals"),
    ],
)
def test_activation_grids_by_hand(case):
    assert activation_grid(case.chosen, case.form) == (case.scale, case.zero_point)


@unhurried
@given(chosen=ranges, form=forms)
def test_zero_is_exact_and_on_the_grid(chosen, form):
    scale, zero_point = activation_grid(chosen, form)
    lowest, highest = limits(form)
    assert isinstance(zero_point, int)
    assert lowest <= zero_point <= highest
    assert round_trip(np.zeros(1), scale, zero_point, form) == 0
    if form.activation == "int8" or chosen.low == 0:
        assert zero_point == 0


@unhurried
@given(chosen=ranges, form=forms, share=st.floats(0, 1))
def test_rounding_costs_half_a_step_inside_the_range(chosen, form, share):
    scale, zero_point = activation_grid(chosen, form)
    inside = np.array([chosen.low, chosen.high, chosen.low + share * (chosen.high - chosen.low)])
    error = np.abs(round_trip(inside, scale, zero_point, form) - inside)
    assert error.max() <= HALF_STEP * scale


@pytest.mark.parametrize("form", [UINT8, INT8], ids=["uint8", "int8"])
def test_the_bound_is_tight(form):
    # The twin: a grid made for half the range clips the rest, a step too coarse is coarser than half of ours.
    values = np.linspace(-3, 5, 1001)
    scale, zero_point = activation_grid(Range(-3, 5), form)
    assert 0.49 * scale < np.abs(round_trip(values, scale, zero_point, form) - values).max()
    for wrong in (scale / 2, scale * 1.1):
        assert np.abs(round_trip(values, wrong, zero_point, form) - values).max() > HALF_STEP * scale


@unhurried
@given(chosen=ranges, form=forms)
def test_scales_are_what_their_data_type_holds(chosen, form):
    scale, _ = activation_grid(chosen, form)
    dtype = np.dtype(form.scale_dtype)
    assert float(dtype.type(scale)) == scale
    assert scale >= np.finfo(dtype).smallest_normal


# --- weights


def test_weight_scales_per_channel_and_per_tensor():
    # Two channels of 2 x 1 x 1, as a convolution's.
    two = np.array([[[[1.0]], [[-127.0]]], [[[0.5]], [[254.0]]]], np.float32)
    assert weight_scales(two, INT8).tolist() == [1.0, 2.0]
    assert weight_scales(two, RTX).tolist() == [2.0, 2.0]


@pytest.mark.parametrize(("bits", "limit"), [(8, 127), (7, 63)])
def test_weight_scales_map_the_largest_magnitude_to_the_limit(bits, limit):
    row = np.array([[0.25, -1.5, 1.0]], np.float32)
    (scale,) = weight_scales(row, replace(UINT8, weight_bits=bits))
    assert scale == np.float32(1.5 / limit)
    assert np.rint(row / scale).min() == -limit


@pytest.mark.parametrize("form", [UINT8, INT8], ids=["float32", "float16"])
def test_a_channel_of_zeros_has_scale_one(form):
    channels = np.array([[0, 0], [1, 0]], np.float32)
    assert weight_scales(channels, form)[0] == 1
    assert weight_scales(np.zeros((2, 2), np.float32), RTX).tolist() == [1, 1]


@unhurried
@given(values=weights, form=st.sampled_from([UINT8, replace(UINT8, weight_bits=7), INT8, RTX]))
def test_weights_lose_half_a_step_at_most(values, form):
    scales = weight_scales(values, form)
    limit = 127 if form.weight_bits == 8 else 63
    assert (scales.dtype, scales.shape) == (np.dtype(form.scale_dtype), (len(values),))
    assert (scales >= np.finfo(form.scale_dtype).smallest_normal).all()
    if not form.per_channel:
        assert len(set(scales.tolist())) == 1
    steps = scales.astype(np.float64)[:, None]
    stored = np.clip(np.rint(values / steps), -limit, limit) * steps
    assert (np.abs(stored - values) <= HALF_STEP * steps).all()


@pytest.mark.parametrize("shape", [(3, 40_000), (7, 20_000), (5, 3, 2, 2)], ids=str)
def test_weights_are_rounded_alike_in_however_many_pieces(shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    steps = weight_scales(values, INT8).astype(np.float64).reshape(-1, *[1] * (len(shape) - 1))
    found = _on_weight_grid(values, steps, INT8)
    np.testing.assert_array_equal(found, np.clip(np.rint(values / steps), -127, 127))


def test_weights_on_other_scales_lose_more():
    # The twin of the bound above: scales of the neighbouring channel.
    values = np.array([[100.0, 1.0], [1.0, 0.01]], np.float32)
    scales = weight_scales(values, INT8).astype(np.float64)[:, None]
    swapped = scales[::-1]
    stored = np.clip(np.rint(values / swapped), -127, 127) * swapped
    assert (np.abs(stored - values) > HALF_STEP * scales).any()


def test_infinite_and_absent_numbers_stay_visible():
    # Whoever writes the grid into a graph refuses them; a finite scale would hide them.
    with np.errstate(invalid="ignore"):
        scales = weight_scales(np.array([[np.nan, 1], [np.inf, 1], [1e9, 1]], np.float32), INT8)
    assert np.isnan(scales[0])
    assert np.isinf(scales[1:]).all()
    assert np.isinf(activation_grid(Range(0, 1e9), INT8)[0])
