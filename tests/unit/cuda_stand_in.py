"""A stand-in for ``cuda.bindings.runtime``: host bytes behind invented pointers, work done only when waited for.

It proves logic, not hardware: that every buffer is freed once and none is used afterwards, that work on one stream
which needs another's waits for it, that graphs hold what was captured. Work is put off until somebody waits, and with
a seed streams overtake each other at random, so that an order which nobody asked for does not come about by chance.
"""

import ctypes
import random
import threading
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from functools import wraps
from types import SimpleNamespace

import numpy as np


class MisuseError(AssertionError):
    """CUDA was used in a way that real hardware answers with wrong results or a crash."""


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorCudartUnloading = 4
    cudaErrorNoDevice = 100
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class Kind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class Handle(int):
    """What a stream, an event or a graph is called."""


@dataclass
class Memory:
    kind: str  # device, ordered or pinned
    data: np.ndarray
    device: int = 0
    freed: bool = False
    going: bool = False  # freed in the order of a stream, and not there yet


@dataclass
class Mark:
    """One recording of an event."""

    stream: int
    reached: bool = False


@dataclass
class Queue:
    """A stream: what waits in it and, while it is captured, what was captured."""

    work: deque = field(default_factory=deque)
    captured: list | None = None
    thread: int = 0
    invalid: bool = False
    busy: bool = False  # in the middle of a piece of work, such as a wait


SUCCESS = Error.cudaSuccess
BLOCKED = object()


def call(function):
    """Make a function one of the API: one at a time, recorded, failing where a test wants it to."""
    name = function.__name__

    @wraps(function)
    def run(self, *arguments):
        with self.lock:
            self.calls.append((name, *arguments))
            error = self.failing.get(name)
            if callable(error):
                error = error(*arguments)
            if error:
                return (error, None)
            return function(self, *arguments)

    return run


class CudaStandIn:
    """In place of the module.

    Args:
        devices: How many there are.
        seed: Of the order in which streams overtake each other; None for none but the waited-for.
        reuse: Whether memory freed in the order of a stream is given out again, as CUDA's pool does.
    """

    cudaError_t = Error
    cudaMemcpyKind = Kind
    cudaMemoryType = SimpleNamespace(cudaMemoryTypeDevice=2, cudaMemoryTypeManaged=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    CaptureStatus = cudaStreamCaptureStatus = IntEnum("Status", ["NONE", "ACTIVE"], start=0)
    cudaStream_t = Handle
    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2
    cudaHostAllocDefault = 0

    def __init__(self, devices=1, seed=None, *, reuse=False):
        self.lock = threading.RLock()
        self.calls, self.failing, self.misuses = [], {}, []
        self.devices, self.current = devices, threading.local()
        self.home = 0  # the device that everything is to happen on
        self.memory, self.pool, self.reuse = {}, {}, reuse
        self.streams = {0: Queue()}
        self.events, self.templates, self.graphs = {}, {}, {}
        self.depth = 0
        self.launched = {}  # how often each graph waits in a stream
        self.numbers = iter(range(0x10, 1 << 40, 0x10))
        self.addresses = 0x7000_0000_0000
        self.random = None if seed is None else random.Random(seed)

    # --- what tests ask

    def left(self):
        """What was made and not given back, by kind."""
        memory = [one.kind for one in self.memory.values() if not one.freed]
        return sorted(
            memory
            + ["stream"] * (len(self.streams) - 1)
            + ["event"] * len(self.events)
            + ["template"] * len(self.templates)
            + ["graph"] * len(self.graphs)
        )

    def names(self):
        return [one[0] for one in self.calls]

    def fault(self, what):
        self.misuses.append(what)
        raise MisuseError(what)

    # --- memory

    def place(self, kind, nbytes):
        data = np.full(max(nbytes, 1), 0xA5, np.uint8)  # nobody may rely on zeros
        if kind == "pinned":
            address = data.ctypes.data
        else:
            address, self.addresses = self.addresses, self.addresses + (nbytes + 511) // 256 * 256
        self.memory[address] = Memory(kind, data, self.device())
        return address

    def at(self, pointer, nbytes):
        """Find the bytes behind a pointer."""
        pointer = int(pointer)
        with self.lock:  # it is asked for by TensorRT's stand-in too
            memory = list(self.memory.items())
        for start, one in memory:
            if start <= pointer < start + len(one.data) and not (one.freed and one.kind == "pinned"):
                if one.freed:
                    self.fault(f"{pointer:#x} was freed")
                if pointer + nbytes > start + len(one.data):
                    self.fault(f"{nbytes} bytes at {pointer:#x} reach beyond the end")
                return one, one.data[pointer - start : pointer - start + nbytes]
        if pointer == 0 or 0x7000_0000_0000 <= pointer < self.addresses:
            self.fault(f"{pointer:#x} is no memory")
        raw = (ctypes.c_ubyte * nbytes).from_address(pointer)
        return Memory("pageable", None), np.frombuffer(raw, np.uint8)

    def free(self, pointer, kinds):
        one = self.memory.get(int(pointer))
        if one is None or one.kind not in kinds:
            self.fault(f"{int(pointer):#x} was not allocated there")
        if one.freed:
            self.fault(f"{int(pointer):#x} is freed twice")
        one.freed = True

    # --- work

    def queue(self, stream, *, asked=True):
        number = 0 if int(stream) == 1 else int(stream)
        if asked and number == 0 and self.device() != self.home:
            self.fault("the default stream of another device than the engine's")
        if number not in self.streams:
            self.fault(f"stream {number:#x} does not exist")
        return self.streams[number]

    def put(self, stream, work):
        queue = self.queue(stream)
        (queue.work if queue.captured is None else queue.captured).append(work)

    def step(self, queue):
        """Do the next piece of work in a stream; one that must wait for a stream in the middle of something stays."""
        if not queue.work or queue.busy:
            return
        queue.busy = True
        work = queue.work.popleft()
        try:
            if work() is BLOCKED:
                queue.work.appendleft(work)
        finally:
            queue.busy = False

    def drain(self, stream, until=lambda: False):
        """Do what waits in a stream, up to a point; others may get ahead meanwhile."""
        queue = self.queue(stream, asked=False)
        self.depth += 1
        try:
            while queue.work and not queue.busy and not until():
                if self.random and self.random.random() < 0.5:
                    self.step(self.random.choice(list(self.streams.values())))
                left = len(queue.work)
                self.step(queue)
                if self.depth > 1 and len(queue.work) == left:
                    return  # it waits for one of those that are in the middle of something: later
        finally:
            self.depth -= 1

    def wait(self, mark):
        """Do what a mark needs; whether it is reached then."""
        if not mark.reached:
            self.drain(mark.stream, lambda: mark.reached)
        return None if mark.reached else BLOCKED

    def unsafe(self):
        """What the thread that captures may not do: it spoils the capture."""
        mine = [q for q in self.streams.values() if q.captured is not None and q.thread == threading.get_ident()]
        for queue in mine:
            queue.invalid = True
        return bool(mine)

    def device(self):
        return getattr(self.current, "device", 0)

    # --- the API: devices and errors

    @call
    def cudaGetDeviceCount(self):
        return (SUCCESS, self.devices)

    @call
    def cudaGetDevice(self):
        return (SUCCESS, self.device())

    @call
    def cudaSetDevice(self, device):
        self.current.device = device
        return (SUCCESS,)

    @call
    def cudaGetLastError(self):
        return (SUCCESS,)

    def cudaGetErrorName(self, error):
        return (SUCCESS, error.name.encode())

    def cudaGetErrorString(self, error):
        return (SUCCESS, f"what {int(error)} means".encode())

    @call
    def cudaPointerGetAttributes(self, pointer):
        one, _ = self.at(pointer, 1)
        return (SUCCESS, SimpleNamespace(type=2 if one.kind in ("device", "ordered") else 1, device=one.device))

    # --- the API: memory

    @call
    def cudaMalloc(self, nbytes):
        if self.unsafe():
            return (Error.cudaErrorStreamCaptureUnsupported, None)
        return (SUCCESS, self.place("device", nbytes))

    @call
    def cudaFree(self, pointer):
        if self.unsafe():
            return (Error.cudaErrorStreamCaptureUnsupported,)
        for stream in list(self.streams):  # it waits for the device
            self.drain(stream)
        self.free(pointer, ("device",))
        return (SUCCESS,)

    @call
    def cudaMallocAsync(self, nbytes, stream):
        self.queue(stream)
        if self.pool.get(nbytes):
            address = self.pool[nbytes].pop()
            self.memory[address].freed = False
            return (SUCCESS, address)
        return (SUCCESS, self.place("ordered", nbytes))

    @call
    def cudaFreeAsync(self, pointer, stream):
        one = self.memory.get(int(pointer))
        if one is None or one.kind != "ordered" or one.freed or one.going:
            self.fault(f"{int(pointer):#x} cannot be freed")
        one.going = True

        def work():
            one.going = False
            self.free(pointer, ("ordered",))
            if self.reuse:
                self.pool.setdefault(len(one.data), []).append(int(pointer))

        self.put(stream, work)
        return (SUCCESS,)

    @call
    def cudaHostAlloc(self, nbytes, flags):
        if self.unsafe():
            return (Error.cudaErrorStreamCaptureUnsupported, None)
        return (SUCCESS, self.place("pinned", nbytes))

    @call
    def cudaFreeHost(self, pointer):
        for stream in list(self.streams):
            self.drain(stream)
        self.free(pointer, ("pinned",))
        return (SUCCESS,)

    @call
    def cudaMemcpyAsync(self, target, source, nbytes, kind, stream):
        into, _ = self.at(target, nbytes)
        out_of, _ = self.at(source, nbytes)
        sides = tuple("d" if one.kind in ("device", "ordered") else "h" for one in (out_of, into))
        if sides != {1: ("h", "d"), 2: ("d", "h"), 3: ("d", "d")}[kind]:
            self.fault(f"copy of kind {int(kind)} from {out_of.kind} to {into.kind} memory")

        def work():
            self.at(target, nbytes)[1][:] = self.at(source, nbytes)[1]

        self.put(stream, work)
        if "pageable" in (into.kind, out_of.kind):
            self.drain(stream)
        return (SUCCESS,)

    # --- the API: streams and events

    @call
    def cudaStreamCreateWithFlags(self, flags):
        number = Handle(next(self.numbers))
        self.streams[int(number)] = Queue()
        return (SUCCESS, number)

    @call
    def cudaStreamDestroy(self, stream):
        self.drain(stream)
        del self.streams[int(stream)]
        return (SUCCESS,)

    @call
    def cudaStreamSynchronize(self, stream):
        if self.queue(stream).captured is not None or self.unsafe():
            self.queue(stream).invalid = True
            return (Error.cudaErrorStreamCaptureUnsupported,)
        self.drain(stream)
        return (SUCCESS,)

    @call
    def cudaStreamWaitEvent(self, stream, event, flags):
        mark = self.event(event)
        if mark is not None:
            self.put(stream, lambda: self.wait(mark))
        return (SUCCESS,)

    @call
    def cudaEventCreateWithFlags(self, flags):
        number = Handle(next(self.numbers))
        self.events[int(number)] = None
        return (SUCCESS, number)

    def event(self, event):
        if int(event) not in self.events:
            self.fault(f"event {int(event):#x} does not exist")
        return self.events[int(event)]

    @call
    def cudaEventRecord(self, event, stream):
        self.event(event)
        mark = Mark(int(stream))
        self.put(stream, lambda: setattr(mark, "reached", True))
        self.events[int(event)] = mark
        return (SUCCESS,)

    @call
    def cudaEventSynchronize(self, event):
        mark = self.event(event)
        if self.unsafe():
            return (Error.cudaErrorStreamCaptureUnsupported,)
        if mark is not None and not mark.reached:
            self.drain(mark.stream, lambda: mark.reached)
        return (SUCCESS,)

    @call
    def cudaEventElapsedTime(self, start, end):
        marks = self.event(start), self.event(end)
        if not all(mark is not None and mark.reached for mark in marks):
            return (Error.cudaErrorNotReady, None)
        return (SUCCESS, 1.5)

    @call
    def cudaEventDestroy(self, event):
        self.event(event)
        del self.events[int(event)]
        return (SUCCESS,)

    # --- the API: graphs

    @call
    def cudaStreamBeginCapture(self, stream, mode):
        queue = self.queue(stream)
        if int(stream) in (0, 1):
            return (Error.cudaErrorStreamCaptureUnsupported,)
        queue.captured, queue.thread, queue.invalid = [], threading.get_ident(), False
        return (SUCCESS,)

    @call
    def cudaDeviceSynchronize(self):
        for stream in list(self.streams):
            self.drain(stream)
        return (SUCCESS,)

    @call
    def cudaStreamIsCapturing(self, stream):
        return (SUCCESS, self.CaptureStatus(self.queue(stream).captured is not None))

    @call
    def cudaStreamEndCapture(self, stream):
        queue = self.queue(stream)
        captured, queue.captured = queue.captured, None
        if queue.invalid:
            return (Error.cudaErrorStreamCaptureInvalidated, Handle(0))
        number = Handle(next(self.numbers))
        self.templates[int(number)] = captured
        return (SUCCESS, number)

    @call
    def cudaGraphInstantiate(self, template, flags):
        number = Handle(next(self.numbers))
        self.graphs[int(number)] = list(self.templates[int(template)])
        return (SUCCESS, number)

    @call
    def cudaGraphDestroy(self, template):
        del self.templates[int(template)]
        return (SUCCESS,)

    @call
    def cudaGraphLaunch(self, graph, stream):
        if int(graph) not in self.graphs:
            self.fault(f"graph {int(graph):#x} does not exist")
        self.launched[int(graph)] = self.launched.get(int(graph), 0) + 1
        for work in self.graphs[int(graph)]:
            self.put(stream, work)
        self.put(stream, lambda: self.launched.__setitem__(int(graph), self.launched[int(graph)] - 1))
        return (SUCCESS,)

    @call
    def cudaGraphExecDestroy(self, graph):
        if int(graph) not in self.graphs:
            self.fault(f"graph {int(graph):#x} is destroyed twice")
        if self.launched.pop(int(graph), 0):
            self.fault(f"graph {int(graph):#x} is destroyed before its work is done")
        del self.graphs[int(graph)]
        return (SUCCESS,)
