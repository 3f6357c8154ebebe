"""The same inputs give the same files, to the bit, under conditions that must not matter."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from reproducibility import compare_files

from resnet_deploy.environment import usable_cpus
from resnet_deploy.pipeline.exporting import export
from resnet_deploy.protocols import Silent
from resnet_deploy.specs import ExportSpec

# What a build measures, the machine it was made on, and the digest of it all.
MAY_DIFFER = {"measured", "environment.cpu.cores", "notes", "sha256"}


def test_an_export_gives_the_same_files(deployment, tmp_path):
    card = deployment.card
    spec = ExportSpec(
        architecture=card.architecture,
        weights="none",
        num_classes=card.num_classes,
        image_size=32,
        resize=34,
        labels=card.labels,
    )
    again = export(spec, tmp_path / "again.onnx", Silent())
    assert again.path.read_bytes() == deployment.model.read_bytes()
    assert again.reference_path.read_bytes() == deployment.reference.read_bytes()


def build(deployment, folder, images):
    """Build in another process, folder, encoding and time zone, with another hash seed, on one core."""
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    elsewhere = {"PYTHONHASHSEED": "4242", "TZ": "Asia/Kathmandu", "OMP_NUM_THREADS": "1"} | ascii_only
    arguments = [deployment.model, "--int8", "--backend", "onnxruntime", "--calib", images, "--calib-images", "100"]
    subprocess.run(
        [sys.executable, "-m", "resnet_deploy", "build", *arguments, "-o", deployment.engines["int8"].name],
        cwd=folder,
        env=os.environ | elsewhere,
        preexec_fn=lambda: os.sched_setaffinity(0, {min(usable_cpus())}),
        capture_output=True,
        check=True,
    )
    return folder / deployment.engines["int8"].name


def untimed_notes(engine):
    """What the manifest notes, but for how fast the engine was and who else used the machine."""
    notes = json.loads((engine / "manifest.json").read_text())["notes"]
    return [note for note in notes if not note.startswith(("not faster than FP32", "timed while other processes"))]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the process is held on one core")
def test_a_build_elsewhere_gives_the_same_engine(deployment, tmp_path):
    images = tmp_path / "copied" / deployment.calibration.name
    images.mkdir(parents=True)
    for path in sorted(deployment.calibration.iterdir(), reverse=True):
        shutil.copyfile(path, images / path.name)
    first, other = deployment.engines["int8"], build(deployment, tmp_path, images)
    found = {path.name: compare_files(path, other / path.name, "again") for path in first.iterdir()}
    assert {path.name for path in other.iterdir()} == set(found)
    assert {name for name, one in found.items() if not one.is_identical} == {"manifest.json"}
    fields = {"measured" if one.startswith("measured.") else one for one in found["manifest.json"].fields}
    assert {"measured", "sha256"} <= fields <= MAY_DIFFER
    assert untimed_notes(first) == untimed_notes(other)
    # The twin: had it not read the images, nothing could have differed.
    digest = json.loads((other / "calibration.json").read_text())["source"]["dataset_sha256"]
    assert digest == json.loads((first / "manifest.json").read_text())["chain"]["images"]
