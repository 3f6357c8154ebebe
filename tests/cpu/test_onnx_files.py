"""ONNX files of unknown origin: what is read back, and what is refused before anything builds on it."""

import struct

import msgspec
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from resnet_deploy.errors import FileError, ModelError
from resnet_deploy.export import export_onnx
from resnet_deploy.models import BasicBlock
from resnet_deploy.onnx_files import CARD_KEY, attach_card, bytes_from_onnx, load_onnx, onnx_from_bytes, read_card
from resnet_deploy.specs import ModelCard, Preprocess

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


def test_the_card_comes_back(narrow, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(narrow)
    model = load_onnx(path)
    assert read_card(model, name=str(path)) == CARD
    assert bytes_from_onnx(model) == narrow


def test_a_new_card_replaces_the_old(narrow):
    model = onnx_from_bytes(narrow, name="copy")
    other = msgspec.structs.replace(CARD, preprocess=Preprocess(image_size=16, resize=20))
    attach_card(model, other)
    assert read_card(onnx_from_bytes(bytes_from_onnx(model), name="copy"), name="copy") == other != CARD


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
def test_what_is_not_onnx_is_refused(content, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not an ONNX file") as caught:
        load_onnx(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message + caught.value.hint


def test_a_missing_file_is_refused(tmp_path):
    for path in (tmp_path / "absent.onnx", tmp_path):
        with pytest.raises(FileError) as caught:
            load_onnx(path)
        assert str(path) in caught.value.message


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
            read_card(onnx_from_bytes(narrow[:length], name="cut.onnx"), name="cut.onnx")
        assert caught.value.message.startswith("cut.onnx")
        assert "\n" not in caught.value.message
    read_card(onnx_from_bytes(narrow, name="whole.onnx"), name="whole.onnx")


def test_weights_in_other_files_are_refused(narrow):
    def move_out(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[5]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")

    with pytest.raises(ModelError, match="weights in other files"):
        onnx_from_bytes(changed(narrow, move_out), name="model.onnx")


def test_damage_anywhere_is_a_model_error_or_goes_to_the_backend(narrow):
    """Bytes overwritten at random: what still parses is the backend's to refuse; nothing else may escape."""
    data, generator = narrow, np.random.default_rng(0)
    parsed, refusals = 0, []
    for _ in range(400):
        damaged = bytearray(data)
        for position in generator.integers(0, len(data), 3):
            damaged[position] = generator.integers(256)
        try:
            read_card(onnx_from_bytes(bytes(damaged), name="model.onnx"), name="model.onnx")
            parsed += 1
        except ModelError as error:
            refusals.append(error.message)
    assert parsed + len(refusals) == 400
    assert min(parsed, len(refusals)) > 40
    for kind in ("cut short", "damaged ONNX", "damaged model card"):
        assert any(kind in message for message in refusals)
    assert not any("\n" in message for message in refusals)


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
        pytest.param(TEXT.replace("none", "n\xf6ne").encode("latin-1"), id="not UTF-8"),
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
