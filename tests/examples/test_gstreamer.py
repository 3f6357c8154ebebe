"""The GStreamer example, built here, on test sources; what it saw, it dumps, and Python labels that."""

import re
import select
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

import resnet_deploy

WIDTH, HEIGHT, FRAMES = 50, 38, 12  # 3 * 50 is no multiple of 4: GStreamer pads the rows, to 152 bytes
SOURCE = f"videotestsrc num-buffers={FRAMES} pattern=snow ! video/x-raw,width={WIDTH},height={HEIGHT}"
PRINTED = 5e-4  # probabilities are printed in tenths of a percent
LIMIT_S = 120  # a stream that never ends is a failure, and no hanging test


@pytest.fixture(scope="module")
def program(build_example):
    packages = ["gstreamer-app-1.0", "gstreamer-video-1.0"]
    if (
        shutil.which("pkg-config") is None
        or subprocess.run(["pkg-config", "--exists", *packages], check=False).returncode
    ):
        pytest.skip("GStreamer's headers are missing: libgstreamer-plugins-base1.0-dev")
    return build_example("gstreamer") / "label_stream"


@pytest.fixture
def run(program, engines):
    def label(source, *options):
        command = [program, engines.openvino, source, *options]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=LIMIT_S)

    return label


def frames_of(done):
    assert done.returncode == 0, done.stderr
    lines = [re.fullmatch(r"(\d+) +([\d.]+)%  (.*)", line) for line in done.stdout.splitlines()]
    return [(int(line[1]), float(line[2]) / 100, line[3]) for line in lines]


def test_every_frame_is_labelled_as_python_labels_it(run, engines, tmp_path):
    frames = frames_of(run(SOURCE, "--dump", tmp_path))
    assert [number for number, _, _ in frames] == list(range(FRAMES))
    seen = []
    for number in range(FRAMES):
        with Image.open(tmp_path / f"{number}.ppm") as image:
            assert image.size == (WIDTH, HEIGHT)
            seen.append(image.convert("RGB"))
    assert not np.array_equal(*(np.asarray(image) for image in seen[:2]))
    with resnet_deploy.load(engines.openvino) as engine:
        expected = [best for (best,) in engine.classify(seen, top=1)]
    assert [label for _, _, label in frames] == [best.label for best in expected]
    for (_, probability, _), best in zip(frames, expected, strict=True):
        assert abs(probability - best.probability) <= PRINTED + 1e-6
    assert len({probability for _, probability, _ in frames}) > 3  # of one frame again and again, there would be one


def test_rows_are_read_where_gstreamer_laid_them(run, tmp_path):
    frames_of(run(SOURCE.replace("snow", "smpte75"), "--dump", tmp_path))
    with Image.open(tmp_path / "0.ppm") as image:
        bars = np.asarray(image)[: HEIGHT // 2].astype(int)
    # Upright bars: each row is that above it. Read as if there was no room between rows, they would slant.
    assert np.abs(np.diff(bars, axis=0)).max() == 0
    assert np.abs(np.diff(bars, axis=1)).max() > 100


def test_late_frames_are_dropped_only_if_asked_for(run):
    # Frames so small that they come a hundred times faster than any network labels them.
    source = "videotestsrc num-buffers=2000 ! video/x-raw,width=16,height=16"
    newest = [number for number, _, _ in frames_of(run(source, "--newest"))]
    assert newest == sorted(set(newest))
    assert len(newest) < 2000
    assert newest[-1] == 1999  # the last one is what nothing newer replaced


def test_frames_of_a_source_that_does_not_count_are_counted(run, tmp_path):
    frames = frames_of(run(f"{SOURCE} ! theoraenc ! theoradec", "--dump", tmp_path))  # its frames have no offsets
    assert [number for number, _, _ in frames] == list(range(FRAMES))
    assert {path.name for path in tmp_path.iterdir()} == {f"{number}.ppm" for number in range(FRAMES)}


def test_a_pipe_gets_each_label_at_once(program, engines):
    source = "videotestsrc is-live=true ! video/x-raw,width=16,height=16,framerate=1/1"  # a pipe's buffer holds minutes
    with subprocess.Popen([program, engines.openvino, source, "--newest"], stdout=subprocess.PIPE) as running:
        try:
            ready, _, _ = select.select([running.stdout], [], [], 60)
            assert ready
            assert running.stdout.readline().endswith(b"\n")
        finally:
            running.kill()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nosuchsrc", "the pipeline is wrong: no element"),
        ("filesrc location=/nowhere ! decodebin", "the stream broke off"),
    ],
    ids=["element", "file"],
)
def test_what_is_no_stream_ends_with_one_line(run, source, reason):
    done = run(source)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {reason}")
