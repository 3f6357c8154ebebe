"""What `build` says of an engine: how far it is from the model, and where that is no measure of accuracy."""

import pytest

from resnet_deploy.bundle import Measured
from resnet_deploy.cli.build import _measured_in_words

MEASURED = {"images": 8, "agreement": 0.875, "sqnr_db": 35.14, "max_difference": 0.2}


@pytest.mark.parametrize(
    ("precision", "inputs", "is_accuracy"),
    [
        ("int8", "images", True),
        ("int8", "calibration images", False),
        ("int8", "synthetic images", False),
        ("fp8", "images", True),
        ("fp8", "calibration images", False),
        ("bf16", "synthetic images", True),
        ("fp16", "synthetic images", True),  # nothing was chosen on images
    ],
)
def test_figures_that_are_no_accuracy_are_said_to_be_none(precision, inputs, is_accuracy):
    words = _measured_in_words(Measured(by="engine", inputs=inputs, **MEASURED), precision)
    expected = f"the engine agrees with the exported FP32 model on 87.5% of 8 {inputs}, SQNR 35.1 dB"
    assert words.startswith(expected)
    assert ("no measure of accuracy" in words) is not is_accuracy


def test_equal_answers_have_no_decibels():
    equal = MEASURED | {"max_difference": 0, "sqnr_db": 200.0}
    words = _measured_in_words(Measured(by="simulation", inputs="images", **equal), "fp32")
    assert words == (
        "its graph, simulated on this CPU, agrees with the exported FP32 model on 87.5% of 8 images, "
        "equal to the last bit"
    )
