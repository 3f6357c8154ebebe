"""The nanobind example, built here: what it lends is read where it is, and lives as long as anybody sees it."""

import gc
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import resnet_deploy

pytest.importorskip("nanobind", reason="it binds the camera")

ROOT = Path(__file__).parents[2]
BATCH, SIDE, CLASSES = 2, 32, 10


@pytest.fixture(scope="module")
def built(build_example):
    return build_example("nanobind")


@pytest.fixture
def camera(built, monkeypatch):
    monkeypatch.syspath_prepend(str(built))
    return importlib.import_module("camera")


@pytest.fixture(params=["onnxruntime", "openvino"])
def engine(request, engines):
    with resnet_deploy.load(getattr(engines, request.param)) as loaded:
        yield loaded


def watch_reads(engine, monkeypatch):
    """Note where the runner reads each batch."""
    (runner,) = engine._runners
    addresses, load = [], runner.load

    def noted_load(feed):
        addresses.append(feed.ctypes.data)
        load(feed)

    monkeypatch.setattr(runner, "load", noted_load)
    return addresses


def test_pixels_are_read_where_the_camera_put_them(camera, engine, monkeypatch):
    read = watch_reads(engine, monkeypatch)
    source = camera.Camera(BATCH, SIDE, buffers=2)
    held = [source.capture(), source.capture()]
    logits = [engine(frames) for frames in held]
    assert read == source.addresses
    for frames, answer in zip(held, logits, strict=True):
        np.testing.assert_array_equal(answer, engine(np.from_dlpack(frames).copy()))
    assert not np.array_equal(*logits)
    assert not {*read[2:]} & {*source.addresses}  # of copies, the same watch says that they are copies


def test_logits_are_written_where_cpp_reads_them(camera, engine, monkeypatch):
    frames, answers = camera.Camera(BATCH, SIDE, buffers=1).capture(), camera.Answers(BATCH, CLASSES)
    expected = engine(frames)
    view = answers.view()
    view[:] = 0
    assert view.ctypes.data == answers.address
    (runner,) = engine._runners
    synchronize, seen = runner.synchronize, []

    def noted_synchronize():
        synchronize()
        seen.append(view.copy())  # the backend is done, and nothing was fetched

    monkeypatch.setattr(runner, "synchronize", noted_synchronize)
    assert engine(frames, out=view) is view
    np.testing.assert_array_equal(view, expected)
    assert answers.best() == expected.argmax(axis=1).tolist()
    # ONNX Runtime has written there itself; OpenVINO's logits are copied there, once, when they are fetched.
    assert np.array_equal(seen[0], expected) is (engine.manifest.spec.backend == "onnxruntime")


def test_a_buffer_lives_as_long_as_a_view_of_it(camera):
    source = camera.Camera(BATCH, SIDE, buffers=2)
    view = np.from_dlpack(source.capture())
    kept = view.copy()
    del source
    gc.collect()
    assert camera.live_buffers() == 1  # the one that was never lent is gone
    np.testing.assert_array_equal(view, kept)
    del view
    gc.collect()
    assert camera.live_buffers() == 0


def test_a_buffer_is_not_written_while_it_is_lent(camera):
    source = camera.Camera(BATCH, SIDE, buffers=2)
    first = np.from_dlpack(source.capture())
    kept = first.copy()
    for _ in range(3):
        assert not np.array_equal(np.from_dlpack(source.capture()), kept)  # the other buffer, again and again
    np.testing.assert_array_equal(first, kept)
    second = source.capture()
    with pytest.raises(RuntimeError, match="every buffer is lent"):
        source.capture()
    del second
    source.capture()


def test_answers_live_as_long_as_their_view(camera):
    view = camera.Answers(BATCH, CLASSES).view()
    gc.collect()
    view[:] = 1
    assert camera.live_buffers() == 1
    del view
    gc.collect()
    assert camera.live_buffers() == 0


def test_the_demonstration_runs(built, engines):
    program = ROOT / "examples/nanobind/label_camera.py"
    command = [sys.executable, program, "--engine", engines.onnxruntime]
    environment = {"PYTHONPATH": f"{built}:{Path(resnet_deploy.__file__).parents[1]}"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")  # nanobind would tell of leaked instances there
    assert len(done.stdout.splitlines()) == 8
