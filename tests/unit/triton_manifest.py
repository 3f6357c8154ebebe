"""Manifests of engines that were never built, for tests of what is made of them."""

from pathlib import Path

import msgspec
import numpy as np

from resnet_deploy.bundle import HashChain, Manifest, Measured, Requirements
from resnet_deploy.driver import GpuProbe
from resnet_deploy.environment import Cpu, Environment
from resnet_deploy.integrations.triton.config import Contents
from resnet_deploy.specs import BatchRange, BuildSpec, ModelCard, Preprocess

LABELS = ("tench", 'the "great" white\\shark', "Goldfisch für Übung")
FLOAT32 = {"dtype": "float32", "layout": "NCHW"}


def make_manifest(*, backend="onnxruntime", batch="1:8:64", labels=LABELS, spec=None, requires=None, **contract):
    """A manifest of three classes at 8 pixels."""
    preprocess = Preprocess(**{"image_size": 8, "resize": 9, **contract})
    engine = "model.plan" if backend.startswith("tensorrt") else "model.onnx"
    return Manifest(
        name="net",
        card=ModelCard(
            architecture="resnet18",
            num_classes=3,
            weights="x",
            weights_sha256="1" * 64,
            labels=labels,
            preprocess=preprocess,
        ),
        spec=BuildSpec(backend=backend, precision="fp16", batch=BatchRange.parse(batch), **(spec or {})),
        engine=engine,
        files={engine: "2" * 64},
        chain=HashChain(weights="", onnx="", lowered="", engine=""),
        cache_key="",
        requires=Requirements(library=backend, **(requires or {})),
        toolchain={},
        environment=Environment(
            os="", kernel="", python="", machine="", cpu=Cpu("", 1), memory_bytes=0, gpu=GpuProbe(), libraries=()
        ),
        measured=Measured(by="engine", inputs="images", images=1, agreement=1, sqnr_db=1, max_difference=0),
    )


def make_contents(manifest):
    """What a bundle with that manifest would hold: two golden images."""
    contract = manifest.card.preprocess
    shape = (2, *contract.shape)
    images = np.arange(np.prod(shape), dtype=np.int64).reshape(shape).astype(contract.dtype)
    return Contents(manifest, msgspec.json.encode(manifest), Path("/bundle", manifest.engine), images)
