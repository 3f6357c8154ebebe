"""An INT8 build whose inputs a test may change."""

import os
import shutil

import msgspec
import pytest

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")

from resnet_deploy.bundle import open_bundle
from resnet_deploy.pipeline.building import BuildInputs, build
from resnet_deploy.protocols import Silent
from resnet_deploy.specs import BatchRange


def listing(folder):
    """Inode, size and time of every file below ``folder``."""
    found = {path: path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        path.relative_to(folder).as_posix(): (one.st_ino, one.st_size, one.st_mtime_ns) for path, one in found.items()
    }


class Case:
    """One INT8 build whose inputs a test may change; ``bundle``, of the unchanged ones, lies at its output."""

    def __init__(self, inputs, bundle, folder, monkeypatch):
        model, calibration = inputs
        self.model = folder / "resnet18.onnx"
        self.calibration = folder / "calibration"
        self.output = folder / "bundle"
        self.spec = open_bundle(bundle).manifest.spec
        self.samples = None
        self.monkeypatch = monkeypatch
        os.link(model, self.model)
        shutil.copytree(calibration, self.calibration, copy_function=os.link)
        shutil.copytree(bundle, self.output, copy_function=os.link)

    def build(self, **changes):
        """Build as things now stand."""
        inputs = BuildInputs(self.model, self.output, str(self.calibration), self.samples, **changes)
        return build(inputs, self.spec, Silent())


def another_batch(case):
    """Ask for other batch sizes, which is another engine."""
    case.spec = msgspec.structs.replace(case.spec, batch=BatchRange(1, 8, 32))
