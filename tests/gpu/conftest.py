"""A small network, built by the TensorRT that is here, for tests that need a GPU; skipped with the reason elsewhere."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from resnet_deploy.backends import find_backend
from resnet_deploy.capabilities import backend_status

BACKENDS = ("tensorrt", "tensorrt-rtx")
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@dataclass(frozen=True)
class Deployment:
    """An untrained ResNet-18 of ten classes at 64 pixels in FP16, and images for it, (16, 64, 64, 3) uint8."""

    bundle: Path
    images: np.ndarray


@pytest.fixture(scope="session", params=BACKENDS)
def deployment(request, tmp_path_factory):
    """Build the network with each flavour that can build and run here."""
    status = backend_status(find_backend(request.param))
    for verb, able in (("build", status.build), ("run", status.run)):
        if not able.ok:
            pytest.skip(f"{request.param} cannot {verb} here: {able.reason}")
    pytest.importorskip("torch", reason="it exports the network")
    from resnet_deploy.pipeline.building import BuildInputs, build
    from resnet_deploy.pipeline.exporting import export
    from resnet_deploy.pipeline.synthetic import synthetic_images
    from resnet_deploy.protocols import Silent
    from resnet_deploy.specs import BatchRange, BuildSpec, ExportSpec

    folder = tmp_path_factory.mktemp(request.param)
    spec = ExportSpec(architecture="resnet18", weights="none", num_classes=10, image_size=64, resize=64)
    exported = export(spec, folder / "resnet18.onnx", Silent())
    wanted = BuildSpec(backend=request.param, precision="fp16", batch=BatchRange(1, 4, 16))
    built = build(BuildInputs(exported.path), wanted, Silent())
    return Deployment(built.bundle.path, synthetic_images(exported.card.preprocess, 16))


@pytest.fixture(scope="session")
def torch_cuda():
    """PyTorch, where it sees the GPU too."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch sees no GPU")
    return torch


@pytest.fixture
def engine(deployment):
    """The engine, open."""
    from resnet_deploy.engine import load

    with load(deployment.bundle) as opened:
        yield opened
