"""Calibration: run the FP32 model over images, observe every activation, choose ranges.

The observed state is a function of the set of images alone. Images pass one by one, whatever batch size they were
decoded in: kernels may round differently at another batch size, and a few images' activations are all that is ever
held. Every worker takes an image from the network's input to its counts on one core, and then the next: no core waits
for another, in the middle of a layer or at the end of an image.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
import numpy as np
import onnx_ir as ir

from resnet_deploy.batching import one_by_one
from resnet_deploy.bundle import CALIBRATION_SCHEMA
from resnet_deploy.environment import compute_threads
from resnet_deploy.errors import DataError, ModelError
from resnet_deploy.onnx_files import split_weights
from resnet_deploy.ort_session import open_session, translate_refusals
from resnet_deploy.quantize import counting
from resnet_deploy.quantize.graph import observed_names, with_outputs
from resnet_deploy.quantize.observers import Histogram
from resnet_deploy.quantize.ranges import Range, choose_ranges
from resnet_deploy.specs import INPUT_NAME, RANGE_METHODS, CalibrationSpec, ComputeDevice, RangeMethod

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import onnxruntime
    from numpy.typing import NDArray

    from resnet_deploy.protocols import Array

    OutputQuality: TypeAlias = Mapping[str, dict[RangeMethod, float]]  # in decibels, by tensor name and method

_LINE: Final = 16  # values in a line of a processor's cache
_MOST_WORKERS: Final = 8  # each holds the activations of an image, 67 MB of a ResNet-50's at 224 pixels


class TensorCalibration(msgspec.Struct, frozen=True, kw_only=True):
    """What was observed of one tensor, and the range that each method chooses.

    Attributes:
        observed: Smallest and largest value seen.
        method: Whose range is taken.
        ranges: Range by method, each as (low, high).
        output_sqnr_db: Where the method was chosen by it: what each leaves of the layers that read the tensor.
        values: How many values were seen.
        histogram_sha256: Digest of the histogram the ranges were chosen from.

    Raises:
        ValueError: If the range that is taken is not there.
    """

    observed: tuple[float, float]
    method: RangeMethod
    ranges: dict[RangeMethod, tuple[float, float]]
    output_sqnr_db: dict[RangeMethod, float] = {}
    values: int
    histogram_sha256: str

    def __post_init__(self) -> None:
        if self.method not in self.ranges:
            raise ValueError(f"there is no range by {self.method}")


class CalibrationSource(msgspec.Struct, frozen=True, kw_only=True):
    """What a calibration was made from.

    Attributes:
        dataset: Folder name, or ``random`` for noise.
        dataset_sha256: Digest over names and contents of the images, the skipped ones included.
        images: How many images were seen.
        skipped: Names of damaged images left out at the user's request.
        device: Where they were run: ``cpu``, by ONNX Runtime, or ``cuda``, by PyTorch.
        preprocess_sha256: Digest of the input contract.
        weights_sha256: Digest of the model's weights.
        onnx_sha256: Digest of the model file that was run.
    """

    dataset: str
    dataset_sha256: str
    images: int
    skipped: tuple[str, ...] = ()
    device: ComputeDevice = "cpu"
    preprocess_sha256: str
    weights_sha256: str
    onnx_sha256: str


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Ranges of every activation, by tensor name, and where they came from."""

    schema_version: int = CALIBRATION_SCHEMA
    source: CalibrationSource
    spec: CalibrationSpec
    tensors: dict[str, TensorCalibration]

    def range_of(self, name: str) -> Range:
        """Return the range of a tensor by its method.

        Raises:
            ModelError: If the calibration does not know the tensor.
        """
        if name not in self.tensors:
            raise ModelError(f"the calibration has no tensor {name!r}", hint="calibrate this very model")
        tensor = self.tensors[name]
        return Range(*tensor.ranges[tensor.method])

    def to_json(self) -> bytes:
        """Serialize for people and for diffs."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def observe(model: ir.Model, images: "Iterable[Array]") -> tuple[dict[str, Histogram], int]:
    """Run ``model`` over contract tensors, one image per worker at a time, and observe its activations.

    Args:
        model: The FP32 model; left as it was.
        images: Batches of any size, each (N, *preprocess.shape).

    Returns:
        Histograms by tensor name, in order of execution, and the number of images seen.

    Raises:
        DataError: If there was no image.
        ModelError: If an activation is not finite.
        BuildError: If ONNX Runtime refuses the model.
    """
    threads = compute_threads()
    number = min(threads, _MOST_WORKERS)
    names = observed_names(model.graph)
    # The network's input is no output: ONNX Runtime would leave what is bound for it as it is.
    computed = [name for name in names if name != INPUT_NAME]
    session = open_session(*split_weights(with_outputs(model, computed)), threads=threads // number)
    workers = [_Worker(session, names) for _ in range(number)]
    count = _share_out(one_by_one(images), workers)
    if count == 0:
        raise DataError("no calibration images", hint="give --calib a folder of real images")
    first, *others = (worker.histograms for worker in workers)
    for other in others:
        for name, histogram in other.items():
            first[name].merge(histogram)
    return first, count


def _share_out(images: "Iterator[Array]", workers: "list[_Worker]") -> int:
    """Give each image to the worker that is free first; return how many there were.

    An error is that of the first image that has one, however many workers there are.
    """
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def observe_one(image: "Array", number: int) -> None:
        worker = idle.get_nowait()  # there are as many threads as workers
        try:
            worker.observe(image, number)
        finally:
            idle.put(worker)

    count, pending = 0, deque[Future[None]]()
    pool = ThreadPoolExecutor(len(workers), thread_name_prefix="observe")
    try:
        for count, image in enumerate(images, 1):
            pending.append(pool.submit(observe_one, image, count))
            if len(pending) > 2 * len(workers):
                pending.popleft().result()
        for future in pending:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return count


class _Worker:
    """Runs images and counts their activations, in histograms of its own."""

    def __init__(self, session: "onnxruntime.InferenceSession", names: list[str]) -> None:
        self.histograms = {name: Histogram() for name in names}
        self._session = session
        self._binding = session.io_binding()
        self._computed = memory_for(session.get_outputs())  # each image is written over the last
        for name, values in self._computed.items():
            self._binding.bind_output(name, "cpu", 0, values.dtype, values.shape, values.ctypes.data)

    def observe(self, image: "Array", number: int) -> None:
        """Run one image, (1, *preprocess.shape), and count it, where it is observed, and what comes out."""
        with translate_refusals():
            self._binding.bind_cpu_input(INPUT_NAME, np.ascontiguousarray(image))  # it keeps the one bound last
            self._session.run_with_iobinding(self._binding)
        with counting.COUNTER.turn:
            for name, histogram in self.histograms.items():
                values: NDArray[Any] = image if name == INPUT_NAME else self._computed[name]
                _count(histogram, values, f"calibration image {number}: tensor {name}")


def memory_for(outputs: "Sequence[onnxruntime.NodeArg]") -> "dict[str, NDArray[np.float32]]":
    """Reserve what one image fills: in one piece, which the system gives in large pages, and along its cache's lines.

    Raises:
        ModelError: If an output's shape depends on the image, or there is not as much memory.
    """
    shapes = {output.name: (1, *output.shape[1:]) for output in outputs}
    for name, shape in shapes.items():
        if not all(isinstance(size, int) for size in shape):
            raise ModelError(f"tensor {name!r} has no fixed shape", hint="give a model that `export` wrote")
    sizes = [math.prod(shape) for shape in shapes.values()]
    *starts, end = accumulate((-(-size // _LINE) * _LINE for size in sizes), initial=0)
    try:
        piece = np.empty(end + _LINE, np.float32)
    except (MemoryError, ValueError) as error:
        what = f"the activations of an image take {4 * end // 10**9:,} GB, for which there is no memory"
        raise ModelError(what, hint="export the model for smaller images") from error
    piece = piece[-piece.ctypes.data % (4 * _LINE) // 4 :]
    return {
        name: piece[start : start + size].reshape(shape)
        for (name, shape), start, size in zip(shapes.items(), starts, sizes, strict=True)
    }


def _count(histogram: Histogram, values: "NDArray[np.float32]", what: str) -> None:
    try:
        histogram.update(values)
    except FloatingPointError as error:
        raise ModelError(f"{what} has a value that is not finite", hint="check the weights and the image") from error


def calibration_from(
    histograms: Mapping[str, Histogram],
    spec: CalibrationSpec,
    source: CalibrationSource,
    output_sqnr_db: "OutputQuality | None" = None,
) -> Calibration:
    """Choose every tensor's range by every method, and the method.

    Args:
        histograms: What was observed, by tensor name.
        spec: The method asked for.
        source: What the histograms were observed of.
        output_sqnr_db: For ``auto``: how well each method does on each tensor; the best is chosen.
    """
    tensors = {}
    for name, histogram in histograms.items():
        quality = output_sqnr_db[name] if output_sqnr_db is not None else {}
        method = max(RANGE_METHODS, key=lambda one: quality[one]) if spec.method == "auto" else spec.method
        tensors[name] = TensorCalibration(
            observed=(histogram.low, histogram.high),
            method=method,
            ranges={one: (chosen.low, chosen.high) for one, chosen in choose_ranges(histogram, spec).items()},
            output_sqnr_db=quality,
            values=histogram.total,
            histogram_sha256=histogram.digest,
        )
    return Calibration(source=source, spec=spec, tensors=tensors)
