"""A network with an accuracy to lose: a slim ResNet-18 trained in seconds on the handwritten digits of the example."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from slim import slim

from resnet_deploy.models import ResNet, create_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits" / "train.py"
EPOCHS = 4


@dataclass(frozen=True)
class Digits:
    """The network in evaluation mode, images it was trained on, and images held out, uint8 (N, 32, 32, 3), with labels.

    Shared by a whole session: tests copy what they change.
    """

    network: ResNet
    calibration: np.ndarray
    images: np.ndarray
    labels: np.ndarray

    def top1(self, logits: np.ndarray) -> float:
        return float((logits.argmax(1) == self.labels).mean())


def train_digits(folder: Path) -> Digits:
    """Write the digits into ``folder`` and train on them, the same network on the same machine every time."""
    torch.set_num_threads(2)
    example = load_example()
    example.write_images(folder)
    images, labels = example.read_images(folder / "train")
    example.create_model = lambda *which, seed: slim(create_model(*which, seed=seed))
    network = example.train(images, labels, example.Recipe(epochs=EPOCHS), architecture="resnet18")
    return Digits(network, images[::15], *example.read_images(folder / "val"))


def load_example():
    """Import the example from its file: it is no package."""
    spec = importlib.util.spec_from_file_location("digits_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
