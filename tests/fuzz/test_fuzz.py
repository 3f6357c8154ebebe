"""The fuzzers' targets on a few hundred changed files each, and every finding so far as a test of its own.

What changes is drawn from a fixed seed: a run is the same every time. Campaigns of minutes are run by hand; see
README.md.
"""

import contextlib
import json
import os
import random
import struct
import sys

import fuzz_seeds as seeds
import numpy as np
import pytest
from fuzz_harness import Target, _place, judge
from fuzz_mutators import mutate, mutate_value
from fuzz_targets import TARGETS

from resnet_deploy.errors import (
    DataError,
    ResnetDeployError,
)

INPUTS = 200
pytest.importorskip("torch", reason="it reads checkpoints")
pytest.importorskip("onnx", reason="it reads models")
pytest.importorskip("pyarrow", reason="it reads scores")


@pytest.fixture(params=TARGETS, ids=lambda one: one.name.replace(" ", "-"))
def target(request):
    return request.param


def test_every_seed_is_read(target, tmp_path):
    target.prepare(tmp_path)
    refused = []
    for seed in target.seeds():
        (tmp_path / target.file).write_bytes(seed)
        try:
            target.read(tmp_path)
        except ResnetDeployError as error:
            refused.append(error.message)
        assert judge(target, seed, tmp_path) == ""
    assert len(refused) == (target.name == "image"), refused  # one whose pixels have no known range


def test_changed_files_are_read_or_refused(target, tmp_path):
    target.prepare(tmp_path)
    rng, sound = random.Random(target.name), target.seeds()
    (tmp_path / target.file).write_bytes(sound[0])
    with contextlib.suppress(ResnetDeployError):
        target.read(tmp_path)  # what is imported at first use runs code, and is no fault of a file's
    changed = (target.repair(mutate(rng.choice(sound), rng)) for _ in range(INPUTS))
    assert {fault for data in changed if (fault := judge(target, data, tmp_path))} == set()


# --- what the harness would see


def broken(read):
    return Target("broken", "file", lambda: [b""], read)


def refuse(message):
    raise DataError(message)


def swallow(call):
    with contextlib.suppress(Exception):
        call()


def hang():
    while True:
        pass


BROKEN = {
    "KeyError": (lambda _: {}["a"], "KeyError"),
    "RecursionError": (lambda _: json.loads("[" * 100_000), "RecursionError"),
    "SystemExit": (lambda _: sys.exit(0), "SystemExit"),
    "program": (lambda _: os.system("true"), "os.system"),
    "code": (lambda _: exec(compile("1", "/tmp/code", "exec")), "exec of /tmp/code"),
    "reads elsewhere": (lambda folder: (folder.parent / "other").read_bytes(), "open"),
    "writes elsewhere": (lambda folder: (folder.parent / "other").write_bytes(b""), "open"),
    "swallows": (lambda folder: swallow((folder / ".." / "x").read_bytes), "open"),
    "memory": (lambda _: np.ones(256 << 20, np.uint8), "MiB"),
    "time": (lambda _: hang(), "more than"),
    "no message": (lambda _: refuse(""), "no message"),
}


@pytest.mark.parametrize(("read", "fault"), BROKEN.values(), ids=BROKEN.keys())
def test_the_harness_sees_a_broken_reader(tmp_path, monkeypatch, read, fault):
    monkeypatch.setattr("fuzz_harness.MOST_SECONDS", 0.3)
    monkeypatch.setattr("fuzz_harness.MOST_BYTES", 64 << 20)
    (tmp_path / "place").mkdir()
    assert fault in judge(broken(read), b"", tmp_path / "place")


def test_the_harness_is_content_with_a_sound_one(tmp_path):
    assert judge(broken(lambda folder: (folder / "file").read_bytes()), b"", tmp_path) == ""
    assert judge(broken(lambda _: refuse("no\nmessage \x1b[31m")), b"", tmp_path) == ""  # errors make it one line
    quoted = ResnetDeployError("sound")
    quoted.message = "two\nlines"

    def read(_):
        raise quoted

    assert "not one line" in judge(broken(read), b"", tmp_path)


def test_the_harness_reports_an_error_that_was_never_raised():
    assert _place(DataError("made, not raised")) == "no place"


def test_changes_are_made_within_the_structure():
    rng, value = random.Random(0), {"a": [1, 2, {"b": "c"}]}
    changed = [mutate_value(json.loads(json.dumps(value)), rng) for _ in range(50)]
    assert 30 < sum(one != value for one in changed) <= 50  # some places are given the value that they have
    (size,) = struct.unpack("<Q", seeds.safetensors()[0][:8])
    kept = [mutate(seeds.safetensors()[0], rng) for _ in range(50)]
    assert sum(struct.unpack("<Q", one[:8])[0] not in (size, 0) for one in kept if len(one) > 8) > 10
