"""ResNet-18 to ResNet-152 and their plain twins, with torchvision's module names.

The networks of He et al. (https://arxiv.org/abs/1512.03385) in the form that everybody trains, "v1.5": a bottleneck
that halves the resolution does so in its 3x3 convolution, not in the 1x1 before it. The plain twins are the paper's
control experiment: the same layers without shortcuts, which also makes them a test bed for what shortcuts cost an
engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from resnet_deploy.checkpoints import (
    Published,
    download_imagenet,
    find_published,
    fit_state_dict,
    read_state_dict,
    recognise_published,
    state_dict_digest,
)
from resnet_deploy.errors import SpecError, WeightsError
from resnet_deploy.imagenet import CLASSES as IMAGENET_CLASSES
from resnet_deploy.imagenet import imagenet_classes
from resnet_deploy.protocols import Progress, Silent
from resnet_deploy.specs import MAX_CLASSES, require_classes

SILENT: Final = Silent()


class Block(nn.Module):
    """Two or three convolutions whose result is added to what went in.

    Args:
        in_channels: Channels of the input.
        width: Channels inside; ``width * expansion`` come out.
        stride: Factor by which the resolution shrinks.
        shortcuts: False for a plain block, which adds nothing.
    """

    expansion: ClassVar[int]
    relu: nn.ReLU
    downsample: nn.Sequential | None

    def __init__(self, in_channels: int, width: int, stride: int, *, shortcuts: bool) -> None:
        super().__init__()
        self.shortcuts = shortcuts

    def branch(self, x: Tensor) -> Tensor:
        """Compute what is added to the input."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, width * expansion, H / stride, W / stride)."""
        y = self.branch(x)
        if self.shortcuts:
            y = y + (x if self.downsample is None else self.downsample(x))
        out: Tensor = self.relu(y)
        return out


class BasicBlock(Block):
    """Two 3x3 convolutions; the block of ResNet-18 and 34."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, *, shortcuts: bool) -> None:
        super().__init__(in_channels, width, stride, shortcuts=shortcuts)
        self.conv1 = convolution(3, in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = convolution(3, width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = projection(in_channels, width, stride) if shortcuts else None

    def branch(self, x: Tensor) -> Tensor:
        """Convolve twice."""
        x = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.bn2(self.conv2(x))
        return out


class Bottleneck(Block):
    """A 3x3 convolution between two 1x1 that narrow and widen; the block of ResNet-50, 101 and 152."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, *, shortcuts: bool) -> None:
        super().__init__(in_channels, width, stride, shortcuts=shortcuts)
        out_channels = width * self.expansion
        self.conv1 = convolution(1, in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(3, width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(1, width, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride) if shortcuts else None

    def branch(self, x: Tensor) -> Tensor:
        """Narrow, convolve, widen."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.bn3(self.conv3(x))
        return out


def convolution(kernel: int, in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Make a convolution that keeps the resolution at stride 1; the BatchNorm after it has the bias."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Make the 1x1 convolution that fits a shortcut to its branch, where the shapes differ."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(convolution(1, in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


@dataclass(frozen=True)
class Design:
    """What tells one architecture from another: its block, the number of blocks in each stage, and the shortcuts."""

    block: type[Block]
    depths: tuple[int, int, int, int]
    shortcuts: bool = True


DESIGNS: Final[Mapping[str, Design]] = {
    "resnet18": Design(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Design(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Design(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Design(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Design(Bottleneck, (3, 8, 36, 3)),
    "plain18": Design(BasicBlock, (2, 2, 2, 2), shortcuts=False),
    "plain34": Design(BasicBlock, (3, 4, 6, 3), shortcuts=False),
}
ARCHITECTURES: Final[tuple[str, ...]] = tuple(DESIGNS)


class ResNet(nn.Module):
    """A stem, four stages of blocks, and a linear classifier; freshly made, it is untrained and in training mode.

    Args:
        design: The architecture.
        num_classes: Width of the logits.
    """

    def __init__(self, design: Design, num_classes: int = IMAGENET_CLASSES) -> None:
        super().__init__()
        self.conv1 = convolution(7, 3, 64, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = stage(design, 1)
        self.layer2 = stage(design, 2)
        self.layer3 = stage(design, 3)
        self.layer4 = stage(design, 4)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * design.block.expansion, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W) to logits (N, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def stage(design: Design, number: int) -> nn.Sequential:
    """Chain the blocks of stage 1 to 4; every stage but the first halves the resolution and doubles the channels."""
    width = 32 << number
    channels = width * design.block.expansion
    entry = (64, 1) if number == 1 else (channels // 2, 2)
    entries = [entry] + [(channels, 1)] * (design.depths[number - 1] - 1)
    return nn.Sequential(
        *(design.block(in_channels, width, stride, shortcuts=design.shortcuts) for in_channels, stride in entries)
    )


@dataclass(frozen=True)
class LoadedModel:
    """A network ready for inference, and what a ``ModelCard`` wants to know about it.

    Attributes:
        module: The network, in evaluation mode, in FP32 on the CPU.
        architecture: Name in ``ARCHITECTURES``.
        num_classes: Width of the logits.
        weights: ``imagenet``, ``imagenet-v1``, ``none``, or the checkpoint's file name.
        weights_sha256: ``state_dict_digest`` of the network.
        resize: The shorter side that images are resized to, as the accuracy of these weights was published.
        labels: Class names, in the order of the logits; empty when unknown.
        folders: Synsets, in the same order; empty when unknown.
    """

    module: ResNet
    architecture: str
    num_classes: int
    weights: str
    weights_sha256: str
    resize: int = 256
    labels: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


def create_model(architecture: str, num_classes: int = IMAGENET_CLASSES, *, seed: int = 0) -> ResNet:
    """Make an untrained network, in training mode; the same seed gives the same weights.

    Raises:
        SpecError: If there is no such architecture, or the number of classes is out of range.
    """
    design = find_design(architecture)
    require_classes(num_classes)
    with torch.random.fork_rng(devices=[]):
        # The CPU's generator alone: torch.manual_seed would reseed every GPU as well, and fork_rng not restore them.
        torch.default_generator.manual_seed(seed)
        return ResNet(design, num_classes)


def load_model(
    architecture: str,
    weights: str | Path | None = None,
    *,
    num_classes: int | None = None,
    progress: Progress = SILENT,
) -> LoadedModel:
    """Make a network with weights that are published, one's own, or untrained.

    Args:
        architecture: Name in ``ARCHITECTURES``.
        weights: ``imagenet`` for torchvision's best, ``imagenet-v1`` for its first, ``none`` or None for untrained
            ones, or the path of a checkpoint.
        num_classes: Number of classes expected; by default the checkpoint's, or 1000 where untrained.
        progress: Shows the download.

    Raises:
        SpecError: If there is no such architecture, or the number of classes makes no sense.
        FileError: If the checkpoint is missing or cannot be read.
        WeightsError: If the weights cannot be had, are damaged, or do not fit the architecture.
    """
    find_design(architecture)
    name = "none" if weights is None else str(weights)
    if name == "none":
        classes = IMAGENET_CLASSES if num_classes is None else num_classes
        return _describe(create_model(architecture, classes).eval(), architecture, name)
    if name in ("imagenet", "imagenet-v1"):
        if num_classes not in (None, IMAGENET_CLASSES):
            raise SpecError(
                f"the {name} weights have {IMAGENET_CLASSES} classes, not {num_classes}",
                hint="leave the number of classes out, or use --weights PATH with a checkpoint of that many",
            )
        path = download_imagenet(architecture, name, progress)
        loaded = _describe(_module_from_file(architecture, path, IMAGENET_CLASSES), architecture, name)
        return _as_published(loaded, find_published(architecture, name))
    path = Path(name)
    loaded = _describe(_module_from_file(architecture, path, num_classes), architecture, path.name)
    published = recognise_published(architecture, path)
    return _as_published(loaded, published) if published is not None else loaded


def resnet18(
    weights: str | Path | None = None, *, num_classes: int | None = None, progress: Progress = SILENT
) -> ResNet:
    """Make a ResNet-18 in evaluation mode; see ``load_model``."""
    return load_model("resnet18", weights, num_classes=num_classes, progress=progress).module


def resnet34(
    weights: str | Path | None = None, *, num_classes: int | None = None, progress: Progress = SILENT
) -> ResNet:
    """Make a ResNet-34 in evaluation mode; see ``load_model``."""
    return load_model("resnet34", weights, num_classes=num_classes, progress=progress).module


def resnet50(
    weights: str | Path | None = None, *, num_classes: int | None = None, progress: Progress = SILENT
) -> ResNet:
    """Make a ResNet-50 in evaluation mode; see ``load_model``."""
    return load_model("resnet50", weights, num_classes=num_classes, progress=progress).module


def resnet101(
    weights: str | Path | None = None, *, num_classes: int | None = None, progress: Progress = SILENT
) -> ResNet:
    """Make a ResNet-101 in evaluation mode; see ``load_model``."""
    return load_model("resnet101", weights, num_classes=num_classes, progress=progress).module


def resnet152(
    weights: str | Path | None = None, *, num_classes: int | None = None, progress: Progress = SILENT
) -> ResNet:
    """Make a ResNet-152 in evaluation mode; see ``load_model``."""
    return load_model("resnet152", weights, num_classes=num_classes, progress=progress).module


def plain18(
    weights: str | Path | None = None, *, num_classes: int | None = None, progress: Progress = SILENT
) -> ResNet:
    """Make a ResNet-18 without shortcuts in evaluation mode; see ``load_model``."""
    return load_model("plain18", weights, num_classes=num_classes, progress=progress).module


def plain34(
    weights: str | Path | None = None, *, num_classes: int | None = None, progress: Progress = SILENT
) -> ResNet:
    """Make a ResNet-34 without shortcuts in evaluation mode; see ``load_model``."""
    return load_model("plain34", weights, num_classes=num_classes, progress=progress).module


def find_design(architecture: str) -> Design:
    """Look up an architecture.

    Raises:
        SpecError: If there is none of that name.
    """
    try:
        return DESIGNS[architecture]
    except KeyError:
        known = ", ".join(ARCHITECTURES)
        raise SpecError(f"unknown architecture {architecture!r}", hint=f"choose one of: {known}") from None


def _as_published(loaded: LoadedModel, published: Published) -> LoadedModel:
    """Add what is known of a checkpoint of torchvision's, however it came here."""
    folders, labels = zip(*imagenet_classes(), strict=True)
    return replace(loaded, resize=published.resize, labels=labels, folders=folders)


def _describe(module: ResNet, architecture: str, weights: str) -> LoadedModel:
    digest = state_dict_digest(module.state_dict())
    return LoadedModel(module, architecture, module.fc.out_features, weights, digest)


def _module_from_file(architecture: str, path: Path, num_classes: int | None) -> ResNet:
    """Build the network around the tensors of a checkpoint, once nothing about them is in doubt."""
    state, source = read_state_dict(path), path.name
    alike = _recognise(state)
    if alike not in (None, architecture):
        raise WeightsError(
            f"{source} is not a checkpoint of {architecture}: it looks like {alike}", hint=f"use --arch {alike}"
        )
    head = state.get("fc.weight")
    found = IMAGENET_CLASSES if head is None or not len(head.shape) else head.shape[0]
    if not 1 <= found <= MAX_CLASSES:
        raise WeightsError(
            f"{source} has {found} classes", hint=f"give a checkpoint whose fc has 1 to {MAX_CLASSES} classes"
        )
    if head is not None and num_classes not in (None, found):
        raise WeightsError(
            f"{source} has {found} classes, not {num_classes}",
            hint="leave the number of classes out: it is read from the checkpoint",
        )
    with torch.device("meta"):  # neither memory nor initialisation: the checkpoint's tensors take their places
        module = ResNet(DESIGNS[architecture], found)
    expected = module.state_dict()
    # Inference has no use for these counters; checkpoints from before PyTorch 0.4.1 lack them, halved ones have them in
    # floating point.
    counters = {name: torch.tensor(0) for name in expected if name.endswith("num_batches_tracked")}
    module.load_state_dict(fit_state_dict(dict(state) | counters, expected, source, architecture), assign=True)
    return module.eval()


def _recognise(state: Mapping[str, Tensor]) -> str | None:
    """Tell which architecture a checkpoint is of, by its block, its depths and its shortcuts; None if none of ours."""
    if "layer1.0.conv2.weight" not in state or state["layer1.0.conv2.weight"].shape != (64, 64, 3, 3):
        return None  # ResNeXt and wide ResNets have the same names
    block = Bottleneck if "layer1.0.conv3.weight" in state else BasicBlock
    depths = tuple(
        len({name.split(".")[1] for name in state if name.startswith(prefix)})
        for prefix in ("layer1.", "layer2.", "layer3.", "layer4.")
    )
    shortcuts = any(".downsample." in name for name in state)
    found = (block, depths, shortcuts)
    return next((name for name, one in DESIGNS.items() if (one.block, one.depths, one.shortcuts) == found), None)
