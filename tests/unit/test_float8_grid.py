"""The FP8 grid, by hand and by its definition: E4M3FN, three bits of mantissa, the largest number 448."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_deploy.backends import BACKENDS, require_precision
from resnet_deploy.capabilities import RTX_COMPUTE_CAPABILITIES, RTX_WITHOUT
from resnet_deploy.errors import BackendError
from resnet_deploy.quantize.float8 import EXPECTED_DB, FLOAT8, float8_sqnr_db, round_to_float8
from resnet_deploy.quantize.layers import Layer, used_bits
from resnet_deploy.quantize.outliers import weight_sqnr_db
from resnet_deploy.quantize.qdq import FLOAT8_FORMS, FORMS, activation_grid, grid_dtype, weight_scales
from resnet_deploy.quantize.ranges import Range
from resnet_deploy.specs import PRECISIONS
from resnet_deploy.trt_api import RTX_DEFAULT_TARGETS, default_targets

TENSORRT, RTX = FLOAT8_FORMS["tensorrt"], FLOAT8_FORMS["tensorrt-rtx"]
SMALLEST_NORMAL = 2.0**-6


def spelt_out() -> np.ndarray:
    """Every finite number of the type that is not negative, from its bits: 1.mmm * 2**(e - 7), 0.mmm * 2**-6."""
    normal = [(1 + mantissa / 8) * 2.0 ** (exponent - 7) for exponent in range(1, 16) for mantissa in range(8)]
    return np.array([*(mantissa / 8 * 2.0**-6 for mantissa in range(8)), *normal[:-1]])  # the last stands for NaN


def test_numbers_of_the_type_round_to_themselves():
    numbers = spelt_out()
    assert (len(numbers), numbers.max()) == (127, 448)
    for sign in (1, -1):
        assert np.array_equal(round_to_float8(sign * numbers).astype(np.float64), sign * numbers)


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (1.0625, 1.0),  # half way: to the even mantissa
        (1.1875, 1.25),
        (1.07, 1.125),
        (463.0, 448.0),
        (464.0, 448.0),  # half way to the number that would follow, which is NaN without clipping first
        (1e30, 448.0),
        (-np.inf, -448.0),
        (2.0**-10, 0.0),
        (2.0**-9 * 1.5, 2.0**-8),
    ],
)
def test_rounding_by_hand(value, rounded):
    assert float(round_to_float8(np.array([value]))[0]) == rounded


@settings(deadline=None)
@given(st.lists(st.floats(-500, 500), min_size=1, max_size=20))
def test_rounding_takes_the_nearest_number(values):
    numbers = np.concatenate([-spelt_out(), spelt_out()])
    array = np.array(values)
    errors = np.abs(round_to_float8(array).astype(np.float64) - array)
    assert np.array_equal(errors, np.abs(numbers[:, None] - array).min(0))


@pytest.mark.parametrize("form", [TENSORRT, RTX], ids=["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(
    ("chosen", "scale"),
    [
        (Range(0, 448), 1.0),
        (Range(-896, 448), 2.0),
        (Range(0, 44.8), float(np.float16(0.1))),
        (Range(0, 0), float(np.float16(1 / 448))),
        (Range(0, 1e-6), 2.0**-14),
    ],
)
def test_activation_grids_by_hand(form, chosen, scale):
    assert activation_grid(chosen, form) == (scale, 0)
    assert grid_dtype(form) == FLOAT8


def test_weight_scales_map_the_largest_magnitude_to_the_largest_number():
    two = np.array([[448, -3], [896, 5]], np.float32)
    assert weight_scales(two, TENSORRT).tolist() == [1.0, 2.0]
    assert weight_scales(two, RTX).tolist() == [2.0, 2.0]
    assert weight_scales(two, TENSORRT).dtype == np.float16


@pytest.mark.parametrize("spread", [1.0, 100.0], ids=["even channels", "channels a hundredfold apart"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_random_weights_keep_what_four_bits_leave(spread, per_channel):
    weights = np.random.default_rng(0).normal(size=(32, 500)).astype(np.float32)
    weights *= np.geomspace(1, spread, 32)[:, None].astype(np.float32)
    assert float8_sqnr_db(weights, per_channel=per_channel) == pytest.approx(EXPECTED_DB, abs=1)
    # The twin: 8-bit integers keep more, as long as all channels fill their grid.
    assert weight_sqnr_db(weights, bits=8, per_channel=True) > EXPECTED_DB + 6


def test_weights_below_the_normal_numbers_lose_bits():
    weights = np.full((1, 1000), 448 * 2.0**-18, np.float32) * np.linspace(1, 2, 1000, dtype=np.float32)
    weights[0, 0] = 448
    assert float8_sqnr_db(weights[:, 1:], per_channel=True) == pytest.approx(EXPECTED_DB, abs=1.5)
    exact = weights.astype(np.float64)[:, 1:]
    with_largest = round_to_float8(exact).astype(np.float64)  # on the grid that the one large value makes
    assert 10 * np.log10((exact**2).sum() / ((exact - with_largest) ** 2).sum()) < 15


def test_what_is_said_of_its_layers():
    assert used_bits(np.array([1, 448], FLOAT8)) == 8
    layer = Layer("a", "Conv", (2,), FLOAT8.name, 8, 2, 1, 2)
    assert layer.precision == "float8_e4m3fn, per channel"


# --- who takes which precision


def test_the_table_of_precisions():
    found = {backend.name: backend.precisions for backend in BACKENDS if backend.precisions}
    assert found == {
        "onnxruntime": ("fp32", "fp16", "int8"),
        "onnxruntime-cuda": ("fp32", "fp16"),
        "onnxruntime-tensorrt": ("fp32", "fp16", "int8"),
        "onnxruntime-rtx": ("fp32", "fp16", "int8"),
        "openvino": ("fp32", "fp16", "int8"),
        "tensorrt-rtx": PRECISIONS,
        "tensorrt": PRECISIONS,
    }
    assert {name for name, precisions in found.items() if "int8" in precisions} == set(FORMS)
    assert {name for name, precisions in found.items() if "fp8" in precisions} == set(FLOAT8_FORMS)


@pytest.mark.parametrize("backend", [backend.name for backend in BACKENDS])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_a_backend_lacks_is_refused_with_those_that_have_it(backend, precision):
    taken = next(one.precisions for one in BACKENDS if one.name == backend)
    if precision in taken:
        require_precision(backend, precision)
        return
    with pytest.raises(BackendError, match=f"{backend} has no {precision.upper()} engines") as caught:
        require_precision(backend, precision)
    assert "--backend" in caught.value.hint
    assert "tensorrt-rtx" in caught.value.hint


def test_default_targets_are_those_with_the_hardware():
    assert default_targets("fp8") == ("8.9", "12.0")
    for precision in ("fp32", "fp16", "bf16", "int8"):
        assert default_targets(precision) == RTX_DEFAULT_TARGETS
    for targets in RTX_WITHOUT.values():
        assert set(targets) < set(RTX_COMPUTE_CAPABILITIES)
