"""The ctypes example with the C interface built here, held against the Python engine of the same bundle."""

import ctypes
import hashlib
import importlib
import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

import resnet_deploy
from resnet_deploy.bundle import MANIFEST, seal

# Both run the same model by the same OpenVINO, and prepare to the bit; its C++ and its Python share the library.
SAME = 1e-6


@pytest.fixture
def example(example_path):
    example_path("ctypes")
    return importlib.import_module("classify_raw")


@pytest.fixture
def engine(example, c_library, engines):
    with example.Engine(example.Library(c_library), engines.openvino) as opened:
        yield opened


@pytest.fixture(scope="module")
def python(engines):
    with resnet_deploy.load(engines.openvino) as loaded:
        yield loaded


def rows(engine, logits):
    return np.array(logits, np.float32).reshape(-1, engine.info.num_classes)


def test_what_the_engine_takes(engine):
    info = engine.info
    assert (list(info.shape), info.image_bytes, info.num_classes) == ([32, 32, 3], 32 * 32 * 3, 10)
    assert [engine.label(index) for index in (0, 9)] == ["zero", "nine"]


@pytest.mark.parametrize("count", [1, 3, 70])
def test_prepared_images_from_a_raw_pointer(engine, python, noise, count):
    images = noise(count)
    logits = rows(engine, engine.infer(images.ctypes.data, images.nbytes, count))
    expected = python(images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=SAME)
    assert np.abs(logits - python(images[:, ::-1])).max() > 100 * SAME  # images upside down would show


def test_pictures_of_any_size_with_rows_apart(example, engine, python, noise):
    pictures, memory = [], []
    for height, width in ((40, 36), (33, 50), (32, 32)):
        padded = np.zeros((height, width + 5, 3), np.uint8)  # rows lie further apart than they are long
        padded[:, :width] = noise(1, height, width)[0]
        memory.append(padded)
        pictures.append(example.Pixels(padded.ctypes.data, width, height, padded.strides[0]))
    logits = rows(engine, engine.infer_pixels(pictures))
    expected = python([Image.fromarray(np.ascontiguousarray(padded[:, :-5])) for padded in memory])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=SAME)
    slanted = python([Image.fromarray(np.roll(padded, 1, axis=1)) for padded in memory])
    assert np.abs(logits - slanted).max() > 100 * SAME


def test_threads_share_an_engine(engine, python, noise):
    batches = [noise(2, seed=seed) for seed in range(8)]
    answers = [None] * len(batches)

    def run(index):
        answers[index] = rows(engine, engine.infer(batches[index].ctypes.data, batches[index].nbytes, 2))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_allclose(answer, python(batch), rtol=0, atol=SAME)


def test_golden_answers(engine, example, c_library, engines, tmp_path):
    within, worst = engine.golden_difference(SAME)
    assert within
    assert worst <= SAME
    bundle = tmp_path / "other-answers"
    shutil.copytree(engines.openvino, bundle)
    with np.load(bundle / "golden.npz") as file:
        golden = dict(file)
    golden["logits"] += 0.5
    np.savez(bundle / "golden.npz", **golden)
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"]["golden.npz"] = hashlib.sha256((bundle / "golden.npz").read_bytes()).hexdigest()
    (bundle / MANIFEST).write_bytes(seal(manifest))
    with example.Engine(example.Library(c_library), bundle) as other:
        within, worst = other.golden_difference(SAME)
    assert not within
    assert worst == pytest.approx(0.5, abs=1e-5)


def test_errors_are_words_and_no_crash(engine, example, c_library, noise, tmp_path):
    images = noise(2)
    with pytest.raises(example.CallError) as short:
        engine.infer(images.ctypes.data, images.nbytes - 1, 2)
    assert short.value.code == 1
    assert str(short.value) == "the images are not of the engine's size"
    with pytest.raises(example.CallError) as null:
        engine.infer(0, images.nbytes, 2)
    assert null.value.code == 1
    with pytest.raises(example.CallError, match="none") as missing:
        example.Engine(example.Library(c_library), tmp_path / "none")
    assert missing.value.code in (2, 3)
    assert missing.value.hint


def test_closed_twice(example, c_library, engines):
    opened = example.Engine(example.Library(c_library), engines.openvino)
    opened.close()
    with pytest.raises(example.CallError, match="not open"):
        opened.close()
    with pytest.raises(example.CallError, match="not open"):
        opened.label(0)


def test_an_altered_bundle_is_refused(example, c_library, engines, tmp_path):
    bundle = tmp_path / "altered"
    shutil.copytree(engines.openvino, bundle)
    path = bundle / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(example.CallError, match=r"model\.onnx") as altered:
        example.Engine(example.Library(c_library), bundle)
    assert altered.value.code == 3


def test_the_structs_are_those_of_the_header(example):
    assert ctypes.sizeof(example.Pixels) == 8 + 4 + 4 + ctypes.sizeof(ctypes.c_void_p)
    assert ctypes.sizeof(example.Info) == 4 + 12 + 8 + 16


def test_the_program_runs_without_the_package(c_library, example_path, engines, python, noise, tmp_path):
    picture = tmp_path / "noise.png"
    Image.fromarray(noise(1, 40, 36)[0]).save(picture)
    program = example_path("ctypes") / "classify_raw.py"
    command = [sys.executable, program, c_library, engines.openvino, picture]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == python.classify([picture], top=1)[0][0].label


@pytest.mark.parametrize("missing", ["library", "bundle", "picture", "text"])
def test_the_program_says_what_is_wrong_in_a_line(c_library, example_path, engines, noise, tmp_path, missing):
    picture, text = tmp_path / "noise.png", tmp_path / "text.png"
    Image.fromarray(noise(1)[0]).save(picture)
    text.write_text("no picture")
    arguments = {"library": c_library, "bundle": engines.openvino, "picture": picture}
    arguments |= {"picture": text} if missing == "text" else {missing: tmp_path / "nowhere"}
    command = [sys.executable, example_path("ctypes") / "classify_raw.py", *arguments.values()]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert str(text if missing == "text" else tmp_path / "nowhere") in error
    assert hint.startswith("hint: ")
