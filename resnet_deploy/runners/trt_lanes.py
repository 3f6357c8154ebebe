"""Lanes: execution contexts with their memory and their graphs, one call at a time each, lent to threads and streams.

A captured graph holds addresses of buffers and of activations, and the state of the context it was captured from, which
must not change from then on. So each graph keeps a context of its own; those of one lane share the memory for
activations, since their work is done one after the other.
"""

import contextlib
import threading
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from resnet_deploy.cuda.graphs import Graph, capture
from resnet_deploy.cuda.memory import DeviceBuffer
from resnet_deploy.cuda.streams import LEGACY, Event, Stream
from resnet_deploy.errors import DeviceError
from resnet_deploy.specs import INPUT_NAME, OUTPUT_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

    from resnet_deploy.runners.trt_engine import TrtEngine

    Reserve = Callable[[int], DeviceBuffer | None]

# Of buffers that come and go, the addresses do too: enough for the few that an application goes round in.
MOST_GRAPHS: Final = 16
_MOST_SEEN: Final = 256

Call = tuple[int, int, int]  # batch size, address of the images, address of the logits


class Lanes:
    """A bounded number of lanes. Safe to use from several threads.

    Args:
        engine: What they run.
    """

    def __init__(self, engine: "TrtEngine") -> None:
        self._engine = engine
        self._most, self._timeout_s = engine.options.contexts, engine.options.timeout_s
        self._idle: list[Lane] = []  # the one that was used last comes last
        self._made = 0
        self._closed = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting = 0  # for something to change: a notification that nobody waits for costs a tenth of a call

    def run(self, call: Call, stream: Stream) -> None:
        """Put a call into ``stream``, in a lane that nobody else uses meanwhile; the device may get to it later.

        Args:
            call: What to run.
            stream: In the order of which it is run.

        Raises:
            DeviceError: If no lane gets free in time, the engine is closed, or TensorRT refuses.
        """
        taken: list[Lane] = []  # filled where it is taken: an interrupt may come before a call that took it returns
        try:
            self._take(stream, taken)
            taken[0].run(call, stream)
        finally:
            self._give_back(taken)

    def close(self) -> None:
        """Wait for calls that are being put into streams, then for the device, and release all lanes.

        No longer than a call waits for a lane: an interrupt in the midst of giving one back may have lost it. What is
        still in use then is a ResourceWarning, and released when it comes back or is collected.
        """
        with self._lock:
            self._closed = True
            self._changed.notify_all()
            self._wait(lambda: len(self._idle) >= self._made, self._timeout_s)
            lanes, made = self._idle, self._made
            self._idle, self._made = [], 0
        for lane in lanes:
            lane.close()
        if len(lanes) < made:
            lost = f"{made - len(lanes)} of {made} execution contexts stayed in use for {self._timeout_s:g} seconds"
            warnings.warn(f"not released: {lost}", ResourceWarning, stacklevel=2)

    def _give_back(self, taken: "list[Lane]") -> None:
        with self._lock:
            late = taken if self._closed and self._made <= 0 else []
            if not late:
                self._idle.extend(taken)
            if self._waiting:
                self._changed.notify_all()
        for lane in late:  # nobody else will
            lane.close()

    def _wait(self, condition: "Callable[[], bool]", timeout_s: float | None) -> bool:
        self._waiting += 1
        try:
            return self._changed.wait_for(condition, timeout_s)
        finally:
            self._waiting -= 1

    def _take(self, stream: Stream, taken: "list[Lane]") -> None:
        """Put a lane into ``taken``, also where an error follows."""
        with self._lock:
            self._choose(stream, taken)
            if not taken and self._made >= self._most:
                if not self._wait(self._may_take, self._timeout_s):
                    raise DeviceError(
                        f"all {self._most} execution contexts were in use for {self._timeout_s:g} seconds",
                        hint="use more contexts, or fewer threads",
                    )
                self._choose(stream, taken)
            if self._closed:
                raise DeviceError("the engine is closed", hint="load it again")
            if taken:
                return
            self._made += 1
        try:
            taken.append(Lane(self._engine))
        except BaseException:
            with self._lock:
                self._made -= 1  # who waits for the place is told where nothing is given back
            raise

    def _may_take(self) -> bool:
        return self._closed or bool(self._idle) or self._made < self._most

    def _choose(self, stream: Stream, taken: "list[Lane]") -> None:
        """Take the idle lane last used on ``stream``; else, if no more may be made, the one idle for longest."""
        idle = self._idle
        for index in range(len(idle) - 1, -1, -1):
            if idle[index].was_on(stream):
                taken.append(idle.pop(index))
                return
        if idle and self._made >= self._most:
            taken.append(idle.pop(0))


class Lane:
    """One queue of calls: contexts, the memory that they share, and graphs. Used by one thread at a time.

    Args:
        engine: What it runs.
    """

    def __init__(self, engine: "TrtEngine") -> None:
        self._engine, self._cuda = engine, engine.cuda
        self._done = Event(self._cuda)
        self._side = Stream.create(self._cuda)
        self._last: Stream | None = None
        self._scratch: DeviceBuffer | None = None
        self._plain = Context(engine)
        self._graphs: OrderedDict[Call, tuple[Graph, Context]] = OrderedDict()
        self._seen: OrderedDict[Call, bool] = OrderedDict()

    def was_on(self, stream: Stream) -> bool:
        """Whether the last call was put into ``stream``."""
        return self._last is not None and self._last.is_same(stream)

    def run(self, call: Call, stream: Stream) -> None:
        """Put a call into ``stream``, behind the lane's last one; see ``Lanes.run``."""
        self._follow(stream)
        graph = self._graphs.get(call)
        if graph is not None:
            self._graphs.move_to_end(call)
            graph[0].launch(stream)
            self._done.record(stream)
        elif (stream.handle or LEGACY) == LEGACY:
            # On the legacy default stream, TensorRT would wait for the whole device.
            self._side.wait_for(stream)
            try:
                self._run_new(call, self._side)
            finally:  # what a call that failed has put there works in the lane's memory until it is done
                stream.wait(self._done)
        else:
            self._run_new(call, stream)

    def close(self) -> None:
        """Wait for the device and release everything."""
        with contextlib.suppress(DeviceError):  # a lost context has nothing left to wait for
            self._done.synchronize()
        self._drop_graphs()
        self._plain.forget()
        for resource in (self._scratch, self._done, self._side):
            if resource is not None:
                resource.close()

    def _follow(self, stream: Stream) -> None:
        """Let ``stream`` wait for the lane's last call, unless that is surely in the same stream."""
        last = self._last
        if last is not None and not (last.lasts and last.is_same(stream)):
            stream.wait(self._done)
        self._last = stream  # only now: a wait that failed is to be made up for

    def _run_new(self, call: Call, stream: Stream) -> None:
        """Put a call that has no graph into ``stream``; if it has come before, give it one for the next time."""
        came_before = self._seen.pop(call, False)
        self._seen[call] = True
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)
        context = self._plain
        if came_before and self._engine.captures:
            context = self._new_context() or context
        try:
            context.set(call, stream, self._reserve)
            context.enqueue(stream)
        finally:
            self._done.record(stream)
        if context is not self._plain:
            stream.synchronize()  # once for each graph; what the first call put off must not be captured
            self._capture(call, context)

    def _capture(self, call: Call, context: "Context") -> None:
        if not context.is_capturable(self._side):
            self._engine.graph_refusal = f"{self._engine.api.backend} cannot be captured with this engine"
            return
        try:
            graph = capture(self._cuda, self._side, lambda: context.enqueue(self._side))
        except DeviceError as error:
            self._engine.graph_refusal = error.message
            return
        self._seen.pop(call, None)
        self._graphs[call] = (graph, context)
        if len(self._graphs) > MOST_GRAPHS:  # none is under way: the first call of this one was waited for
            self._graphs.popitem(last=False)[1][0].close()

    def _new_context(self) -> "Context | None":
        """Make a context for a graph; where there is no memory for it, calls go on without."""
        try:
            return Context(self._engine)
        except DeviceError as error:
            self._engine.graph_refusal = error.message
            return None

    def _reserve(self, nbytes: int) -> DeviceBuffer | None:
        """Have at least ``nbytes`` for activations; graphs that hold the address of a smaller piece are dropped."""
        if nbytes <= (self._scratch.nbytes if self._scratch else 0):
            return self._scratch
        self._done.synchronize()
        self._drop_graphs()
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None
        self._scratch = DeviceBuffer(self._cuda, nbytes)
        return self._scratch

    def _drop_graphs(self) -> None:
        for graph, context in self._graphs.values():
            graph.close()
            context.forget()
        self._graphs.clear()


class Context:
    """An execution context and what it is set to, so that nothing is set twice.

    What is being set is unknown until it is done: a refusal, or an interrupt, may come on either side of it.
    """

    def __init__(self, engine: "TrtEngine") -> None:
        self._engine = engine
        self._context = engine.new_context()
        self._profile = self._batch = self._images = self._logits = self._memory = -1

    def set(self, call: Call, stream: Stream, reserve: "Reserve") -> None:
        """Set profile, shape, memory and addresses; ``reserve`` gives memory for activations, (bytes) -> buffer.

        Raises:
            DeviceError: If TensorRT refuses one of them.
        """
        batch, images, logits = call
        engine, context = self._engine, self._context
        profile = engine.profile_for(batch)
        if profile != self._profile:
            self._profile = self._batch = -1
            engine.require(
                context.set_optimization_profile_async(profile, stream.handle), "set_optimization_profile_async"
            )
            self._profile = profile
        if batch != self._batch:
            self._batch = self._memory = -1
            engine.require(context.set_input_shape(INPUT_NAME, (batch, *engine.image_shape)), "set_input_shape")
            self._needed = int(context.update_device_memory_size_for_shapes())
            self._batch = batch
        scratch = reserve(self._needed)
        if scratch is not None and scratch.pointer != self._memory:
            context.set_device_memory(scratch.pointer, scratch.nbytes)
            self._memory = scratch.pointer
        if images != self._images:
            self._images = -1
            engine.require(context.set_tensor_address(INPUT_NAME, images), f"set_tensor_address of {INPUT_NAME}")
            self._images = images
        if logits != self._logits:
            self._logits = -1
            engine.require(context.set_tensor_address(OUTPUT_NAME, logits), f"set_tensor_address of {OUTPUT_NAME}")
            self._logits = logits

    def enqueue(self, stream: Stream) -> None:
        """Run in the order of ``stream``.

        Raises:
            DeviceError: If TensorRT refuses.
        """
        self._engine.require(self._context.execute_async_v3(stream.handle), "execute_async_v3")

    def report_to(self, profiler: object) -> None:
        """Have TensorRT report the time of each layer; its calls then wait for the device."""
        self._context.profiler = profiler

    def is_capturable(self, stream: Stream) -> bool:
        """Whether TensorRT says that it can be captured on ``stream``; flavours that do not say are tried."""
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or bool(asked(stream.handle))

    def forget(self) -> None:
        """Let go of the context."""
        self._context = None
