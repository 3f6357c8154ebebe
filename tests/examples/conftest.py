"""One small model and its engines, and what every test of an example needs to start it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@dataclass(frozen=True)
class Engines:
    """FP32 engines of an untrained ResNet-18 of ten classes at 32 pixels; shared by a run, changed by nobody."""

    onnxruntime: Path
    openvino: Path


@pytest.fixture(scope="session")
def engines(deployment, openvino_engine):
    """The run's deployment, as examples take it."""
    return Engines(deployment.engines["fp32"], openvino_engine)


@pytest.fixture(scope="session")
def noise():
    """Draw smooth colour noise, which an untrained network tells apart: (count, height, width, 3) uint8."""
    from PIL import Image

    def draw(count, height=32, width=32, seed=0):
        generator = np.random.default_rng(seed)
        coarse = generator.integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
        size = (width, height)
        return np.stack([np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC)) for one in coarse])

    return draw


@pytest.fixture
def example_path(monkeypatch):
    """Make an example's modules importable for one test, and give its folder: (name)."""

    def add(name):
        monkeypatch.syspath_prepend(str(EXAMPLES / name))
        return EXAMPLES / name

    return add
