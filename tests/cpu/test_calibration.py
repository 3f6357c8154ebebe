"""What is calibrated: from observed activations to ranges, and what is refused."""

from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from int8_subjects import (
    FLOAT32,
    FLOOR_DB,
    UINT8,
    Graph,
    Subject,
    calibrate,
    floor_db,
    int8_ranges,
    lower,
    make,
    source,
    tiny,
    with_scale,
)
from onnx import TensorProto, helper

from resnet_deploy.errors import DataError, ModelError
from resnet_deploy.onnx_files import bytes_from_onnx
from resnet_deploy.ort_session import open_session
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.quantize.calibrate import Calibration, calibration_from, memory_for, observe
from resnet_deploy.quantize.graph import observed_names, with_outputs
from resnet_deploy.quantize.observers import Histogram
from resnet_deploy.quantize.qdq import FORMS, insert_qdq
from resnet_deploy.quantize.ranges import choose_range
from resnet_deploy.specs import RANGE_METHODS, CalibrationSpec


@pytest.fixture(autouse=True, scope="module")
def two_threads():
    torch.set_num_threads(2)


# --- calibration


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return synthetic_images(UINT8, 12, seed=3)


def test_neither_batches_nor_order_change_a_calibration(resnet18, pictures):
    whole = calibrate(resnet18.model, [pictures]).to_json()
    split = [[pictures[:5], pictures[5:]], [pictures[i : i + 1] for i in range(12)], [pictures[::-1]]]
    assert [calibrate(resnet18.model, batches).to_json() == whole for batches in split] == [True] * 3
    assert calibrate(resnet18.model, [pictures[:11]]).to_json() != whole
    brighter = np.append(pictures[:11], np.maximum(pictures[11:], 1), axis=0)
    assert calibrate(resnet18.model, [brighter]).to_json() != whole


@pytest.mark.parametrize("preprocess", [UINT8, FLOAT32], ids=["uint8 input", "float32 input"])
def test_every_image_is_counted_as_a_session_of_its_own_gives_it(preprocess):
    """Each is larger than the one before: one counted for another shows in every histogram, the input's too."""
    model = make("resnet18", preprocess).model
    images = synthetic_images(preprocess, 8, seed=7)
    images = (images * np.linspace(0.2, 1, 8).reshape(8, 1, 1, 1)).astype(images.dtype)
    names = observed_names(model.graph)
    session = open_session(bytes_from_onnx(with_outputs(model, names)), threads=1)
    expected = {name: Histogram() for name in names}
    for image in images:
        for name, values in zip(names, session.run(names, {"images": image[None]}), strict=True):
            expected[name].update(values)
    for batches in ([images], [images[::-1]], [images[:3], images[3:]]):
        found, count = observe(model, batches)
        assert count == 8
        assert {name: one.digest for name, one in found.items()} == {name: one.digest for name, one in expected.items()}


def test_two_halves_merge_into_the_whole(resnet18, pictures):
    left, first = observe(resnet18.model, [pictures[:4]])
    right, second = observe(resnet18.model, [pictures[4:]])
    for name, histogram in left.items():
        histogram.merge(right[name])
    merged = calibration_from(left, CalibrationSpec(), source(first + second, ""))
    assert merged.to_json() == calibrate(resnet18.model, [pictures]).to_json()


def test_what_is_observed_is_what_pytorch_computes(resnet18, pictures):
    calibration = calibrate(resnet18.model, [pictures])
    normalised = (pictures / 255 - np.array(UINT8.mean)) / np.array(UINT8.std)
    seen = {}
    with torch.no_grad():
        x = torch.from_numpy(normalised).float().permute(0, 3, 1, 2)
        seen["images.normalized"] = x
        x = seen["conv1.relu"] = resnet18.network.relu(resnet18.network.bn1(resnet18.network.conv1(x)))
        block = resnet18.network.layer1[0]
        x = resnet18.network.maxpool(x)
        seen["layer1.0.conv2"] = block.branch(x)
        seen["layer1.0.relu"] = block(x)
    for name, values in seen.items():
        found = calibration.tensors[name]
        assert found.observed == pytest.approx((float(values.min()), float(values.max())), rel=1e-4, abs=1e-6), name
        assert found.values == values.numel()
        assert found.ranges["max"] == (min(0, found.observed[0]), max(0, found.observed[1]))
    assert calibration.source.images == 12
    assert set(calibration.tensors) == Graph(resnet18.lowered["onnxruntime"]).quantized_activations() - {
        "maxpool",  # these two take the range of what they pick from
        "flatten",
    }


def test_a_calibration_is_json_with_every_method(resnet18):
    text = resnet18.calibration.to_json()
    assert msgspec.json.decode(text, type=Calibration) == resnet18.calibration
    assert text.count(b"\n") > len(resnet18.calibration.tensors)  # for people, and for diffs
    for tensor in resnet18.calibration.tensors.values():
        assert set(tensor.ranges) == set(RANGE_METHODS)
        assert len(tensor.histogram_sha256) == 64


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_the_method_asked_for_is_the_range_used(method):
    histogram = Histogram()
    histogram.update(np.append(np.random.default_rng(0).standard_normal(20_000), 1000).astype(np.float32))
    spec = CalibrationSpec(method=method, percentile=99.0)
    calibration = calibration_from({"x": histogram}, spec, source(1, ""))
    assert calibration.range_of("x") == choose_range(histogram, method, 99.0)
    assert len({calibration.tensors["x"].ranges[other] for other in RANGE_METHODS}) == 3


def renamed(calibration: Calibration, old: str, new: str) -> Calibration:
    tensors = {new if name == old else name: tensor for name, tensor in calibration.tensors.items()}
    return msgspec.structs.replace(calibration, tensors=tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda c: renamed(c, "layer4.1.relu", "layer4.2.relu"), "layer4.1.relu", id="another depth"),
        pytest.param(
            lambda c: msgspec.structs.replace(c, tensors=c.tensors | {"layer5.0.relu": c.tensors["conv1.relu"]}),
            "layer5.0.relu",
            id="a tensor more",
        ),
        pytest.param(
            lambda c: msgspec.structs.replace(
                c, tensors={name: tensor for name, tensor in c.tensors.items() if name != "avgpool"}
            ),
            "avgpool",
            id="a tensor less",
        ),
        pytest.param(
            lambda c: msgspec.structs.replace(c, source=source(16, "0" * 64)), "weights are others", id="other weights"
        ),
    ],
)
@pytest.mark.parametrize("target", FORMS)
def test_the_calibration_of_another_model_is_refused(resnet18, change, message, target):
    with pytest.raises(ModelError, match=f"calibration is of another model.*{message}"):
        insert_qdq(resnet18.model, change(resnet18.calibration), FORMS[target])


def test_an_unknown_tensor_has_no_range(resnet18):
    with pytest.raises(ModelError, match="no tensor 'layer9'"):
        resnet18.calibration.range_of("layer9")


@pytest.mark.parametrize("batches", [[], [synthetic_images(UINT8, 1)[:0]]], ids=["no batch", "an empty batch"])
def test_no_image_is_a_data_error(resnet18, batches):
    with pytest.raises(DataError, match="no calibration images"):
        observe(resnet18.model, batches)


def test_a_model_without_convolutions_is_refused():
    node = helper.make_node("Relu", ["images"], ["logits"], "relu")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("images", "logits")]
    model = ir.from_proto(helper.make_model(helper.make_graph([node], "none", values[:1], values[1:])))
    with pytest.raises(ModelError, match="no convolutions"):
        observe(model, [np.zeros((1, 3), np.float32)])


# --- numbers that are none


def with_constant(subject: Subject, name: str, value: float) -> ir.Model:
    model = subject.model.clone()
    array = model.graph.initializers[name].const_value.numpy().copy()
    array.flat[0] = value
    model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return model


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite_are_refused(resnet18, value):
    model = with_constant(resnet18, "layer2.0.conv1.bias", value)
    with pytest.raises(ModelError, match=r"calibration image 1: tensor layer2\.0\.conv1\.relu has a value that is not"):
        observe(model, [resnet18.images])


def test_each_tensor_has_memory_of_its_own_along_the_lines_of_the_cache():
    outputs = [SimpleNamespace(name=str(shape), shape=shape) for shape in (["batch", 3, 5], ["batch", 1], [1, 7, 16])]
    memory = memory_for(outputs)
    assert [(name, array.shape) for name, array in memory.items()] == [
        (one.name, (1, *one.shape[1:])) for one in outputs
    ]
    for value, array in enumerate(memory.values()):
        assert array.ctypes.data % 64 == 0
        array[:] = value
    assert [set(array.ravel().tolist()) for array in memory.values()] == [{0}, {1}, {2}]
    with pytest.raises(ModelError, match="tensor 'odd' has no fixed shape"):
        memory_for([*outputs, SimpleNamespace(name="odd", shape=["batch", "channels"])])


@pytest.mark.parametrize("size", [2**45, 2**70, 2**2000])
def test_activations_that_no_memory_holds_are_refused(size):
    with pytest.raises(ModelError, match=r"the activations of an image take [\d,.]+ GB"):
        memory_for([SimpleNamespace(name="one", shape=["batch", size])])


def test_the_image_that_made_them_is_named():
    model, _, images = tiny(int8_ranges)
    images[1, 0, 0, 0] = np.nan
    with pytest.raises(ModelError, match="calibration image 2: tensor images"):
        observe(model, [images])


@pytest.mark.parametrize("target", FORMS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer2.0.conv1.weight", np.nan),
        ("layer2.0.conv1.weight", np.inf),
        ("layer2.0.conv1.bias", np.nan),
        ("fc.weight", np.nan),
        ("fc.bias", np.nan),
    ],
)
def test_weights_that_are_not_finite_are_refused(resnet18, target, value, name):
    with pytest.raises(ModelError, match=name.rpartition(".")[0]):
        lower(with_constant(resnet18, name, value), resnet18.calibration, FORMS[target])


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_values_beyond_any_half_scale_are_refused(resnet18, target):
    with pytest.raises(ModelError, match=r"layer2\.0\.conv1\.weight has values that no float16 scale covers"):
        lower(with_constant(resnet18, "layer2.0.conv1.weight", 1e7), resnet18.calibration, FORMS[target])
    tensors = resnet18.calibration.tensors
    huge = msgspec.structs.replace(tensors["layer1.0.relu"], ranges=dict.fromkeys(RANGE_METHODS, (0.0, 65504.0 * 128)))
    calibration = msgspec.structs.replace(resnet18.calibration, tensors=tensors | {"layer1.0.relu": huge})
    with pytest.raises(ModelError, match=r"layer1\.0\.relu has values that no float16 scale covers"):
        lower(resnet18.model, calibration, FORMS[target])


# --- normalised tensors as the input


def test_every_form_of_a_network_with_normalised_input():
    subject = make("resnet18", FLOAT32)
    assert subject.calibration.tensors["images"].observed == (
        float(synthetic_images(FLOAT32, 16).min()),
        float(synthetic_images(FLOAT32, 16).max()),
    )
    for target, data in subject.lowered.items():
        onnx.checker.check_model(data, full_check=True)
        assert "images" in {name.removesuffix(".half") for name in Graph(data).quantized_activations()}, target
        assert floor_db(target) < subject.sqnr_db(data) < 40, target
        assert subject.sqnr_db(with_scale(data, "images", 1 / 8)) < FLOOR_DB - 1, target
