"""A small campaign of benchmarks/faults.py: commands killed at random, and a writer that the same checks catch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")

ROOT = Path(__file__).parents[2]
CAMPAIGN = """
import contextlib, json, random, shutil, sys
from pathlib import Path
import msgspec
from faults_children import get_ready
from faults_kills import kill_at_random
from faults_subjects import SUBJECTS
from resnet_deploy import artifact

def kill(name):
    trials = kill_at_random(SUBJECTS["package"], base, work / name, 8, random.Random(1))
    return [{**msgspec.to_builtins(one), "is_sound": one.is_sound} for one in trials]

@contextlib.contextmanager
def in_place(path, *, staging=None):
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    yield path

base, work = map(Path, sys.argv[1:])
get_ready(("resnet_deploy.pipeline.packaging", "safetensors"))
honest = kill("honest")
artifact.atomic_folder = in_place
print(json.dumps([honest, kill("broken")]))
"""


@pytest.fixture(scope="module")
def campaign(deployment, tmp_path_factory):
    """Kill `package` eight times, and then as many times with a writer that writes in place."""
    work = tmp_path_factory.mktemp("faults")
    (work / "base").mkdir()
    for precision in ("fp32", "int8"):
        (work / "base" / precision).symlink_to(deployment.engines[precision])
    done = subprocess.run(
        [sys.executable, "-c", CAMPAIGN, work / "base", work],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks")))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_a_killed_command_leaves_is_whole_and_made_up_for(campaign):
    honest, _ = campaign
    assert sum(one["status"] == -9 for one in honest) >= 4  # those before a change, however fast the machine
    assert [one for one in honest if not one["is_sound"]] == []
    assert any(one["left"] for one in honest)
    assert {one["over_earlier"] for one in honest} == {True, False}


def test_a_writer_that_writes_in_place_is_caught(campaign):
    _, broken = campaign
    assert any(one["broken"] for one in broken if one["aimed"])
    assert sum(not one["is_sound"] for one in broken) >= 2
