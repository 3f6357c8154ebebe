"""A stand-in for the Python bindings of TensorRT 10, 11 and RTX, over the stand-in for CUDA's.

Its engine adds up the bytes of each image and answers that sum times 1, 2, 3, ... It proves logic, not hardware: that
everything is set before it is used, that what TensorRT forbids is not done, that answers come from the right memory at
the right time. Like the original, it says no by returning False or None, and logs why.
"""

import json
from enum import Enum, IntEnum
from types import SimpleNamespace

import numpy as np
from cuda_stand_in import Error

from resnet_deploy.trt_api import TrtApi

HEADER = b"stand-in".ljust(64, b".")


def plan(image=(2, 2, 3), dtype="uint8", classes=3, profiles=((1, 2, 8),), **more):
    """Write a plan: the header, and what the engine is as JSON."""
    return (
        HEADER + json.dumps({"image": image, "dtype": dtype, "classes": classes, "profiles": profiles, **more}).encode()
    )


def expected(feed, classes=3):
    """What the engine answers."""
    sums = feed.sum(axis=(1, 2, 3), dtype=np.float32)
    return sums[:, None] * np.arange(1, classes + 1, dtype=np.float32)


class Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity


class Strategy(IntEnum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class IProfiler:
    """What the user derives from; the original wants its own constructor to have run."""

    def __init__(self):
        self.made = True


class GraphStrategy(IntEnum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class Validity(IntEnum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class Diagnostics(IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    MALFORMED_ENGINE = 32


class Runtime:
    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, data):
        if data[:64] != HEADER:
            self.logger.log(Severity.ERROR, "magic tag does not match")
            return None
        return ICudaEngine(self, json.loads(data[64:]))


class RtxRuntime(Runtime):
    engine_header_size = 64

    def get_engine_validity(self, header):
        assert len(header) == self.engine_header_size
        return self.trt.validity if bytes(header) == HEADER else (Validity.INVALID, int(Diagnostics.MALFORMED_ENGINE))


class IRuntimeConfig:
    def __init__(self):
        self.strategy = Strategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy


class RtxRuntimeConfig(IRuntimeConfig):
    def __init__(self, accepts):
        super().__init__()
        self.cuda_graph_strategy, self.cache, self.accepts = GraphStrategy.DISABLED, None, accepts

    def create_runtime_cache(self):
        return IRuntimeCache(self.accepts)

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class IRuntimeCache:
    def __init__(self, accepts):
        self.accepts, self.kernels = accepts, b""

    def deserialize(self, data):
        if data.startswith(self.accepts):
            self.kernels = bytes(data)
        return bool(self.kernels)

    def serialize(self):
        return self.kernels or self.accepts + b" kernels"


class ICudaEngine:
    def __init__(self, runtime, model):
        self.runtime, self.model = runtime, SimpleNamespace(**model)
        self.contexts = []
        self.num_io_tensors = 2
        self.num_optimization_profiles = len(self.model.profiles)
        runtime.trt.engines.append(self)

    def get_tensor_name(self, index):
        return getattr(self.model, "names", ("images", "logits"))[index]

    def get_tensor_shape(self, name):
        return (-1, *self.model.image) if name == "images" else (-1, self.model.classes)

    def get_tensor_profile_shape(self, name, index):
        return [(size, *self.model.image) for size in self.model.profiles[index]]

    def create_runtime_config(self):
        trt = self.runtime.trt
        return RtxRuntimeConfig(trt.cache_tag) if trt.is_rtx else IRuntimeConfig()

    def create_execution_context(self, config):
        trt = self.runtime.trt
        if trt.contexts_left is not None:
            if trt.contexts_left == 0:
                self.runtime.logger.log(Severity.ERROR, "no memory for a context")
                return None
            trt.contexts_left -= 1
        context = (RtxExecutionContext if trt.is_rtx else IExecutionContext)(self, config)
        self.contexts.append(context)
        return context


class IExecutionContext:
    def __init__(self, engine, config):
        self.engine, self.trt, self.config = engine, engine.runtime.trt, config
        self.profile, self.shape, self.addresses = None, None, {}
        self.memory, self.needed = None, None
        self.flushed, self.changes, self.pending = False, 0, 0
        self.profiler = None

    def refuse(self, why):
        self.engine.runtime.logger.log(Severity.ERROR, why)
        return False

    def changed(self, *, flushed=False):
        self.changes, self.flushed = self.changes + 1, flushed

    def set_optimization_profile_async(self, index, stream):
        self.trt.cuda.queue(stream)
        if not 0 <= index < self.engine.num_optimization_profiles:
            return self.refuse(f"no profile {index}")
        self.profile, self.shape, self.needed = index, None, None
        self.changed()
        return True

    def set_input_shape(self, name, shape):
        least, _, most = self.engine.model.profiles[self.profile]
        if name != "images" or tuple(shape[1:]) != tuple(self.engine.model.image) or not least <= shape[0] <= most:
            return self.refuse(f"{name} cannot be {shape}")
        self.shape, self.needed = tuple(shape), None
        self.changed()
        return True

    def update_device_memory_size_for_shapes(self):
        if self.shape is None:
            self.trt.cuda.fault("sizes asked for before the shape is set")
        self.needed, self.memory = 256 * self.shape[0], None
        return self.needed

    def set_device_memory(self, memory, size):
        self.trt.cuda.at(memory, size)
        assert memory % 256 == 0
        self.memory = (memory, size)
        self.changed(flushed=self.flushed)

    def set_tensor_address(self, name, memory):
        if name not in ("images", "logits"):
            return self.refuse(f"no tensor {name}")
        self.addresses[name] = int(memory)
        self.changed(flushed=self.flushed)
        return True

    def missing(self):
        """What is not set, in words; empty if nothing is missing."""
        if self.profile is None or self.shape is None:
            return "no profile or no shape"
        if set(self.addresses) != {"images", "logits"}:
            return "no address for a tensor"
        if self.needed is None or self.memory is None or self.memory[1] < self.needed:
            return "no memory, or too little, for activations"
        return ""

    def execute_async_v3(self, stream):
        cuda = self.trt.cuda
        with cuda.lock:
            if self.trt.fails:
                return self.refuse("enqueue failed")
            if lacking := self.missing():
                cuda.misuses.append(lacking)
                return self.refuse(lacking)
            if int(stream) in (0, 1):
                cuda.fault("on the legacy default stream, TensorRT waits for the whole device")
            queue = cuda.queue(stream)
            ready = self.flushed and not self.pending and not self.trt.not_capturable
            if queue.captured is not None and not ready:
                queue.invalid = True
                return self.refuse(str(Error.cudaErrorStreamCaptureUnsupported.name))
            self.trt.enqueued.append(("captured" if queue.captured is not None else "plain", int(stream)))
            self._put(stream, captured=queue.captured is not None)
            self.flushed = True
            if self.profiler is not None:
                assert queue.captured is None
                assert self.profiler.made
                cuda.drain(stream)
                for name, ms in (("sum", 2.0), ("product", 0.5)):
                    self.profiler.report_layer_time(name, ms)
        return True

    def _put(self, stream, *, captured):
        """Put the two halves of the work into a stream, with memory for activations between them."""
        cuda, model = self.trt.cuda, self.engine.model
        size, state = self.shape[0], self.changes
        images, logits, scratch = self.addresses["images"], self.addresses["logits"], self.memory[0]
        nbytes = size * int(np.prod(model.image)) * np.dtype(model.dtype).itemsize
        for pointer, needed in ((images, nbytes), (logits, size * model.classes * 4), (scratch, self.needed)):
            cuda.at(pointer, needed)

        def first():
            if captured and self.changes != state:
                cuda.fault("a context was changed after its graph was captured")
            feed = cuda.at(images, nbytes)[1].view(model.dtype).reshape(size, -1)
            cuda.at(scratch, 4 * size)[1].view(np.float32)[:] = feed.sum(axis=1, dtype=np.float32)

        def second():
            sums = cuda.at(scratch, 4 * size)[1].view(np.float32)
            answers = cuda.at(logits, size * model.classes * 4)[1].view(np.float32).reshape(size, -1)
            answers[:] = sums[:, None] * np.arange(1, model.classes + 1, dtype=np.float32)
            self.pending -= not captured

        self.pending += not captured
        cuda.put(stream, first)
        cuda.put(stream, second)


class RtxExecutionContext(IExecutionContext):
    def is_stream_capturable(self, stream):
        return not self.trt.not_capturable


class TrtStandIn:
    """In place of the module.

    Args:
        cuda: The stand-in that it puts its work into.
        rtx: Whether it is the RTX edition.
    """

    ILogger, IProfiler = ILogger, IProfiler
    ExecutionContextAllocationStrategy = Strategy

    def __init__(self, cuda, *, rtx=False):
        self.cuda, self.is_rtx = cuda, rtx
        self.Runtime = type("Runtime", (RtxRuntime if rtx else Runtime,), {"trt": self})
        if rtx:
            self.CudaGraphStrategy, self.EngineValidity = GraphStrategy, Validity
            self.EngineInvalidityDiagnostics = Diagnostics
        self.engines, self.enqueued = [], []  # ("plain" or "captured", stream)
        self.validity = (Validity.VALID, 0)
        self.cache_tag = b"tag"
        self.fails = self.not_capturable = False
        self.contexts_left = None

    def api(self):
        return TrtApi("tensorrt-rtx" if self.is_rtx else "tensorrt", self, "1.0")
