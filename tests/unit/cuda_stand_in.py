"""A stand-in for ``cuda.bindings.runtime``: its functions, on the machine of ``cuda_machine``."""

import threading
from enum import IntEnum
from functools import wraps
from types import SimpleNamespace

from cuda_machine import Handle, Machine, Mark, Queue


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorCudartUnloading = 4
    cudaErrorNoDevice = 100
    cudaErrorInvalidResourceHandle = 400
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class Kind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


SUCCESS = Error.cudaSuccess


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


class CudaStandIn(Machine):
    """In place of the module; its arguments are the machine's."""

    cudaError_t = Error
    cudaMemcpyKind = Kind
    cudaMemoryType = SimpleNamespace(cudaMemoryTypeDevice=2, cudaMemoryTypeManaged=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    CaptureStatus = cudaStreamCaptureStatus = IntEnum("Status", ["NONE", "ACTIVE"], start=0)
    cudaStream_t = Handle
    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2
    cudaHostAllocDefault = 0

    # --- devices and errors

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

    # --- memory

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

    # --- streams and events

    @call
    def cudaStreamCreateWithFlags(self, flags):
        number = Handle(next(self.numbers))
        self.streams[int(number)], self.flags[int(number)] = Queue(), flags
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
        self.events[int(number)], self.flags[int(number)] = None, flags
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
        if any(self.flags[int(one)] & self.cudaEventDisableTiming for one in (start, end)):
            return (Error.cudaErrorInvalidResourceHandle, None)
        if not all(mark is not None and mark.reached for mark in marks):
            return (Error.cudaErrorNotReady, None)
        return (SUCCESS, 1.5)

    @call
    def cudaEventDestroy(self, event):
        self.event(event)
        del self.events[int(event)]
        return (SUCCESS,)

    # --- graphs

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
