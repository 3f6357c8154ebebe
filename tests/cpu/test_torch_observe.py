"""Calibration by PyTorch sees what ONNX Runtime's sees, to within rounding. Here it runs on PyTorch's CPU device."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from int8_subjects import FLOAT32, UINT8, make

from resnet_deploy.driver import Gpu, GpuProbe
from resnet_deploy.errors import BackendError, DataError, ModelError
from resnet_deploy.export import export_onnx
from resnet_deploy.models import create_model
from resnet_deploy.onnx_files import bytes_from_onnx
from resnet_deploy.ort_session import open_session
from resnet_deploy.pipeline import calibrating
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.quantize import calibrate
from resnet_deploy.quantize.equalize import equalize
from resnet_deploy.quantize.observers import Histogram
from resnet_deploy.quantize.ranges import choose_ranges
from resnet_deploy.quantize.torch_observe import TorchGraph, observe
from resnet_deploy.specs import CalibrationSpec, ModelCard


@pytest.fixture(scope="module")
def images():
    return synthetic_images(UINT8, 6, seed=3)


@pytest.fixture(scope="module")
def seen(resnet18, images):
    return observe(resnet18.model, [images], "cpu")


@pytest.mark.parametrize(
    ("architecture", "preprocess"), [("resnet18", UINT8), ("resnet50", FLOAT32), ("plain18", UINT8)]
)
def test_the_graph_computes_what_onnx_runtime_computes(architecture, preprocess):
    subject = make(architecture, preprocess)
    images = synthetic_images(preprocess, 2, seed=4)
    expected = open_session(subject.data).run(["logits"], {"images": images})[0]
    for model in (subject.model, equalize(subject.model)[0]):
        (found,) = TorchGraph(model, "cpu").run(images, ["logits"]).values()
        # FP32 sums in another order, up to 53 layers deep.
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_layers_without_a_bias_are_run_too(images):
    """The exporter leaves out biases that are all zero: those of an untrained network, and a classifier's."""
    network = create_model("resnet18", 10).eval()
    torch.nn.init.zeros_(network.fc.bias)
    card = ModelCard(architecture="resnet18", num_classes=10, weights="none", weights_sha256="", preprocess=UINT8)
    model = export_onnx(network, card)
    assert len(model.graph.node("fc").inputs) == len(model.graph.node("conv1").inputs) == 2
    found, _ = observe(model, [images[:2]], "cpu")
    assert list(found) == list(calibrate.observe(model, [images[:2]])[0])
    expected = open_session(bytes_from_onnx(model)).run(["logits"], {"images": images[:2]})[0]
    (logits,) = TorchGraph(model, "cpu").run(images[:2], ["logits"]).values()
    # FP32 sums in another order, 18 layers deep.
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_a_pooling_with_gaps_is_run_as_it_is(resnet18, images):
    dilated = resnet18.model.clone()
    for name, values in (("dilations", [2, 2]), ("pads", [2, 2, 2, 2])):
        dilated.graph.node("maxpool").attributes[name] = ir.AttrInt64s(name, values)
    expected = open_session(bytes_from_onnx(dilated)).run(["logits"], {"images": images[:2]})[0]
    (found,) = TorchGraph(dilated, "cpu").run(images[:2], ["logits"]).values()
    # FP32 sums in another order, 18 layers deep.
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4 * np.abs(expected).max())
    # The twin: without gaps it would be another answer.
    plain = open_session(resnet18.data).run(["logits"], {"images": images[:2]})[0]
    assert np.abs(plain - expected).max() > 1e-2 * np.abs(expected).max()


def test_ranges_are_the_same_within_rounding(resnet18, images, seen):
    expected, count = calibrate.observe(resnet18.model, [images])
    found, found_count = seen
    assert (list(found), found_count) == (list(expected), count)
    spec = CalibrationSpec()
    for name, histogram in found.items():
        other = expected[name]
        assert histogram.total == other.total
        assert (histogram.low, histogram.high) == pytest.approx((other.low, other.high), rel=1e-4)
        # A value moves to the next bin where rounding takes it over the edge: a few in a thousand, by one bin of 4096.
        assert histogram.exponent == other.exponent
        assert np.abs(histogram.counts - other.counts).sum() < 0.02 * other.total, name
        ranges, others = choose_ranges(histogram, spec), choose_ranges(other, spec)
        for method, chosen in ranges.items():
            assert (chosen.low, chosen.high) == pytest.approx((others[method].low, others[method].high), rel=0.01)


def test_other_images_give_another_result(resnet18, seen):
    """The twin: what is compared above tells one set of images from another."""
    other, _ = observe(resnet18.model, [synthetic_images(UINT8, 6, seed=30)], "cpu")
    assert all(
        np.abs(histogram.counts - other[name].counts).sum() > 0.05 * histogram.total
        for name, histogram in seen[0].items()
    )


def test_batches_order_and_shards_do_not_matter(resnet18, images, seen):
    expected = {name: histogram.digest for name, histogram in seen[0].items()}
    shuffled, _ = observe(resnet18.model, [images[4:], images[:1], images[1:4]], "cpu")
    assert {name: histogram.digest for name, histogram in shuffled.items()} == expected
    merged = {name: Histogram() for name in expected}
    for part in (images[:2], images[2:]):
        for name, histogram in observe(resnet18.model, [part], "cpu")[0].items():
            merged[name].merge(histogram)
    assert {name: histogram.digest for name, histogram in merged.items()} == expected


def test_tensorfloat_32_is_off_while_it_runs_and_as_it_was_after(resnet18, images, monkeypatch):
    flags = []
    run = TorchGraph.run

    def record(self, *arguments):
        flags.append(torch.backends.cudnn.allow_tf32)
        return run(self, *arguments)

    monkeypatch.setattr(TorchGraph, "run", record)
    before = torch.backends.cudnn.allow_tf32
    observe(resnet18.model, [images[:1]], "cpu")
    assert flags == [False]
    assert torch.backends.cudnn.allow_tf32 == before


# --- what is refused


def test_no_image_is_an_error(resnet18):
    with pytest.raises(DataError, match="no calibration images"):
        observe(resnet18.model, [], "cpu")


def test_a_value_that_is_not_finite_is_named(resnet18, images):
    broken = resnet18.model.clone()
    value = broken.graph.initializers["layer2.0.conv1.weight"]
    value.const_value = ir.tensor(np.full_like(value.const_value.numpy(), np.nan), name=value.name)
    with pytest.raises(ModelError, match=r"calibration image 1: tensor layer2\.0\.conv1\.relu has a value"):
        observe(broken, [images], "cpu")


@pytest.mark.parametrize(("node", "name", "value"), [("layer1.0.conv1", "group", 2), ("fc", "transB", 0)])
def test_another_form_of_an_operation_is_refused(resnet18, node, name, value):
    other = resnet18.model.clone()
    other.graph.node(node).attributes[name] = ir.AttrInt64(name, value)
    with pytest.raises(ModelError, match="such as no exported ResNet has"):
        TorchGraph(other, "cpu")


def test_what_pytorch_fails_with_is_one_line(resnet18, images, monkeypatch):
    def full(self, images, names):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nAnd more.")

    monkeypatch.setattr(TorchGraph, "run", full)
    with pytest.raises(BackendError, match=r"PyTorch failed on cpu: CUDA out of memory\. .* 2 GiB\.$") as caught:
        observe(resnet18.model, [images], "cpu")
    assert "--calib-device cpu" in caught.value.hint


def test_another_operation_is_refused(resnet18):
    other = resnet18.model.clone()
    other.graph.node("maxpool").op_type = "AveragePool"
    with pytest.raises(ModelError, match="maxpool is a AveragePool such as no exported ResNet has"):
        TorchGraph(other, "cpu")


def test_models_are_left_as_they_were(resnet18, images):
    before = bytes_from_onnx(resnet18.model)
    observe(resnet18.model, [images[:1]], "cpu")
    assert bytes_from_onnx(resnet18.model) == before


# --- where it runs


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(calibrating, "probe_gpu", lambda: GpuProbe((Gpu("a GPU", "9.0", 1),)))


def test_the_gpu_is_taken_where_pytorch_sees_one(gpu, monkeypatch):
    for available, found in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert calibrating.find_device("auto") == found
        assert calibrating.find_device("cpu") == "cpu"


def test_a_gpu_that_is_not_there_is_refused(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match=r"no GPU to calibrate on: PyTorch .* sees none") as caught:
        calibrating.find_device("cuda")
    assert "--calib-device" in caught.value.hint
    monkeypatch.setattr(calibrating, "probe_gpu", lambda: GpuProbe(reason="no driver"))
    with pytest.raises(BackendError, match="no GPU to calibrate on: no driver"):
        calibrating.find_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that PyTorch sees")
def test_a_gpu_sees_the_same(resnet18, images, seen):
    found, _ = observe(resnet18.model, [images], "cuda")
    for name, histogram in found.items():
        assert (histogram.low, histogram.high) == pytest.approx((seen[0][name].low, seen[0][name].high), rel=1e-4)
        assert np.abs(histogram.counts - seen[0][name].counts).sum() < 0.02 * histogram.total
