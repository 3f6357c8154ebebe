"""A model small enough to be damaged at every byte."""

import functools

import msgspec
import numpy as np
import onnx
import torch
from torch import nn

from resnet_deploy.export import export_onnx
from resnet_deploy.models import BasicBlock
from resnet_deploy.onnx_files import bytes_from_onnx
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


@functools.cache
def narrow_model() -> bytes:
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


def outside_the_weights(data: bytes) -> np.ndarray:
    """Positions of the bytes that are not the weights' own, of which most of the file consists."""
    outside = np.ones(len(data), bool)
    for tensor in onnx.load_from_string(data).graph.initializer:
        start = data.index(tensor.raw_data)
        outside[start : start + len(tensor.raw_data)] = False
    return np.flatnonzero(outside)


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[5].op_type = "Rely"
