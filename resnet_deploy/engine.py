"""The engine as an application holds it: images in, logits or labels out."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, overload

import numpy as np

from resnet_deploy import environment
from resnet_deploy.backends import find_backend
from resnet_deploy.batching import infer, infer_in_turns
from resnet_deploy.bundle import Bundle, Manifest, Requirements, open_bundle
from resnet_deploy.capabilities import backend_status
from resnet_deploy.device_arrays import is_on_device
from resnet_deploy.errors import BackendError, BundleError, FeedError, SpecError
from resnet_deploy.fleet import FleetEngine, is_fleet, open_engine, read_fleet
from resnet_deploy.runners import open_several, shares_requests
from resnet_deploy.specs import MAX_THREADS, require_at_most
from resnet_deploy.verify import best_classes, softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from resnet_deploy.device_arrays import DeviceArray, SupportsCuda
    from resnet_deploy.environment import Environment
    from resnet_deploy.protocols import Array, Runner

    Picture: TypeAlias = str | Path | Image


@dataclass(frozen=True)
class Prediction:
    """One class that an image may belong to, with the softmax probability the engine gives it."""

    index: int
    label: str
    probability: float


class Engine:
    """A loaded engine bundle.

    Calls from several threads are safe and take turns. Use it as a context manager, or call ``close``.

    Args:
        bundle: What the runners were opened from.
        runners: Owned by the engine from here on; batches of a long array are under way in all of them at once.
    """

    def __init__(self, bundle: Bundle, *runners: "Runner") -> None:
        self.bundle = bundle
        self._runners = runners
        self._lock = threading.Lock()

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.bundle.manifest

    @property
    def notes(self) -> tuple[str, ...]:
        """What the runner has to say of how it runs, one line each, such as why it does without CUDA graphs."""
        return tuple(getattr(self._runners[0], "notes", ())) if self._runners else ()

    @overload
    def __call__(self, images: "Array | Sequence[Picture]") -> "Array": ...

    @overload
    def __call__(
        self, images: "SupportsCuda", *, stream: object = None, out: "SupportsCuda | None" = None
    ) -> "DeviceArray": ...

    def __call__(self, images: Any, *, stream: object = None, out: Any = None) -> "Array | DeviceArray":
        """Compute logits.

        Args:
            images: One array of prepared images, (N, H, W, 3) uint8 for the default input contract; or file paths and
                Pillow images, which are decoded and preprocessed a batch at a time. Any N. An array on the GPU is run
                where it is, without a copy, and may have as many images as the engine takes at once.
            stream: For an array on the GPU: the stream of PyTorch, CuPy or PyCUDA in whose order it is run; None is
                the default stream.
            out: For an array on the GPU: where the logits go; None takes fresh memory.

        Returns:
            Logits, (N, classes) float32, owned by the caller; on the GPU where the images are, ready on ``stream``.

        Raises:
            FeedError: If an array has the wrong dtype or shape, or ``images`` are anything else, or are on a GPU that
                the engine does not run on.
            FileError, DataError: If a file is missing or is no image.
        """
        if is_on_device(images):
            return self._infer_on_device(images, stream, out)
        if stream is not None or out is not None:
            raise FeedError("stream and out are for arrays on the GPU", hint="give images there, or neither of the two")
        if isinstance(images, np.ndarray):
            return self._infer(images)
        pictures, size = _pictures(images), self.manifest.spec.batch.max
        starts = range(0, max(len(pictures), 1), size)  # no image is a batch of none: the logits have a shape too
        return np.concatenate([self._infer(self.prepare(pictures[start : start + size])) for start in starts])

    def prepare(self, images: "Sequence[Picture]") -> "Array":
        """Decode and preprocess files or Pillow images by the input contract; (N, H, W, 3) uint8 by default."""
        from resnet_deploy.images import batch_from_images

        return batch_from_images(_pictures(images), self.manifest.card.preprocess)

    def classify(self, images: "Array | Sequence[Picture]", top: int = 5) -> list[list[Prediction]]:
        """Name the ``top`` best classes of each image, best first (fewer where the model has fewer)."""
        if top < 1:
            raise SpecError(f"top {top} is not positive", hint="ask for at least one class")
        logits = self(images)
        card, ranked = self.manifest.card, best_classes(logits, top)
        probabilities = softmax(logits)
        return [
            [Prediction(int(index), card.label(int(index)), float(row[index])) for index in best]
            for best, row in zip(ranked, probabilities, strict=True)
        ]

    def _infer(self, feed: "Array") -> "Array":
        with self._lock:
            runners = self._opened()
            return infer(runners[0], feed) if len(runners) == 1 else infer_in_turns(runners, feed)

    def _infer_on_device(self, images: Any, stream: object, out: Any) -> "DeviceArray":
        with self._lock:
            runner = self._opened()[0]
        run_on = getattr(runner, "run_on", None)  # of runners whose memory is a GPU's
        if run_on is None:
            backend = self.manifest.spec.backend
            raise FeedError(
                f"the images are on a GPU, and {backend} engines run on {runner.device}",
                hint="copy them to the host, such as tensor.cpu().numpy(), or build with --backend tensorrt",
            )
        logits: DeviceArray = run_on(images, stream=stream, out=out)  # does without the lock: it takes any threads
        return logits

    def _opened(self) -> "tuple[Runner, ...]":
        if not self._runners:
            raise FeedError("the engine is closed", hint="load it again")
        return self._runners

    def close(self) -> None:
        """Release the runners; harmless when repeated."""
        with self._lock:
            for runner in self._runners:
                runner.close()
            self._runners = ()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def load(path: str | Path, *, threads: int = 0, requests: int = 1) -> Engine:
    """Open an engine bundle for inference.

    Args:
        path: A folder that ``resnet-deploy build`` made; or ``prebuild``, of which the first engine that fits this
            machine is loaded.
        threads: CPU threads for all that runs at once; 0 takes every core this process may use.
        requests: Batches of a long array to run side by side (``openvino``): more images per second than one after the
            other on all threads, where there are several batches, and each takes longer.

    Raises:
        FileError: If there is no bundle.
        BundleError: If a file was altered or the bundle does not fit this machine; the message names the field.
        BackendError: If its backend is not installed.
        SpecError: If ``threads`` or ``requests`` is out of range, or the backend runs one request at a time.
    """
    if threads < 0:
        raise SpecError(f"{threads} threads", hint="give a positive number, or 0 for every core")
    if requests < 1:
        raise SpecError(f"{requests} requests", hint="give at least one")
    require_at_most("number of threads", threads, MAX_THREADS)
    require_at_most("number of requests", requests, MAX_THREADS)
    here = environment.collect()
    bundle = _choose(Path(path), here) if is_fleet(Path(path)) else open_bundle(Path(path))
    check_fits(bundle, here)
    bundle.verify_files()
    backend = bundle.manifest.spec.backend
    if requests > 1 and not shares_requests(backend):
        raise SpecError(f"{backend} runs one request at a time", hint="drop `requests`, or build for openvino")
    each = max(1, (threads or environment.compute_threads()) // requests)
    return Engine(bundle, *open_several(bundle, each, requests))


def _choose(folder: Path, here: "Environment") -> Bundle:
    """Take the first engine of a fleet whose backend runs here and whose requirements this machine meets.

    Raises:
        BundleError: With a reason for each, if there is none.
    """
    reasons = []
    for engine in read_fleet(folder).engines:
        reason = _reason_against(engine, here)
        if not reason:
            return open_engine(folder, engine)
        reasons.append(f"{engine.folder}: {reason}")
    hint = "build one on this machine"
    raise BundleError(f"{folder} has no engine for this machine: {'; '.join(reasons)}", hint=hint)


def _reason_against(engine: FleetEngine, here: "Environment") -> str:
    """Say why an engine does not run here, as far as the index tells; empty if it does."""
    if misfit := _misfit(engine.requires, here):
        return misfit[0]
    try:
        return backend_status(find_backend(engine.backend), here).run.reason
    except BackendError as error:
        return error.message


def check_fits(bundle: Bundle, here: "Environment") -> None:
    """Hold what the bundle requires against this machine, before a byte reaches the backend.

    Raises:
        BundleError: Naming the first field that differs.
    """
    if misfit := _misfit(bundle.manifest.requires, here):
        reason, hint = misfit
        raise BundleError(f"{bundle.path}: {reason}", hint=hint)


def _misfit(requires: Requirements, here: "Environment") -> tuple[str, str] | None:
    """Name the first requirement that this machine does not meet, and what to do; None if it meets all."""
    if requires.int8_dot_product and not here.cpu.has_vnni:
        return (
            "requires.int8_dot_product is true, and this CPU has none: its INT8 results would saturate",
            "build the engine on this machine; it will then use 7-bit weights",
        )
    installed = {library.name: library.version for library in here.libraries}.get(requires.library)
    if installed is not None and not requires.takes_version(installed):
        later = ", or a later one of that major release" if requires.later_versions else ""
        return (
            f"requires.version is {requires.library} {requires.version}{later}, installed is {installed}",
            f"install {requires.library}=={requires.version}, or build the engine again",
        )
    for gpu in here.gpu.gpus[:1]:
        if unmet := requires.takes_gpu(gpu.compute_capability):
            return f"{unmet}, {gpu.name} has {gpu.compute_capability}", "build the engine for this GPU"
    return None


def _pictures(images: Any) -> "list[Path | Image]":
    """Hold ``images`` against what can be decoded and preprocessed.

    Arrays in a list are refused, not guessed at: prepared ones would be resized and cropped once more, others have to
    be, and nothing tells them apart.

    Raises:
        FeedError: If one is neither a path nor a Pillow image, or ``images`` is no sequence.
    """
    from PIL.Image import Image

    if isinstance(images, (str, Path, Image)):
        what = "image" if isinstance(images, Image) else "path"
        raise FeedError(f"one {what} where a sequence is expected", hint=f"write engine([{what}])")
    try:
        listed = list(images)
    except TypeError:
        raise FeedError(f"{_type_name(images)} where images are expected", hint=_ACCEPTED) from None
    for position, image in enumerate(listed):
        if not isinstance(image, (str, Path, Image)):
            raise FeedError(f"image {position} is of type {_type_name(image)}", hint=_ACCEPTED)
    return [Path(image) if isinstance(image, str) else image for image in listed]


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


_ACCEPTED: Final = "give paths or Pillow images, or one NumPy array of prepared images (numpy.stack, tensor.numpy())"
