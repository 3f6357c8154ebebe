"""The OpenCV example on videos that OpenCV wrote: the answers are those of the same frames by Pillow alone."""

import csv
import importlib
import io

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import resnet_deploy

cv2 = pytest.importorskip("cv2", reason="OpenCV reads the frames")

FRAMES = 40  # more than are in flight
# Labels are compared as they are; probabilities to the digits that are printed.
PRINTED = 5e-5


@pytest.fixture
def example(example_path):
    example_path("opencv")
    return importlib.import_module("label_video")


@pytest.fixture(scope="module")
def video(noise, tmp_path_factory):
    """Twice as wide as high, so that the crop matters; JPEG, so that frames are not what was written."""
    path = tmp_path_factory.mktemp("video") / "noise.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (96, 48))
    assert writer.isOpened()
    for pixels in noise(FRAMES, 48, 96):
        writer.write(pixels[:, :, ::-1])
    writer.release()
    return path


@pytest.fixture(scope="module")
def pictures(video):
    """The frames as a reader without the example has them: OpenCV's pixels, exchanged by NumPy, as Pillow images."""
    capture, read = cv2.VideoCapture(str(video)), []
    while (frame := capture.read())[0]:
        read.append(Image.fromarray(np.ascontiguousarray(frame[1][:, :, ::-1])))
    capture.release()
    assert len(read) == FRAMES
    return read


def run(example, *arguments):
    return CliRunner().invoke(example.main, [str(argument) for argument in arguments])


def test_pixels_are_those_of_the_frame(example, video, pictures):
    for pixels, picture in zip(example.read_frames(video), pictures, strict=True):
        handed = example.picture_from_frame(pixels)
        assert np.array_equal(np.asarray(handed), np.asarray(picture))
        assert not np.array_equal(np.asarray(handed), pixels)  # blue is not red


def test_every_frame_is_labelled_in_order(example, engines, video, pictures):
    result = run(example, video, "--engine", engines.onnxruntime)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    with resnet_deploy.load(engines.onnxruntime) as engine:
        expected = [best for (best,) in engine.classify(pictures, top=1)]
    assert [int(row["frame"]) for row in rows] == list(range(FRAMES))
    assert [(int(row["index"]), row["label"]) for row in rows] == [(best.index, best.label) for best in expected]
    for row, best in zip(rows, expected, strict=True):
        assert abs(float(row["probability"]) - best.probability) <= PRINTED
    probabilities = [best.probability for best in expected]
    assert max(probabilities) - min(probabilities) > 10 * PRINTED  # frames in another order would show


def test_the_overlay_has_every_frame_and_its_label(example, engines, video, tmp_path):
    overlay = tmp_path / "labelled.avi"
    result = run(example, video, "--engine", engines.onnxruntime, "--overlay", overlay)
    assert result.exit_code == 0, result.output
    pairs = list(zip(example.read_frames(overlay), example.read_frames(video), strict=True))
    assert len(pairs) == FRAMES
    for labelled, plain in pairs:
        changed = np.abs(labelled.astype(int) - plain).max(axis=(1, 2)) > 64
        assert changed[4:18].any()  # where the text is
        assert not changed[26:].any()


@pytest.mark.parametrize("content", [None, b"no video"], ids=["missing", "text"])
def test_what_is_no_video(example, engines, tmp_path, content):
    path = tmp_path / "clip.avi"
    if content is not None:
        path.write_bytes(content)
    result = run(example, path, "--engine", engines.onnxruntime)
    assert result.exit_code == 2
    assert str(path) in result.stderr
