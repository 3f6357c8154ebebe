"""The grid of FP8, as E4M3FN: a sign, four bits of exponent, three of mantissa, and no infinities.

    x' = e4m3(clip(x / scale, -448, 448)) * scale,    scale = largest magnitude / 448

(Micikevicius et al. 2022, "FP8 Formats for Deep Learning", section 3; ONNX, QuantizeLinear with saturation.) Its steps
grow with the values: each keeps four bits, and a range that is too wide costs nothing until values fall below the
smallest normal number, 2**-6 scales.
"""

from typing import TYPE_CHECKING, Final

import ml_dtypes
import numpy as np

from resnet_deploy.quantize.outliers import channel_magnitudes
from resnet_deploy.verify import sqnr_db

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOAT8: Final[np.dtype[np.generic]] = np.dtype(ml_dtypes.float8_e4m3fn)
LARGEST: Final = 448.0
UNCLIPPED: Final = 464.0  # half a step further: what lies below is rounded to the largest number, not clipped to it
# Values spread evenly over a binade have a power of 7/3 and errors of (1/8)**2 / 12: 32.5 dB; evenly over their
# logarithms, 32.2.
EXPECTED_DB: Final = 32.0


def round_to_float8(values: "NDArray[np.floating]") -> "NDArray[np.generic]":
    """Round to the nearest FP8 number, ties to even; what is too large becomes the largest."""
    rounded: NDArray[np.generic] = np.clip(values, -LARGEST, LARGEST).astype(FLOAT8)
    return rounded


def float8_sqnr_db(weights: "NDArray[np.float32]", *, per_channel: bool) -> float:
    """Signal over rounding noise, in decibels, of weights in FP8, their largest magnitude being its largest number."""
    exact = weights.reshape(len(weights), -1).astype(np.float64)
    magnitudes = channel_magnitudes(weights)
    if not per_channel:
        magnitudes[:] = magnitudes.max()
    scales = (np.where(magnitudes > 0, magnitudes, 1.0) / LARGEST)[:, None]
    noise = exact - round_to_float8(exact / scales).astype(np.float64) * scales
    return sqnr_db(float(np.square(exact).sum()), float(np.square(noise).sum()))
