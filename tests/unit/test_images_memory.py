"""Where memory is short, a sound image is not called damaged: a real limit, in a process of its own."""

import os
import subprocess
import sys

import pytest
from PIL import Image

pytest.importorskip("resource", reason="limits of address space are POSIX's")

SIDE = 4000  # 64 MB as Pillow keeps RGB
ORIENTATION = 0x0112  # EXIF's tag
TURNED = 6
READ = """
import resource, sys
from pathlib import Path
from PIL import Image
from resnet_deploy.contract import MLPERF_MEAN, MLPERF_STD, Preprocess
from resnet_deploy.images import tensor_from_source

Image.init()
path, more = Path(sys.argv[1]), int(sys.argv[2]) << 20
torchvision, mlperf = Preprocess(), Preprocess(interpolation="area", mean=MLPERF_MEAN, std=MLPERF_STD)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + more, -1))
try:
    print(tensor_from_source(path, {contract}).shape)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def read():
    """Read an image in a process that may take so many MiB more: (path, MiB, contract) -> what it says."""

    def run(path, more, contract="torchvision"):
        return subprocess.run(
            [sys.executable, "-c", READ.format(contract=contract), path, str(more)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    return run


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_image_that_does_not_fit_is_not_called_damaged(tmp_path, read, suffix):
    path = tmp_path / f"large.{suffix}"
    Image.new("RGB", (SIDE, SIDE), (9, 9, 9)).save(path)
    assert read(path, 16) == "MemoryError"
    assert read(path, 512) == "(224, 224, 3)"


def test_nor_one_that_cannot_be_turned_by_its_exif_data(tmp_path, read):
    path, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[ORIENTATION] = TURNED
    Image.new("RGB", (SIDE, SIDE), (9, 9, 9)).save(path, exif=exif)
    assert read(path, 100, "mlperf") == "MemoryError"  # room for one copy, and not for the turned one
    assert read(path, 1024, "mlperf") == "(224, 224, 3)"
