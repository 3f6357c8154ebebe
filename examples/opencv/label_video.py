"""Label the frames of a video: OpenCV decodes, the engine classifies, and a table or a video with labels comes out.

The pixels of a frame are copied three times on their way to the network, and each copy does something:

1. OpenCV decodes into a new array: (H, W, 3) uint8, B G R.
2. Pillow takes them in, and turns B G R into R G B on the way.
3. The input contract resizes and crops, into the engine's batch.
"""

import csv
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import resnet_deploy
from resnet_deploy.errors import DataError, FileError, ResnetDeployError

if TYPE_CHECKING:
    from concurrent.futures import Future

Frame = NDArray[np.uint8]  # (H, W, 3), B G R

IN_FLIGHT = 16  # frames that wait for their answer: enough for the engine to make batches of, and bounded memory


@dataclass(frozen=True)
class Labelled:
    """A frame and what is on it, in the engine's opinion."""

    number: int
    pixels: Frame
    best: resnet_deploy.Prediction


def read_frames(path: Path) -> Iterator[Frame]:
    """Yield the frames of a video, each in memory of its own.

    Raises:
        FileError: If there is no such file.
        DataError: If OpenCV cannot read it.
    """
    if not path.is_file():
        raise FileError(f"{path}: no such file", hint="check the path")
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise DataError(f"{path}: no video that OpenCV can read", hint="check it with ffprobe")
        while True:
            there, pixels = capture.read()
            if not there:
                return
            yield pixels.astype(np.uint8, copy=False)
    finally:
        capture.release()


def picture_from_frame(pixels: Frame) -> Image.Image:
    """Hand a frame to Pillow, which exchanges blue and red while it takes the pixels in."""
    height, width, _ = pixels.shape
    return Image.frombytes("RGB", (width, height), pixels.data, "raw", "BGR", pixels.strides[0], 1)


def label_frames(frames: Iterable[Frame], engine: resnet_deploy.Engine) -> Iterator[Labelled]:
    """Classify frames in order; the engine is at work on some while the next ones are decoded.

    ``submit`` prepares a frame in this thread, and the engine's own makes a batch of what has gathered meanwhile.
    """
    waiting: deque[tuple[int, Frame, Future[NDArray[np.generic]]]] = deque()
    for number, pixels in enumerate(frames):
        waiting.append((number, pixels, engine.submit(picture_from_frame(pixels))))
        if len(waiting) == IN_FLIGHT:
            yield _labelled(*waiting.popleft(), engine)
    while waiting:
        yield _labelled(*waiting.popleft(), engine)


def _labelled(
    number: int, pixels: Frame, answer: "Future[NDArray[np.generic]]", engine: resnet_deploy.Engine
) -> Labelled:
    (best,) = engine.rank(answer.result()[np.newaxis], top=1)
    return Labelled(number, pixels, best[0])


def write_table(labelled: Iterable[Labelled], file: TextIO) -> Iterator[Labelled]:
    """Write a line for each frame as it comes, and hand the frame on."""
    table = csv.writer(file, lineterminator="\n")
    table.writerow(("frame", "index", "label", "probability"))
    for frame in labelled:
        best = frame.best
        table.writerow((frame.number, best.index, best.label, f"{best.probability:.4f}"))
        yield frame


class VideoWithLabels:
    """A video (MJPEG in AVI) of the frames, the label written on each; opened by the first of them.

    Args:
        path: The file, which is overwritten.
        frames_per_s: How fast it is to be shown.
    """

    def __init__(self, path: Path, frames_per_s: float) -> None:
        self._path, self._frames_per_s = path, frames_per_s
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: Labelled) -> None:
        """Add a frame.

        Raises:
            FileError: If OpenCV cannot write there.
        """
        if self._writer is None:
            height, width, _ = frame.pixels.shape
            code = cv2.VideoWriter.fourcc(*"MJPG")
            self._writer = cv2.VideoWriter(str(self._path), code, self._frames_per_s, (width, height))
            if not self._writer.isOpened():
                raise FileError(f"{self._path}: OpenCV cannot write there", hint="give a path that ends in .avi")
        text = f"{frame.best.label} {frame.best.probability:.0%}"
        pixels = frame.pixels.copy()
        cv2.putText(pixels, text, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
        self._writer.write(pixels)

    def __enter__(self) -> "VideoWithLabels":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()


@click.command()
@click.argument("video", type=click.Path(path_type=Path))
@click.option("--engine", type=click.Path(path_type=Path), required=True, help="An engine bundle.")
@click.option("--overlay", type=click.Path(path_type=Path), help="Also write the video with its labels, as .avi.")
@click.option("--fps", type=click.FloatRange(min=1), default=25.0, show_default=True, help="Of the overlay.")
def main(video: Path, engine: Path, overlay: Path | None, fps: float) -> None:
    """Print the best class of every frame of VIDEO as CSV."""
    try:
        with ExitStack() as stack:
            loaded = stack.enter_context(resnet_deploy.load(engine))
            shown = stack.enter_context(VideoWithLabels(overlay, fps)) if overlay else None
            for frame in write_table(label_frames(read_frames(video), loaded), sys.stdout):
                if shown is not None:
                    shown.write(frame)
    except ResnetDeployError as error:
        print(f"{error.message}\n{error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
