"""The engine as an application holds it: images in, logits or labels out."""

import math
import os
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from resnet_deploy import environment
from resnet_deploy.batching import check_images, infer_some
from resnet_deploy.bundle import Bundle, Manifest, open_bundle
from resnet_deploy.compatibility import check_fits, choose_engine
from resnet_deploy.device_arrays import is_on_device
from resnet_deploy.errors import FeedError, SpecError
from resnet_deploy.fair_lock import LOOK_AGAIN_S, FairLock, Signal, require_process
from resnet_deploy.fleet import is_fleet
from resnet_deploy.host_arrays import require_apart, view_of_logits, view_of_out, view_on_host
from resnet_deploy.microbatching import Batching, MicroBatcher
from resnet_deploy.pictures import is_picture, pictures_of, type_name
from resnet_deploy.runners import open_several, shares_requests, tensor_specs
from resnet_deploy.specs import MAX_THREADS, require_at_most
from resnet_deploy.verify import best_classes, softmax

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from resnet_deploy.device_arrays import DeviceArray, SupportsCuda
    from resnet_deploy.host_arrays import SupportsDlpack
    from resnet_deploy.pictures import Picture
    from resnet_deploy.protocols import Array, Runner

T = TypeVar("T")


@dataclass(frozen=True)
class Prediction:
    """One class that an image may belong to, with the softmax probability the engine gives it."""

    index: int
    label: str
    probability: float


class Engine:
    """A loaded engine bundle.

    Safe to call from any number of threads: calls take turns, a long one batch by batch; ``submit`` gathers what
    threads ask into batches. Use it as a context manager, or call ``close``. It belongs to the process that opened it:
    one that is forked from that is refused.

    >>> engine = load("engines/resnet50-int8-onnxruntime")
    >>> engine(["cat.jpg", "dog.jpg"]).shape
    (2, 10)
    >>> images = engine.prepare(["cat.jpg", "dog.jpg"])
    >>> out = np.empty((2, 10), np.float32)
    >>> engine(images, out=out) is out
    True
    >>> future = engine.submit("cat.jpg")
    >>> future.result().shape
    (10,)
    >>> engine.close()

    Args:
        bundle: What the runners were opened from.
        runners: Owned by the engine from here on; batches of a long array are under way in all of them at once.
        batching: How ``submit`` gathers images.

    Raises:
        SpecError: If ``batching`` asks for batches that are larger than the engine takes.
    """

    def __init__(self, bundle: Bundle, *runners: "Runner", batching: Batching | None = None) -> None:
        self.bundle = bundle
        self._runners = runners
        self._runners_lock = FairLock()
        self._under_way: set[object] = set()  # calls
        self._ended = Signal()  # one of them has
        self._process = os.getpid()
        self._batching = batching or Batching()
        self._batch_size = self._batching.batch_for(self.manifest.spec.batch.max * max(len(runners), 1))
        self._batcher: MicroBatcher | None = None
        self._batcher_lock = threading.Lock()
        self._closed = False

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
    def __call__(self, images: "Array | Sequence[Picture]", *, out: T) -> T: ...

    @overload
    def __call__(self, images: "DeviceArray", *, stream: object = None, out: None = None) -> "DeviceArray": ...

    @overload
    def __call__(
        self, images: "SupportsDlpack | SupportsCuda", *, stream: object = None, out: object = None
    ) -> Any: ...

    def __call__(self, images: Any, *, stream: object = None, out: Any = None) -> Any:
        """Compute logits.

        Args:
            images: One array of prepared images, (N, H, W, 3) uint8 for the default input contract; or file paths and
                Pillow images, which are decoded and preprocessed a batch at a time. Any N. An array may be NumPy's, or
                another library's (a tensor of PyTorch) in the host's memory: read where it is, without a copy, if it is
                C-contiguous, and copied a batch at a time if it is not. An array on the GPU is run where it is,
                without a copy, and may have as many images as the engine takes at once.
            stream: For an array on the GPU: the stream of PyTorch, CuPy or PyCUDA in whose order it is run; None is
                the default stream.
            out: Where the logits go, (N, classes) float32, C-contiguous, beside the images: an array on the GPU for
                one there, else a NumPy array or a tensor on the CPU. None takes fresh memory. ONNX Runtime on the CPU
                writes into it itself; other backends' logits are copied into it, once from OpenVINO's memory, once
                more on the way from a GPU. After an error it may hold a part of the answers.

        Returns:
            ``out``, if given. Else logits, (N, classes) float32, owned by the caller: a NumPy array, whose memory
            ``torch.from_numpy`` shares; or, for images on the GPU, a ``DeviceArray`` where they are, ready on
            ``stream``.

        Raises:
            FeedError: If an array has the wrong dtype or shape, or ``images`` are anything else, or are on a GPU that
                the engine does not run on; if ``out`` does not fit or overlaps with them; or if the engine is closed,
                or was opened in another process.
            FileError, DataError: If a file is missing or is no image.
        """
        require_process(self._process)
        if is_on_device(images):
            return self._infer_on_device(images, stream, out)
        if stream is not None:
            raise FeedError("a stream is for arrays on the GPU", hint="give images there, or no stream")
        with self._call():
            feed = None if is_picture(images) else view_on_host(images)
            files = pictures_of(images) if feed is None else []
            shape = (len(files) if feed is None else _count(feed), self.manifest.card.num_classes)
            logits: Array = np.empty(shape, np.float32) if out is None else view_of_out(out, shape, "float32")
            if feed is not None:
                require_apart(logits, feed)
                self._infer(feed, logits)
            size = self.manifest.spec.batch.max
            for start in range(0, len(files), size):
                part = slice(start, start + size)
                self._infer(self.prepare(files[part]), logits[part])
        return logits if out is None else out

    def submit(
        self, images: "Picture | Array | SupportsDlpack", *, timeout_s: float | None = None, block: bool = True
    ) -> "Future[Array]":
        """Ask for the logits of one image, or of a few, to be run in a batch with those of other callers.

        Files and Pillow images are decoded and preprocessed in the caller's thread, and so in as many as call.
        Callbacks of the future run in the thread that makes batches, and keep the engine waiting: let them be short.
        How batches are made is told to ``load``.

        Args:
            images: A path or a Pillow image; one prepared image, (H, W, 3) uint8 for the default input contract; or a
                few, (n, H, W, 3), which are run together. Copied before this returns.
            timeout_s: Seconds from now in which the engine has to begin; after that the request fails, when the engine
                is free for it, and is not run. None for any time.
            block: Whether to wait while too many images wait already, which slows callers down to the engine's pace
                and loses nothing. False raises instead, as an event loop needs it, which must not be held up.

        Returns:
            A future of the logits, (classes,) float32, or (n, classes); owned by the caller. Cancelled before it is
            begun, it is not run. Fails with DeadlineError, or with what the backend raised.

        Raises:
            FeedError: If the images do not fit the input contract or one batch, or the engine is closed, or was opened
                in another process.
            FileError, DataError: If a file is missing or is no image.
            BusyError: If too many images wait, and ``block`` is false.
            DeadlineError: If there was no room in time.
            SpecError: If ``timeout_s`` is not positive.
        """
        if timeout_s is not None and not timeout_s > 0:
            raise SpecError(f"a timeout of {timeout_s} s", hint="give timeout_s in seconds, or None")
        require_process(self._process)
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        batcher = self._opened_batcher()
        if is_picture(images):
            (image,) = self.prepare([images])
            return batcher.submit(image, deadline=deadline, block=block)
        feed = None if is_on_device(images) else view_on_host(images)
        if feed is None:
            hint = (
                "give one path, one Pillow image, or an array in the host's memory; arrays on a GPU to engine(images)"
            )
            raise FeedError(f"a request of {type_name(images)}", hint=hint)
        return batcher.submit(feed, deadline=deadline, block=block)

    def prepare(self, images: "Sequence[Picture]") -> "Array":
        """Decode and preprocess files or Pillow images by the input contract; (N, H, W, 3) uint8 by default."""
        from resnet_deploy.images import batch_from_images

        return batch_from_images(pictures_of(images), self.manifest.card.preprocess)

    def classify(self, images: "Array | SupportsDlpack | Sequence[Picture]", top: int = 5) -> list[list[Prediction]]:
        """Name the ``top`` best classes of each image, best first (fewer where the model has fewer)."""
        return self.rank(self(images), top)

    def rank(self, logits: "Array | SupportsDlpack", top: int = 5) -> list[list[Prediction]]:
        """Name the ``top`` best classes of each row of logits, best first (fewer where the model has fewer).

        Args:
            logits: (N, classes), of any library in the host's memory, such as the engine and ``submit`` give; those of
                one image, (classes,), as ``logits[None]``.
            top: How many.

        Raises:
            FeedError: If they are no such array, or not finite.
            SpecError: If ``top`` is not positive.
        """
        if top < 1:
            raise SpecError(f"top {top} is not positive", hint="ask for at least one class")
        card = self.manifest.card
        rows = view_of_logits(logits, card.num_classes)
        ranked, probabilities = best_classes(rows, top), softmax(rows)
        return [
            [Prediction(int(index), card.label(int(index)), float(row[index])) for index in best]
            for best, row in zip(ranked, probabilities, strict=True)
        ]

    @contextmanager
    def _call(self) -> "Iterator[None]":
        """Have ``close`` wait for the end of the ``with``."""
        call = object()
        try:
            if self._closed:
                raise _closed_error()
            self._under_way.add(call)
            yield
        finally:
            self._under_way.discard(call)
            self._ended.set()

    def _infer(self, feed: "Array", out: "Array") -> None:
        """Run any number of images; the turn is given up after a batch wherever somebody else waits for it."""
        check_images(feed, self._opened()[0])
        done = 0
        while done < len(feed):
            with self._runners_lock.held():
                done += infer_some(self._opened(), feed[done:], out[done:], lambda: not self._runners_lock.is_wanted)

    @contextmanager
    def _batch_turn(self) -> "Iterator[Callable[[Array, Array], object]]":
        """Have the engine to oneself, for one batch of ``submit``."""
        with self._runners_lock.held():
            yield partial(infer_some, self._runners)

    def _infer_on_device(self, images: Any, stream: object, out: Any) -> "DeviceArray":
        with self._runners_lock.held():
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
            raise _closed_error()
        return self._runners

    def _opened_batcher(self) -> MicroBatcher:
        with self._batcher_lock:
            if self._batcher is None:
                if self._closed:
                    raise _closed_error()
                specs = tensor_specs(self.manifest.card)
                self._batcher = MicroBatcher(self._batch_turn, *specs, self._batch_size, self._batching)
            return self._batcher

    def close(self, *, drain: bool = True) -> None:
        """Wait for the calls that are under way and release the runners; harmless when repeated.

        Does nothing in a process that was forked from the engine's own.

        Args:
            drain: Whether what was submitted is answered first; False cancels what has not begun.
        """
        if os.getpid() != self._process:
            return
        with self._batcher_lock:
            self._closed = True
        if self._batcher is not None:
            self._batcher.close(drain=drain)
        while self._under_way:
            self._ended.wait(LOOK_AGAIN_S)
        with self._runners_lock.held():
            for runner in self._runners:
                runner.close()
            self._runners = ()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def load(path: str | Path, *, threads: int = 0, requests: int = 1, batching: Batching | None = None) -> Engine:
    """Open an engine bundle for inference.

    Args:
        path: A folder that ``resnet-deploy build`` made; or ``prebuild``, of which the first engine that fits this
            machine is loaded.
        threads: CPU threads for all that runs at once; 0 takes one per physical core, within a container's quota.
        requests: Batches of a long array to run side by side (``openvino``): more images per second than one after the
            other on all threads, where there are several batches, and each takes longer.
        batching: How ``Engine.submit`` gathers images; None for the defaults of ``Batching``.

    Raises:
        FileError: If there is no bundle.
        BundleError: If a file was altered or the bundle does not fit this machine; the message names the field.
        BackendError: If its backend is not installed.
        SpecError: If ``threads`` or ``requests`` is out of range, or the backend runs one request at a time, or
            ``batching`` asks for larger batches than the engine takes.
    """
    if threads < 0:
        raise SpecError(f"{threads} threads", hint="give a positive number, or 0 for every core")
    if requests < 1:
        raise SpecError(f"{requests} requests", hint="give at least one")
    require_at_most("number of threads", threads, MAX_THREADS)
    require_at_most("number of requests", requests, MAX_THREADS)
    here = environment.collect()
    bundle = choose_engine(Path(path), here) if is_fleet(Path(path)) else open_bundle(Path(path))
    check_fits(bundle, here)
    bundle.verify_files()
    backend = bundle.manifest.spec.backend
    if requests > 1 and not shares_requests(backend):
        raise SpecError(f"{backend} runs one request at a time", hint="drop `requests`, or build for openvino")
    each = max(1, (threads or environment.compute_threads()) // requests)
    batching = batching or Batching()
    batching.batch_for(bundle.manifest.spec.batch.max * requests)  # before anything is opened
    return Engine(bundle, *open_several(bundle, each, requests), batching=batching)


def _closed_error() -> FeedError:
    return FeedError("the engine is closed", hint="load it again")


def _count(feed: "Array") -> int:
    """Say how many images an array has; one that has no such axis is refused where its shape is checked."""
    return len(feed) if feed.ndim else 0
