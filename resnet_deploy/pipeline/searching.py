"""The search for layers that must keep their precision, measured on the backend that will run them."""

import math
import statistics
import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from resnet_deploy import artifact, environment
from resnet_deploy.batching import infer, run_once
from resnet_deploy.errors import DataError
from resnet_deploy.pipeline import lowering
from resnet_deploy.quantize.search import Point, Search, find_units, search
from resnet_deploy.verify import best_classes, compare_logits

if TYPE_CHECKING:
    import onnx_ir as ir

    from resnet_deploy.datasets import BatchReader
    from resnet_deploy.environment import Cpu
    from resnet_deploy.pipeline.source import Source
    from resnet_deploy.protocols import Array, Progress, Runner
    from resnet_deploy.quantize.calibrate import Calibration
    from resnet_deploy.specs import BuildSpec

_NOISE_IMAGES: Final = 64
_CALLS: Final = 15


@dataclass(frozen=True)
class Subject:
    """What is searched.

    Attributes:
        source: The exported model, which says what is right.
        graph: What is lowered.
        spec: What the engine is to be.
        calibration: Its ranges.
        cpu: What this machine can do.
        reader: The images that the accuracy is measured on.
    """

    source: "Source"
    graph: "ir.Model"
    spec: "BuildSpec"
    calibration: "Calibration"
    cpu: "Cpu"
    reader: "BatchReader"


def search_precision(subject: Subject, max_drop: float, notebook: "Notebook", progress: "Progress") -> Search:
    """Find which nodes to keep in floating point so that at most ``max_drop`` points of accuracy are lost.

    Raises:
        AccuracyError: If that is not to be had.
        DataError: If an image is damaged, or all are.
    """
    trial = _Trial(subject, progress)

    def measure(in_float: Collection[str], with_drop: bool) -> Point:
        known = notebook.find(in_float, with_drop)
        return known or notebook.note(trial.measure(in_float, with_drop))

    sensitivity, steps = search(find_units(subject.graph.graph), measure, max_drop, progress)
    return Search(
        max_drop=max_drop,
        metric="top-1" if subject.reader.dataset.labels else "agreement",
        cost="seconds" if trial.runs_here else "multiply-adds",
        sensitivity=sensitivity,
        steps=steps,
    )


@dataclass
class Notebook:
    """What a search has measured, on the disk after every measurement, for the next run to go on from.

    Attributes:
        path: The file; it vanishes with ``close``.
        key: Digest of everything that the measurements depend on; others' notes are not read.
    """

    path: Path
    key: str
    points: list[Point] = field(default_factory=list)

    def __post_init__(self) -> None:
        if artifact.is_file(self.path):
            try:
                kept = msgspec.json.decode(artifact.read_bytes(self.path), type=_Notes)
            except (msgspec.DecodeError, UnicodeDecodeError):
                return  # not ours, or cut short by something else than us: measured anew
            if kept.key == self.key:
                self.points = list(kept.points)

    def find(self, in_float: Collection[str], with_drop: bool) -> Point | None:
        """Look up a measurement."""
        for point in self.points:
            if set(point.in_float) == set(in_float) and (point.drop is not None or not with_drop):
                return point
        return None

    def note(self, point: Point) -> Point:
        """Keep a measurement."""
        self.points.append(point)
        artifact.write_bytes(self.path, msgspec.json.encode(_Notes(self.key, tuple(self.points))))
        return point

    def close(self) -> None:
        """Remove the file: the search has come to its end."""
        with artifact.translate_os_errors(self.path):
            self.path.unlink(missing_ok=True)


class _Notes(msgspec.Struct, frozen=True):
    key: str
    points: tuple[Point, ...]


class _Trial:
    """Lowers the graph with some nodes in floating point and measures what comes out."""

    def __init__(self, subject: Subject, progress: "Progress") -> None:
        self.subject = subject
        self.runs_here = subject.spec.backend == "onnxruntime"
        self._progress = progress

    def measure(self, in_float: Collection[str], with_drop: bool) -> Point:
        """Measure noise and cost, and, where asked, the drop."""
        if not with_drop:
            return self._point(self._open(in_float), in_float)
        with self._progress.task(f"measuring with {len(in_float)} nodes in floating point"):
            runner = self._open(in_float)
            point = self._point(runner, in_float)
        return msgspec.structs.replace(point, drop=self._drop(runner))

    def _point(self, runner: "Runner", in_float: Collection[str]) -> Point:
        cost = self._seconds(runner) if self.runs_here else _multiply_adds(self.subject.graph, in_float)
        noise = compare_logits(self._expected, infer(runner, self._images))
        return Point(in_float=tuple(in_float), noise=float(noise.noise.sum() / noise.signal.sum()), cost=cost)

    def _open(self, in_float: Collection[str]) -> "Runner":
        from resnet_deploy.onnx_files import bytes_from_onnx

        subject = self.subject
        lowered = lowering.lower(subject.graph, subject.spec, subject.calibration, subject.cpu, in_float)
        return self._run(bytes_from_onnx(lowered.model), as_written=not self.runs_here)

    def _run(self, model: bytes, *, as_written: bool = False) -> "Runner":
        from resnet_deploy.runners.ort import OrtRunner

        card, batch = self.subject.source.card, self.subject.spec.batch
        return OrtRunner(model, card, batch, threads=environment.compute_threads(), as_written=as_written)

    @cached_property
    def _exact(self) -> "Runner":
        return self._run(self.subject.source.data)

    @cached_property
    def _images(self) -> "Array":
        """A few of the images, to measure noise on."""
        reader = self.subject.reader
        few = replace(reader, dataset=reader.dataset.subset(_NOISE_IMAGES))
        batches = [batch.images for batch in few]
        if not batches:
            raise DataError(f"{reader.dataset.root}: every image is damaged", hint="give --data sound images")
        return np.concatenate(batches)

    @cached_property
    def _expected(self) -> "Array":
        return infer(self._exact, self._images)

    @cached_property
    def _pace(self) -> "tuple[Runner, float]":
        """The engine with everything on integers, and its seconds per call: what others are timed against."""
        runner = self._open(())
        return runner, statistics.median(_times(runner, self._feed))

    @property
    def _feed(self) -> "Array":
        return np.ascontiguousarray(np.resize(self._images, (self.subject.spec.batch.min, *self._images.shape[1:])))

    def _seconds(self, runner: "Runner") -> float:
        """Time ``runner`` in turns with the pace: a slow minute of the machine is then nobody's cost."""
        pace, seconds = self._pace
        mine, its = [], []
        for _ in range(_CALLS):
            mine += _times(runner, self._feed, 1)
            its += _times(pace, self._feed, 1)
        return seconds * statistics.median(mine) / statistics.median(its)

    def _drop(self, runner: "Runner") -> float:
        """Points of accuracy lost against the FP32 model, on all images."""
        lost = total = 0
        for batch in self._progress.track(self.subject.reader, "measuring the accuracy", len(self.subject.reader)):
            exact, got = (best_classes(infer(one, batch.images), 1)[:, 0] for one in (self._exact, runner))
            truth = exact if batch.labels is None else batch.labels
            lost += int((exact == truth).sum()) - int((got == truth).sum())
            total += len(batch.images)
        return 100 * lost / total


def _times(runner: "Runner", feed: "Array", calls: int = _CALLS) -> list[float]:
    """Seconds of each call, after an untimed one."""
    run_once(runner, feed)
    taken = []
    for _ in range(calls):
        start = time.perf_counter()
        run_once(runner, feed)
        taken.append(time.perf_counter() - start)
    return taken


def _multiply_adds(graph: "ir.Model", nodes: Collection[str]) -> float:
    """Multiply-adds per image of the layers among ``nodes``."""
    total = 0
    for node in graph.graph:
        if node.name in nodes and node.op_type in ("Conv", "Gemm"):
            weights, output = node.inputs[1], node.outputs[0]
            assert weights is not None
            assert weights.const_value is not None
            assert output.shape is not None
            places = math.prod(side for side in output.shape.dims[2:] if isinstance(side, int))
            total += weights.const_value.size * places
    return float(total)
