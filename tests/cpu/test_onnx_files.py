"""ONNX files of unknown origin: what is read back, and what is refused before anything builds on it."""

import hashlib
import shutil
import struct

import msgspec
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from resnet_deploy import onnx_files
from resnet_deploy.environment import probe_cpu
from resnet_deploy.errors import BuildError, ModelError
from resnet_deploy.export import export_onnx
from resnet_deploy.models import BasicBlock
from resnet_deploy.onnx_files import (
    CARD_KEY,
    attach_card,
    bytes_from_onnx,
    check_onnx,
    onnx_from_bytes,
    read_card,
    read_exported,
    split_weights,
)
from resnet_deploy.ort_session import open_session
from resnet_deploy.pipeline import lowering
from resnet_deploy.pipeline.building import RANDOM, BuildInputs, build
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.protocols import Silent
from resnet_deploy.specs import BuildSpec, CalibrationSpec, ModelCard, Precision, Preprocess

CLASSES = 3
CONTRACT = Preprocess(image_size=16, resize=16)
CARD = ModelCard(
    architecture="resnet18",
    num_classes=CLASSES,
    weights="none",
    weights_sha256="0" * 64,
    labels=tuple(f"Klasse {index} \N{GREEK SMALL LETTER ALPHA}" for index in range(CLASSES)),
    preprocess=CONTRACT,
)


class Narrow(nn.Module):
    """Every kind of layer of a ResNet, in so few channels that its file can be damaged and read a thousand times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(2)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = BasicBlock(2, 2, 1, shortcuts=True)
        self.layer2 = BasicBlock(2, 4, 2, shortcuts=True)
        self.avgpool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.fc(self.avgpool(self.layer2(self.layer1(features))).flatten(1))


@pytest.fixture(scope="module")
def narrow() -> bytes:
    """An exported model of a few kilobytes, in which no two tensors are alike."""
    torch.manual_seed(0)
    network = Narrow()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.bias, -0.2, 0.2)
    return bytes_from_onnx(export_onnx(network.eval(), CARD))


def changed(data: bytes, change) -> bytes:
    """The file after ``change`` was made to its parsed content."""
    model = onnx.load_from_string(data)
    change(model)
    return model.SerializeToString()


def with_card(data: bytes, **changes: object) -> bytes:
    """The same graph under another card."""

    def write(model: onnx.ModelProto) -> None:
        card = msgspec.structs.replace(msgspec.json.decode(model.metadata_props[0].value, type=ModelCard), **changes)
        model.metadata_props[0].value = msgspec.json.encode(card).decode()

    return changed(data, write)


def test_the_card_comes_back(narrow):
    model, card = read_exported(narrow, name="model.onnx")
    assert card == read_card(model, name="model.onnx")
    assert msgspec.structs.replace(card, initializers_sha256="") == CARD
    assert bytes_from_onnx(model) == narrow


def test_a_session_takes_large_constants_from_where_they_are(narrow, monkeypatch):
    monkeypatch.setattr(onnx_files, "_LARGE", 64)  # this file's are all small
    model, card = read_exported(narrow, name="model.onnx")
    graph, weights = split_weights(model)
    images = synthetic_images(card.preprocess, 2)
    large = {name for name, value in model.graph.initializers.items() if value.const_value.nbytes >= 64}
    assert set(weights) == large
    assert len(large) > 3
    (expected,) = open_session(narrow).run(["logits"], {"images": images})
    for as_written in (False, True):
        (found,) = open_session(graph, weights, as_written=as_written).run(["logits"], {"images": images})
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    half = {name: array / 2 for name, array in weights.items()}
    (wrong,) = open_session(graph, half).run(["logits"], {"images": images})
    assert not np.allclose(wrong, expected, rtol=1e-2, atol=1e-3)
    with pytest.raises(BuildError, match="refuses the model"):
        open_session(graph)
    assert bytes_from_onnx(model) == narrow


def test_the_card_names_the_weights_in_the_file(narrow):
    digest = hashlib.sha256()
    for tensor in sorted(onnx.load_from_string(narrow).graph.initializer, key=lambda one: one.name):
        digest.update(f"{tensor.name} float32 {tuple(tensor.dims)}\n".encode() + tensor.raw_data)
    assert read_exported(narrow, name="model.onnx")[1].initializers_sha256 == digest.hexdigest()


def test_a_new_card_replaces_the_old(narrow):
    model = onnx_from_bytes(narrow, name="copy")
    other = msgspec.structs.replace(CARD, preprocess=Preprocess(image_size=16, resize=20))
    attach_card(model, other)
    assert read_card(onnx_from_bytes(bytes_from_onnx(model), name="copy"), name="copy") == other != CARD


@pytest.mark.parametrize(
    ("writer", "said"),
    [("9.0", r"was written by resnet-deploy 9\.0, and this is .*weather"), ("", "damaged model card")],
)
def test_a_card_with_a_field_more_is_of_another_version_if_the_file_is(narrow, writer, said):
    def change(model):
        model.producer_version = writer or model.producer_version
        model.metadata_props[0].value = model.metadata_props[0].value[:-1] + ',"weather":"fair"}'

    with pytest.raises(ModelError, match=said) as refused:
        read_exported(changed(narrow, change), name="model.onnx")
    assert ("use that version" in refused.value.hint) == bool(writer)


PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + bytes(17)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"architecture: resnet18\n" * 20, id="text"),
        pytest.param(PNG, id="png"),
        pytest.param(bytes(1000), id="zeros"),
        pytest.param(b"PK\x03\x04" + bytes(range(256)), id="a checkpoint"),
        pytest.param(onnx.ModelProto(ir_version=10).SerializeToString(), id="ONNX without a graph"),
    ],
)
def test_what_is_not_onnx_is_refused(content):
    with pytest.raises(ModelError, match="not an ONNX file") as caught:
        read_exported(content, name="holiday.onnx")
    assert caught.value.message.startswith("holiday.onnx")
    assert "\n" not in caught.value.message + caught.value.hint


def cut_points(data: bytes) -> list[int]:
    """Lengths inside the graph, and around the boundary of every field after it, where a parser notices nothing."""
    whole = onnx.load_from_string(data)
    rest = onnx.ModelProto(opset_import=whole.opset_import, metadata_props=whole.metadata_props)
    tail = len(data) - len(rest.SerializeToString())
    opset = len(onnx.ModelProto(opset_import=whole.opset_import).SerializeToString())
    edges = [tail - 1, tail, tail + 1, tail + opset - 1, tail + opset, tail + opset + 1, len(data) - 1]
    return [1, 2, 10, 1000, len(data) // 2, *edges]


def test_a_file_cut_short_is_refused_wherever_it_was_cut(narrow):
    for length in cut_points(narrow):
        with pytest.raises(ModelError) as caught:
            read_exported(narrow[:length], name="cut.onnx")
        assert caught.value.message.startswith("cut.onnx")
        assert "\n" not in caught.value.message
    read_exported(narrow, name="whole.onnx")


def test_weights_in_other_files_are_refused(narrow):
    def move_out(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[5]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")

    with pytest.raises(ModelError, match="weights in other files"):
        onnx_from_bytes(changed(narrow, move_out), name="model.onnx")


def outside_the_weights(data: bytes) -> np.ndarray:
    """Positions of the bytes that are not the weights' own, of which most of the file consists."""
    outside = np.ones(len(data), bool)
    for tensor in onnx.load_from_string(data).graph.initializer:
        start = data.index(tensor.raw_data)
        outside[start : start + len(tensor.raw_data)] = False
    return np.flatnonzero(outside)


def push_through(data: bytes) -> None:
    """Do what a build does to a file before its backend sees it, in two precisions."""
    model, _ = read_exported(data, name="model.onnx")
    for precision in ("fp32", "fp16"):
        spec = BuildSpec(backend="onnxruntime", precision=precision)
        lowered = lowering.lower(lowering.Recipe(model, spec, probe_cpu())).model
        check_onnx(bytes_from_onnx(lowered), name="lowered.onnx")


def test_damage_anywhere_is_a_model_error_or_goes_to_the_backend(narrow, caplog):
    """Bytes overwritten at random: what is still a sound graph is the backend's to refuse; nothing else may escape."""
    positions, generator = outside_the_weights(narrow), np.random.default_rng(0)
    assert 3000 < len(positions) < len(narrow)
    passed, refusals = 0, []
    for _ in range(1500):
        damaged = bytearray(narrow)
        for position in generator.choice(positions, generator.integers(1, 4)):
            damaged[position] = generator.integers(256)
        try:
            push_through(bytes(damaged))
            passed += 1
        except ModelError as error:
            refusals.append(error.message)
    assert passed + len(refusals) == 1500
    assert min(passed, len(refusals)) > 40
    for kind in ("cut short", "not UTF-8", "topologically sorted", "ShapeInferenceError", "damaged model card"):
        assert any(kind in message for message in refusals), kind
    assert not any("\n" in message or len(message) > 300 for message in refusals)
    assert "cannot be found in any scope" not in caplog.text  # what onnx_ir says of a graph that nobody has checked


def of_another_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[3].data_type = onnx.TensorProto.INT32


def of_no_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 99


def too_short(model: onnx.ModelProto) -> None:
    model.graph.initializer[3].raw_data = model.graph.initializer[3].raw_data[:-1]


def of_nothing(model: onnx.ModelProto) -> None:
    model.graph.node[5].input[0] = "nothing"


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[5].op_type = "Rely"


def another_shape(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = CLASSES + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_another_type, r"Inferred elem type differs from existing elem type: \(6\) vs \(1\)"),
        (of_no_type, "Invalid tensor data type 99"),
        (too_short, r"raw_data size \(\d+ bytes\) is too small"),
        (of_nothing, "input 'nothing' of node: name: .* is not output of any previous nodes"),
        (unknown_operator, "No Op registered for Rely"),
        (another_shape, r"Inferred shape and existing shape differ in dimension 1: \(3\) vs \(4\)"),
    ],
)
def test_a_graph_that_is_not_sound_is_refused_with_the_checkers_reason(narrow, change, message):
    with pytest.raises(ModelError, match=f"model.onnx is not valid ONNX: .*{message}") as caught:
        onnx_from_bytes(changed(narrow, change), name="model.onnx")
    assert "\n" not in caught.value.message
    assert "resnet-deploy export" in caught.value.hint


@pytest.mark.parametrize(
    "field",
    [b"resnet-deploy", b"layer1.conv1.weight", b"SAME_LOWER", b"batch"],
    ids=["producer", "tensor", "attribute", "dimension"],
)
def test_a_name_that_is_not_text_is_refused(narrow, field):
    """Protobuf parses it, and onnx_ir, which reads it too, could not write it again."""

    def pad_otherwise(model: onnx.ModelProto) -> None:
        pool = next(node for node in model.graph.node if node.op_type == "MaxPool")
        next(one for one in pool.attribute if one.name == "auto_pad").s = b"SAME_LOWER"

    data = changed(narrow, pad_otherwise)
    onnx_from_bytes(data, name="model.onnx")
    damaged = data.replace(field, b"\xbb" + field[1:])
    assert damaged != data
    with pytest.raises(ModelError, match=r"model\.onnx is a damaged ONNX file: it holds a name that is not UTF-8"):
        onnx_from_bytes(damaged, name="model.onnx")


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


# --- what only the backend can tell


@pytest.mark.parametrize(
    ("precision", "error", "message"),
    [
        ("fp32", BuildError, r"ONNX Runtime refuses the model: .*bias"),
        ("fp16", BuildError, r"ONNX Runtime refuses the model: .*bias"),
        ("int8", ModelError, r"layer1\.conv2 has a bias of \d values for \d channels"),  # equalization reads them first
    ],
)
def test_a_graph_that_cannot_run_is_an_error(narrow, build_from, tmp_path, capfd, precision, error, message):
    """The checker does not compare the length of a bias with the channels of its convolution."""

    def exchange_biases(model: onnx.ModelProto) -> None:
        first, second = (node for node in model.graph.node if node.name in ("layer1.conv2", "layer2.conv1"))
        first.input[2], second.input[2] = second.input[2], first.input[2]

    data = changed(narrow, exchange_biases)
    read_exported(data, name="model.onnx")
    with pytest.raises(error, match=message) as caught:
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
