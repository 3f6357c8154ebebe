"""A model card held against its graph, its weights and itself, before an engine is built."""

import shutil

import msgspec
import numpy as np
import onnx
import pytest
from narrow_model import CLASSES, CONTRACT, changed, narrow_model, outside_the_weights, unknown_operator, with_card

from resnet_deploy.errors import BuildError, ModelError
from resnet_deploy.onnx_files import (
    CARD_KEY,
    attach_card,
    bytes_from_onnx,
    initializers_digest,
    onnx_from_bytes,
    read_card,
    read_exported,
)
from resnet_deploy.pipeline.building import RANDOM, BuildInputs, build
from resnet_deploy.protocols import Silent
from resnet_deploy.specs import BuildSpec, CalibrationSpec, Precision, Preprocess


@pytest.fixture(scope="module")
def narrow() -> bytes:
    return narrow_model()


# --- the card against the graph


def test_an_unchanged_file_is_built(narrow, build_from):
    assert build_from(narrow).bundle.manifest.card == read_exported(narrow, name="model.onnx")[1]
    assert build_from(with_card(narrow, labels=())).bundle.manifest.card.labels == ()


def rename(old: str, new: str):
    """Rename a tensor wherever it is named, so that the graph stays sound."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        for value in (*graph.input, *graph.output):
            value.name = new if value.name == old else value.name
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]

    return change


def extra_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, ["batch"]))


def extra_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(onnx.helper.make_tensor_value_info("flatten", onnx.TensorProto.FLOAT, ["batch", 4]))


def no_input(model: onnx.ModelProto) -> None:
    zeros = onnx.numpy_helper.from_array(np.zeros((1, *CONTRACT.shape), np.uint8), "images")
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["images"], value=zeros))
    del model.graph.input[:]


def misplace_biases(model: onnx.ModelProto) -> None:
    first, second = (node for node in model.graph.node if node.name in ("layer1.conv2", "layer2.conv1"))
    first.input[2], second.input[2] = second.input[2], first.input[2]


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8


def fixed_output_batch(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 8


def output_of_any_shape(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.ClearField("shape")


def output_of_any_width(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"


MISFITS = {
    "image size": (
        lambda data: with_card(data, preprocess=Preprocess(image_size=12, resize=16)),
        "is not what its model card says: input images has the shape 16x16x3 per image, not 12x12x3",
    ),
    "input dtype": (
        lambda data: with_card(data, preprocess=Preprocess(image_size=16, resize=16, dtype="float32", layout="NCHW")),
        "is not what its model card says: input images is uint8, not float32",
    ),
    "classes": (
        lambda data: with_card(data, num_classes=7, labels=()),
        "is not what its model card says: output logits has the shape 3 per image, not 7",
    ),
    "input name": (
        lambda data: changed(data, rename("images", "pixels")),
        "is not what its model card says: its input is called 'pixels', not 'images'",
    ),
    "output name": (
        lambda data: changed(data, rename("logits", "scores")),
        "is not what its model card says: its output is called 'scores', not 'logits'",
    ),
    "two inputs": (
        lambda data: changed(data, extra_input),
        "is not what its model card says: it has 2 inputs, not one",
    ),
    "fixed batch": (
        lambda data: changed(data, fixed_batch),
        "is not what its model card says: input images has a batch of 8, not one of any size",
    ),
    "another layer's bias": (
        lambda data: changed(data, misplace_biases),
        "is not what `export` writes: 'layer1.conv2' has a bias of shape (4,), not (2,)",
    ),
    "unknown operator": (
        lambda data: changed(data, unknown_operator),
        "is not valid ONNX: No Op registered for Rely",
    ),
    "no input": (
        lambda data: changed(data, no_input),
        "is not what its model card says: it has 0 inputs, not one",
    ),
    "two outputs": (
        lambda data: changed(data, extra_output),
        "is not what its model card says: it has 2 outputs, not one",
    ),
    "fixed batch of the output": (
        lambda data: changed(data, fixed_output_batch),
        "is not what its model card says: output logits has a batch of 8, not one of any size",
    ),
    "no output shape": (
        lambda data: changed(data, output_of_any_shape),
        "is not valid ONNX: Field 'shape' of 'type' is required but missing.",
    ),
    "symbolic classes": (
        lambda data: changed(data, output_of_any_width),
        "is not what its model card says: output logits has the shape classes per image, not 3",
    ),
}


@pytest.fixture
def build_from(tmp_path):
    """Build an engine of a file with this content."""

    def run(data: bytes, precision: Precision = "fp32", backend: str = "onnxruntime"):
        (tmp_path / "model.onnx").write_bytes(data)
        calibration = CalibrationSpec() if precision == "int8" else None
        spec = BuildSpec(backend=backend, precision=precision, calibration=calibration)
        inputs = BuildInputs(tmp_path / "model.onnx", calib=RANDOM if precision == "int8" else None)
        return build(inputs, spec, Silent())

    return run


@pytest.mark.parametrize(
    ("precision", "backend"), [("fp32", "onnxruntime"), ("int8", "onnxruntime"), ("fp16", "tensorrt-rtx")]
)
@pytest.mark.parametrize("misfit", MISFITS)
def test_a_graph_that_is_not_what_the_card_says_is_not_built(narrow, build_from, tmp_path, misfit, precision, backend):
    if backend == "tensorrt-rtx":
        pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    damage, message = MISFITS[misfit]
    with pytest.raises(ModelError) as caught:
        build_from(damage(narrow), precision, backend)
    assert caught.value.message.startswith(f"{tmp_path}/model.onnx {message}")
    assert "resnet-deploy export" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def resealed(data: bytes, change) -> bytes:
    """The file after ``change``, under a card that knows its constants."""
    model = onnx_from_bytes(changed(data, change), name="model.onnx")
    card = read_card(model, name="model.onnx")
    attach_card(model, msgspec.structs.replace(card, initializers_sha256=initializers_digest(model.graph)))
    return bytes_from_onnx(model)


def layer_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def constant_of(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    for value in [value for value in model.graph.value_info if value.name == name]:
        model.graph.value_info.remove(value)
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def computed_bias(model: onnx.ModelProto) -> None:
    """Of one value, for two channels: ONNX Runtime 1.22 would not notice."""
    value = onnx.numpy_helper.from_array(np.zeros(1, np.float32))
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["short"], value=value))
    layer_of(model, "layer1.conv2").input[2] = "short"


def empty_weights(model: onnx.ModelProto) -> None:
    weight = constant_of(model, "conv1.weight")
    weight.dims[1], weight.raw_data = 0, b""


def scalar_weights(model: onnx.ModelProto) -> None:
    """Of an operator that the checker does not know."""
    model.opset_import.add(domain="elsewhere", version=1)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1).reshape(()), "scalar"))
    inputs = ["images", "scalar", "fc.bias"]
    model.graph.node.append(onnx.helper.make_node("Conv", inputs, ["unread"], domain="elsewhere", name="a\nb"))


def broadcast_bias(model: onnx.ModelProto) -> None:
    constant_of(model, "fc.bias").dims[:] = [1, CLASSES]


def turned_weights(model: onnx.ModelProto) -> None:
    """Valid ONNX; passes take the first axis for the channels."""
    weight = constant_of(model, "fc.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).T.copy(), "fc.weight"))
    next(one for one in layer_of(model, "fc").attribute if one.name == "transB").i = 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (turned_weights, "'fc' has its weights the other way round, without transB"),
        (computed_bias, "'layer1.conv2' computes its weights or its bias"),
        (empty_weights, "'conv1' has weights of shape (2, 0, 3, 3)"),
        (scalar_weights, r"'a\nb' has weights of shape ()"),
        (broadcast_bias, "'fc' has a bias of shape (1, 3), not (3,)"),
    ],
)
def test_a_layer_that_is_none_is_refused(narrow, change, message):
    with pytest.raises(ModelError) as caught:
        read_exported(resealed(narrow, change), name="model.onnx")
    assert caught.value.message == f"model.onnx is not what `export` writes: {message}"


# --- what only the backend can tell


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_graph_that_cannot_run_is_an_error(narrow, build_from, tmp_path, capfd, precision):
    """The checker passes operators of domains that it does not know."""

    def move_elsewhere(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == "Relu").domain = "elsewhere"
        model.opset_import.add(domain="elsewhere", version=1)

    data = changed(narrow, move_elsewhere)
    read_exported(data, name="model.onnx")
    with pytest.raises(BuildError, match=r"ONNX Runtime refuses the model: .*elsewhere") as caught:
        build_from(data, precision)
    assert "\n" not in caught.value.message
    assert capfd.readouterr().err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


# --- the card against the weights


def rewrite_weights(data: bytes, name: str, rewrite) -> bytes:
    """The file with the constant ``name`` as ``rewrite`` has it."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(one for one in model.graph.initializer if one.name == name)
        tensor.CopyFrom(onnx.numpy_helper.from_array(rewrite(onnx.numpy_helper.to_array(tensor).copy()), name))

    return changed(data, change)


def one_bit(array: np.ndarray) -> np.ndarray:
    array.reshape(-1)[-1:].view(np.uint32)[:] ^= 1
    return array


def exchange_biases(model: onnx.ModelProto) -> None:
    """Two tensors of one shape take each other's place, by their names alone."""
    first, second = (one for one in model.graph.initializer if one.name in ("layer1.conv1.bias", "layer1.conv2.bias"))
    first.name, second.name = second.name, first.name


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: rewrite_weights(data, "fc.weight", lambda array: array[::-1].copy()), id="rows"),
        pytest.param(lambda data: rewrite_weights(data, "fc.bias", one_bit), id="the last bit of a bias"),
        pytest.param(lambda data: rewrite_weights(data, "mean", one_bit), id="the last bit of the mean"),
        pytest.param(lambda data: changed(data, exchange_biases), id="names"),
        pytest.param(lambda data: with_card(data, initializers_sha256="0" * 64), id="another digest"),
        pytest.param(lambda data: with_card(data, initializers_sha256=""), id="no digest"),
    ],
)
def test_weights_that_the_card_does_not_name_are_not_built(narrow, build_from, tmp_path, damage):
    damaged = damage(narrow)
    assert damaged != narrow
    with pytest.raises(ModelError, match=r"the weights in .*model\.onnx are not those that its model card") as caught:
        build_from(damaged)
    assert "resnet-deploy export" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_every_byte_of_the_weights_counts(narrow):
    others = set(outside_the_weights(narrow))
    inside = [position for position in range(len(narrow)) if position not in others]
    assert len(inside) > 1000
    for position in inside[::7]:
        damaged = bytearray(narrow)
        damaged[position] ^= 1
        with pytest.raises(ModelError, match="the weights in model"):
            read_exported(bytes(damaged), name="model.onnx")


def test_a_lowered_graph_is_not_an_exported_one(narrow, build_from, tmp_path):
    lowered = build_from(narrow, "fp16").bundle.engine_path.read_bytes()
    shutil.rmtree(tmp_path / "model-fp16-onnxruntime")
    with pytest.raises(ModelError, match="the weights in"):
        build_from(lowered, "fp16")


def test_how_the_weights_are_stored_does_not_matter(narrow):
    def store_otherwise(model: onnx.ModelProto) -> None:
        tensors = [onnx.TensorProto.FromString(one.SerializeToString()) for one in model.graph.initializer]
        for tensor in tensors:
            values = onnx.numpy_helper.to_array(tensor)
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values.ravel().tolist())
        del model.graph.initializer[:]
        model.graph.initializer.extend(reversed(tensors))

    stored = changed(narrow, store_otherwise)
    assert stored != narrow
    assert read_exported(stored, name="model.onnx")[1] == read_exported(narrow, name="model.onnx")[1]


# --- the card itself


TEXT = '{"architecture":"resnet18","num_classes":2,"weights":"none","weights_sha256":"","preprocess":{}}'


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"", id="empty"),
        pytest.param(TEXT[:40].encode(), id="cut short"),
        pytest.param(b"[]", id="another type"),
        pytest.param(TEXT.replace("2", '"two"').encode(), id="a wrong type"),
        pytest.param(TEXT.replace('"weights":"none",', "").encode(), id="a field missing"),
        pytest.param(TEXT.replace('"none"', '"none","spare":1').encode(), id="a field too many"),
        pytest.param(TEXT.replace("{}", '{"image_size":-3}').encode(), id="a senseless value"),
        pytest.param(TEXT.replace("2", '2,"labels":["one"]').encode(), id="one label for two classes"),
    ],
)
def test_a_damaged_card_is_refused(narrow, text):
    model = onnx.load_from_string(narrow)
    model.metadata_props[0].value = "?" * len(text)
    data = model.SerializeToString().replace(b"?" * len(text), text) if text else model.SerializeToString()
    with pytest.raises(ModelError, match="damaged model card") as caught:
        read_card(onnx_from_bytes(data, name="model.onnx"), name="model.onnx")
    assert "\n" not in caught.value.message


def test_the_intact_card_of_the_cases_above_is_read(narrow):
    model = onnx.load_from_string(narrow)
    model.metadata_props[0].value = TEXT
    assert read_card(onnx_from_bytes(model.SerializeToString(), name="m"), name="m").num_classes == 2


def test_a_model_of_another_tool_has_no_card(narrow):
    model = onnx.load_from_string(narrow)
    assert [entry.key for entry in model.metadata_props] == [CARD_KEY]
    del model.metadata_props[:]
    with pytest.raises(ModelError, match="no model card"):
        read_card(onnx_from_bytes(model.SerializeToString(), name="model.onnx"), name="model.onnx")
