"""How much of a layer's output each range leaves: against PyTorch in double precision, and what `auto` makes of it."""

import math

import onnx_ir as ir
import pytest
import torch
from int8_subjects import ORT, TENSORRT, int8_ranges, source, tiny
from torch.nn.functional import conv2d

from resnet_deploy.onnx_files import bytes_from_onnx
from resnet_deploy.quantize.calibrate import calibration_from, observe
from resnet_deploy.quantize.output_error import MOST_DECIBELS, _decibels, measure_output_sqnr
from resnet_deploy.quantize.ranges import Range, choose_ranges
from resnet_deploy.specs import RANGE_METHODS, CalibrationSpec


def by_hand(values: torch.Tensor, layer: tuple[torch.Tensor, torch.Tensor], chosen: Range) -> float:
    """Decibels of one convolution's output on symmetric INT8 inputs."""
    weights, bias = layer
    scale = chosen.magnitude / 127
    quantized = torch.clamp(torch.round(values / scale), -128, 127) * scale
    exact, got = (conv2d(x, weights, bias, padding=weights.shape[2] // 2) for x in (values, quantized))
    return float(10 * torch.log10((exact**2).sum() / ((exact - got) ** 2).sum()))


def layers(model: ir.Model) -> list[tuple[torch.Tensor, torch.Tensor]]:
    constants = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}
    return [
        tuple(torch.from_numpy(constants[f"{name}.{part}"]).double() for part in ("weight", "bias"))
        for name in ("conv1", "conv2")
    ]


def test_decibels_are_those_of_the_definition():
    model, _, images = tiny(int8_ranges)
    first, second = layers(model)
    given = torch.from_numpy(images).double()
    inner = torch.relu(conv2d(given, *first, padding=1))
    candidates = {"max": Range(-2.5, 2.5), "percentile": Range(-1.0, 1.0)}
    wide = {"max": Range(0.0, float(inner.max())), "percentile": Range(0.0, float(inner.max()) / 4)}
    found = measure_output_sqnr(model, {"images": candidates, "conv1.relu": wide}, TENSORRT, [images[:1], images[1:]])
    for method in ("max", "percentile"):
        # Float32 against double: some 140 dB, far below what 8 bits leave; scales rounded to half move it by 0.05.
        assert found["images"][method] == pytest.approx(by_hand(given, first, candidates[method]), abs=0.1)
        assert found["conv1.relu"][method] == pytest.approx(by_hand(inner, second, wide[method]), abs=0.1)
        assert found["images"][method] != pytest.approx(by_hand(given, first, Range(-1.5, 1.5)), abs=0.5)


@pytest.mark.parametrize(
    ("powers", "decibels"),
    [
        ([(1.0, 0.01)], 20),
        ([(4.0, 0.04), (1.0, 0.0)], 10 * math.log10(2 / 0.01)),  # the mean over readers, each by its own power
        ([(1.0, 0.0)], MOST_DECIBELS),
        ([(0.0, 0.0)], MOST_DECIBELS),
        ([(0.0, 1e-9)], 0),  # nothing should come out, and something does
        ([(1.0, 1e-30)], MOST_DECIBELS),
    ],
)
def test_decibels_of_powers(powers, decibels):
    assert _decibels(powers) == pytest.approx(decibels, abs=1e-9)  # double precision, and a logarithm


def test_a_range_that_covers_nothing_costs_everything(resnet18):
    histograms, _ = observe(resnet18.model, [resnet18.images])
    ranges = {name: choose_ranges(histogram, CalibrationSpec()) for name, histogram in histograms.items()}
    narrow = Range(0.0, ranges["layer2.0.relu"]["max"].high / 100)
    ranges["layer2.0.relu"] = ranges["layer2.0.relu"] | {"entropy": narrow}
    found = measure_output_sqnr(resnet18.model, ranges, ORT, [resnet18.images])
    assert found.keys() == ranges.keys()
    assert all(set(one) == set(RANGE_METHODS) for one in found.values())
    assert found["layer2.0.relu"]["entropy"] < 1  # nearly nothing is left
    sound = [
        value
        for name, one in found.items()
        for method, value in one.items()
        if (name, method) != ("layer2.0.relu", "entropy")
    ]
    # Eight bits: 20 dB where much is clipped, 50 where nothing is.
    assert min(sound) > 20
    assert max(sound) < 60


def test_the_model_is_left_alone(resnet18):
    histograms, _ = observe(resnet18.model, [resnet18.images])
    ranges = {name: choose_ranges(histogram, CalibrationSpec()) for name, histogram in histograms.items()}
    before = bytes_from_onnx(resnet18.model)
    measure_output_sqnr(resnet18.model, ranges, ORT, [resnet18.images])
    assert bytes_from_onnx(resnet18.model) == before


def test_auto_takes_the_best_method_of_each_tensor(resnet18):
    histograms, count = observe(resnet18.model, [resnet18.images])
    spec = CalibrationSpec(method="auto")
    ranges = {name: choose_ranges(histogram, spec) for name, histogram in histograms.items()}
    quality = measure_output_sqnr(resnet18.model, ranges, ORT, [resnet18.images])
    calibration = calibration_from(histograms, spec, source(count, ""), quality)
    for name, tensor in calibration.tensors.items():
        assert tensor.output_sqnr_db == quality[name]
        assert quality[name][tensor.method] == max(quality[name].values())
        assert calibration.range_of(name) == ranges[name][tensor.method]
    assert len({tensor.method for tensor in calibration.tensors.values()}) > 1


def test_other_methods_measure_nothing(resnet18):
    assert all(tensor.output_sqnr_db == {} for tensor in resnet18.calibration.tensors.values())
    assert {tensor.method for tensor in resnet18.calibration.tensors.values()} == {"percentile"}
