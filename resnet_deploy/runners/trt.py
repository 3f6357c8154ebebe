"""TensorRT 10, 11 and RTX on an NVIDIA GPU, from host memory or from arrays that are on the GPU already."""

from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from resnet_deploy import trt_api
from resnet_deploy.batching import check_batch, check_feed
from resnet_deploy.cuda.memory import StreamBuffer
from resnet_deploy.cuda.runtime import Cuda
from resnet_deploy.cuda.streams import Stream
from resnet_deploy.device_arrays import DeviceArray, require_apart, view_of
from resnet_deploy.driver import probe_gpu
from resnet_deploy.environment import cache_folder
from resnet_deploy.errors import BackendError, FeedError
from resnet_deploy.runners import tensor_specs
from resnet_deploy.runners.trt_cache import RuntimeCache, cache_path
from resnet_deploy.runners.trt_checks import check_header, read_graph, read_plan
from resnet_deploy.runners.trt_engine import ContextOptions, TrtEngine, check_profiles
from resnet_deploy.runners.trt_lanes import Lanes
from resnet_deploy.runners.trt_slots import Slot
from resnet_deploy.runners.trt_timing import StepTimer, profile_layers

if TYPE_CHECKING:
    from collections.abc import Callable

    from resnet_deploy.bundle import Bundle
    from resnet_deploy.protocols import Array, LayerSeconds, StepSeconds, TensorSpec
    from resnet_deploy.specs import BatchRange, ModelCard

P = ParamSpec("P")
T = TypeVar("T")


def _on_device(method: "Callable[Concatenate[TrtRunner, P], T]") -> "Callable[Concatenate[TrtRunner, P], T]":
    """Run a method with the engine's device as the thread's; a thread of PyTorch may have another one."""

    @wraps(method)
    def run(self: "TrtRunner", /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self.cuda.is_current():
            return method(self, *args, **kwargs)
        with self.cuda.current():
            return method(self, *args, **kwargs)

    return run


class TrtRunner:
    """Runs one engine.

    The four steps of a runner belong to one thread at a time. A batch may be loaded while the one before it is run:
    ``load``, ``fetch``, ``enqueue``, and so on; ``fetch`` returns what was enqueued last. ``run_on`` may be called from
    any number of threads, beside the four steps too.

    Args:
        engine: Owned by the runner from here on.
        card: The model it holds.
        batch: Batch sizes to accept.
        device: The GPU's name.

    Raises:
        BundleError: If the engine has no optimization profile for an end of ``batch``.
    """

    loads_ahead = True
    profiler = "TensorRT"

    def __init__(self, engine: TrtEngine, card: "ModelCard", batch: "BatchRange", *, device: str = "CUDA") -> None:
        check_profiles(engine, batch)
        self.input: TensorSpec
        self.output: TensorSpec
        self.input, self.output = tensor_specs(card)
        self.batch = batch
        self.device = device
        self.cuda = engine.cuda
        self._engine = engine
        self._lanes = Lanes(engine)
        self._compute, self._copies = Stream.create(self.cuda), Stream.create(self.cuda)
        self._slots: list[Slot] = []
        self._loaded: Slot | None = None
        self._enqueued: Slot | None = None
        self._timer: StepTimer | None = None

    @classmethod
    def open(cls, bundle: "Bundle", threads: int, *, graphs: bool = True) -> "TrtRunner":
        """Load the engine of a bundle onto the first GPU; ``threads`` are those of a CPU, and not needed.

        Args:
            bundle: Of TensorRT or TensorRT-RTX.
            threads: Not needed.
            graphs: Whether to use CUDA graphs.

        Raises:
            BackendError: If there is no GPU, or TensorRT or cuda-bindings are not installed.
            BundleError: If the plan was altered, or is not for this library or GPU; the message names the field.
            DeviceError: If TensorRT cannot load the plan, or CUDA refuses a call.
        """
        del threads
        manifest = bundle.manifest
        api = trt_api.load(manifest.spec.backend)
        probe = probe_gpu()
        if not probe.gpus:
            raise BackendError(f"no NVIDIA GPU: {probe.reason}", hint="resnet-deploy doctor says what is missing")
        gpu, cuda = probe.gpus[0], Cuda()
        plan = read_plan(bundle, api, gpu.compute_capability)
        notes = check_header(bundle, api, plan)
        cache = None
        if api.ahead_of_time:
            digest = manifest.files[manifest.engine]
            cache = RuntimeCache(cache_path(cache_folder(), gpu.name, api.version, probe.driver, digest), list(notes))
        with cuda.current():
            weights = read_graph(bundle) if manifest.spec.trt.strip_weights else b""
            options = ContextOptions(graphs=graphs, weights=weights, host_code=manifest.requires.later_versions)
            engine = TrtEngine(api, plan, cuda, options, cache)
            return cls(engine, manifest.card, manifest.spec.batch, device=gpu.name)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of figures should know, one line each: whether graphs are used, and why not."""
        return self._engine.notes

    @property
    def graphs(self) -> bool:
        """Whether calls run as CUDA graphs, from the second of a batch size and pair of buffers on."""
        return self._engine.options.graphs and not self._engine.graph_refusal

    @_on_device
    def load(self, feed: "Array") -> None:
        """Copy one batch to pinned memory and start its way to the device."""
        check_feed(feed, self)
        slot = self._next_slot()
        slot.upload(feed, self._copies)
        self._loaded = slot

    @_on_device
    def enqueue(self) -> None:
        """Start inference on the loaded batch, as soon as it has arrived; return at once."""
        slot = self._loaded
        if slot is None:
            raise FeedError("nothing to run", hint="load a batch first")
        self._compute.wait(slot.uploaded)
        self._lanes.run((slot.size, slot.images.pointer, slot.logits.pointer), self._compute)
        self._enqueued = slot

    @_on_device
    def synchronize(self) -> None:
        """Wait until the enqueued inference is done."""
        self._compute.synchronize()

    @_on_device
    def fetch(self) -> "Array":
        """Wait for what was enqueued last and return its logits, (N, classes) float32, in fresh host memory."""
        if self._enqueued is None:
            raise FeedError("nothing to fetch", hint="enqueue a batch first")
        return self._enqueued.download(self._compute)

    @_on_device
    def time_steps(self, feed: "Array") -> "StepSeconds":
        """Take one batch through; return what each step took by CUDA's events, from and to pinned memory."""
        check_feed(feed, self)
        slot = self._next_slot()
        slot.stage(feed)
        if self._timer is None:
            self._timer = StepTimer(self.cuda)
        steps = self._timer.run(slot, self._lanes, self._copies, self._compute)
        self._enqueued = slot
        return steps

    @_on_device
    def profile_layers(self, feed: "Array", calls: int) -> "list[LayerSeconds]":
        """Run ``calls`` calls under TensorRT's profiler, in a context of their own and without graphs."""
        self.load(feed)
        slot = self._loaded
        assert slot is not None
        self._compute.wait(slot.uploaded)
        return profile_layers(self._engine, slot, self._compute, calls)

    @_on_device
    def run_on(self, feed: Any, *, stream: object = None, out: Any = None) -> DeviceArray:
        """Run one batch that is on the GPU, in the order of the caller's stream; nothing is copied, no host waits.

        Except in the first calls of a batch size and pair of buffers: memory for activations is taken, a CUDA graph
        captured. Buffers that come back, addresses and all, are served by that graph.

        Args:
            feed: (N, *input.shape), C-contiguous: an array of PyTorch, CuPy, Numba or PyCUDA, whatever has DLPack or
                the CUDA array interface, or a ``DeviceArray``. It must neither change nor be freed before ``stream``
                has passed this call.
            stream: Stream of PyTorch, CuPy or PyCUDA, or its handle, that is not being captured; None is the legacy
                default stream, as it is for them.
            out: Where the logits go, (N, classes) float32, as ``feed``; None takes fresh memory.

        Returns:
            The logits, ready on ``stream``: ``out``, or memory given back when nothing holds the array.

        Raises:
            FeedError: If ``feed`` or ``out`` has another type, shape, device or order of elements, or they overlap.
            DeviceError: If all contexts stay in use, the engine is closed, or CUDA or TensorRT refuses.
        """
        queue = Stream.borrow(self.cuda, stream)
        if queue.is_capturing:
            raise FeedError(
                "the stream is being captured", hint="call the engine outside: it has CUDA graphs of its own"
            )
        images = view_of(feed, queue)
        check_batch(images, self)
        shape = (images.shape[0], *self.output.shape)
        if out is None:
            logits = DeviceArray.empty(shape, self.output.dtype, queue)
        else:
            logits = self._view_of_out(out, shape, queue)
            require_apart(logits, images)
        self._lanes.run((shape[0], images.pointer, logits.pointer), queue)
        return logits

    def close(self) -> None:
        """Wait for what is running and release everything; harmless when repeated."""
        with self.cuda.current():
            self._lanes.close()
            self._loaded = self._enqueued = None
            for slot in self._slots:
                slot.close()
            self._slots.clear()
            if self._timer is not None:
                self._timer.close()
                self._timer = None
            self._compute.close()
            self._copies.close()
            self._engine.close()

    def _next_slot(self) -> Slot:
        """Choose the slot that is not being run; the second one is made when it is first needed."""
        for slot in self._slots:
            if slot is not self._enqueued:
                return slot
        self._slots.append(Slot(self.cuda, self.batch.max, self.input, self.output))
        return self._slots[-1]

    def _view_of_out(self, out: Any, shape: tuple[int, ...], queue: Stream) -> DeviceArray:
        view = view_of(out, queue)
        if view.shape != shape or view.dtype != self.output.dtype:
            raise FeedError(
                f"out is {view.dtype} {view.shape}, the logits are {self.output.dtype} {shape}",
                hint="give an array of that type and shape, or none",
            )
        if view.read_only:
            raise FeedError("out is read-only", hint="give an array that can be written to, or none")
        # The memory itself where it is ours: who reads the result later is remembered there.
        owner = view.owner if isinstance(view.owner, StreamBuffer) else out
        return DeviceArray(self.cuda, view.pointer, shape, view.dtype, stream=queue, owner=owner)
