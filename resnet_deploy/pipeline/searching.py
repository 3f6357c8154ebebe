"""The search for layers that must keep their precision, measured on the backend that will run them."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from resnet_deploy import artifact, environment
from resnet_deploy.batching import infer
from resnet_deploy.errors import DataError, FileError
from resnet_deploy.json_files import decode_json
from resnet_deploy.names import readable
from resnet_deploy.pipeline import lowering
from resnet_deploy.pipeline.guarding import median_seconds
from resnet_deploy.quantize.search import Point, Search, find_units, search
from resnet_deploy.runners import find_model_runner
from resnet_deploy.verify import best_classes, compare_logits

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from resnet_deploy.datasets import BatchReader
    from resnet_deploy.pipeline.source import Source
    from resnet_deploy.protocols import Array, Progress, Runner
    from resnet_deploy.specs import BatchRange, ModelCard

_NOISE_IMAGES: Final = 64
_CALLS: Final = 15


@dataclass(frozen=True)
class Subject:
    """What is searched.

    Attributes:
        source: The exported model, which says what is right.
        recipe: What is lowered, and with what.
        reader: The images that the accuracy is measured on.
    """

    source: "Source"
    recipe: lowering.Recipe
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

    sensitivity, steps = search(find_units(subject.recipe.model.graph), measure, max_drop, progress)
    dataset = subject.reader.dataset
    return Search(
        max_drop=max_drop,
        metric="top-1" if dataset.labels else "agreement",
        cost="seconds" if trial.runs_here else "multiply-adds",
        dataset=readable(dataset.root.resolve().name),
        dataset_sha256=dataset.digest,
        images=len(dataset) - len(subject.reader.skipped),
        sensitivity=sensitivity,
        steps=steps,
    )


@dataclass
class Notebook:
    """What a search has measured, on the disk after every measurement, for the next run to go on from.

    Attributes:
        path: The file; it vanishes with ``close``.
        key: Digest of everything that the measurements depend on; others' notes are not read.

    Raises:
        FileError: If something else lies there.
    """

    path: Path
    key: str
    points: list[Point] = field(default_factory=list)

    def __post_init__(self) -> None:
        if artifact.is_file(self.path):
            try:
                kept = decode_json(artifact.read_bytes(self.path), _Notes)
            except ValueError as error:
                hint = "move it away: a search keeps there what it has measured"
                raise FileError(f"{self.path} holds something else than the notes of a search", hint=hint) from error
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
        self._open_model = find_model_runner(subject.recipe.spec.backend)
        self.runs_here = self._open_model is not None
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
        cost = self._seconds(runner) if self.runs_here else _multiply_adds(self.subject.recipe.model, in_float)
        noise = compare_logits(self._expected, infer(runner, self._images))
        return Point(in_float=tuple(in_float), noise=float(noise.noise.sum() / noise.signal.sum()), cost=cost)

    def _open(self, in_float: Collection[str]) -> "Runner":
        from resnet_deploy.onnx_files import bytes_from_onnx
        from resnet_deploy.runners.ort import OrtRunner

        data = bytes_from_onnx(lowering.lower(self.subject.recipe, in_float).model)
        if self._open_model is not None:
            return self._open_model(data, *self._contract, threads=environment.compute_threads())
        return OrtRunner(data, *self._contract, threads=environment.compute_threads(), as_written=True)

    @property
    def _contract(self) -> "tuple[ModelCard, BatchRange]":
        return self.subject.source.card, self.subject.recipe.spec.batch

    @cached_property
    def _exact(self) -> "Runner":
        from resnet_deploy.runners.ort import OrtRunner

        return OrtRunner(self.subject.source.data, *self._contract, threads=environment.compute_threads())

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
        return runner, median_seconds([runner], self._feed, _CALLS)[0]

    @property
    def _feed(self) -> "Array":
        return np.ascontiguousarray(
            np.resize(self._images, (self.subject.recipe.spec.batch.min, *self._images.shape[1:]))
        )

    def _seconds(self, runner: "Runner") -> float:
        """Time ``runner`` in turns with the pace: a slow minute of the machine is then nobody's cost."""
        pace, seconds = self._pace
        own, its = median_seconds([runner, pace], self._feed, _CALLS)
        return seconds * own / its

    def _drop(self, runner: "Runner") -> float:
        """Points of accuracy lost against the FP32 model, on all images."""
        lost = total = 0
        for batch in self._progress.track(self.subject.reader, "measuring the accuracy", len(self.subject.reader)):
            exact, got = (infer(one, batch.images) for one in (self._exact, runner))
            truth = best_classes(exact, 1)[:, 0] if batch.labels is None else batch.labels
            lost += _right(exact, truth) - _right(got, truth)
            total += len(batch.images)
        return 100 * lost / total


def _right(logits: "Array", truth: "NDArray[np.int64]") -> int:
    """Count the images whose best class is the true one; what is not a number is no answer."""
    return int(((best_classes(logits, 1)[:, 0] == truth) & np.isfinite(logits).all(1)).sum())


def _multiply_adds(graph: "ir.Model", nodes: Collection[str]) -> float:
    """Multiply-adds per image of the layers among ``nodes``."""
    from resnet_deploy.quantize.graph import constant

    total = 0
    for node in graph.graph:
        if node.name in nodes and node.op_type in ("Conv", "Gemm"):
            shape = node.outputs[0].shape
            assert shape is not None
            places = math.prod(side for side in shape.dims[2:] if isinstance(side, int))
            total += constant(node.inputs[1]).size * places
    return float(total)
