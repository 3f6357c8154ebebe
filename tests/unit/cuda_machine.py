"""A stand-in for GPUs: host bytes behind invented pointers, streams whose work is done only when somebody waits.

It proves logic, not hardware: that every buffer is freed once and none is used afterwards, that work on one stream
which needs another's waits for it, that graphs hold what was captured. Work is put off until somebody waits, and with
a seed streams overtake each other at random, so that an order which nobody asked for does not come about by chance.
"""

import ctypes
import random
import threading
from collections import deque
from dataclasses import dataclass, field

import numpy as np


class MisuseError(AssertionError):
    """CUDA was used in a way that real hardware answers with wrong results or a crash."""


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


BLOCKED = object()


class Machine:
    """Memory, streams and what was captured from them, and who misused them.

    Args:
        devices: How many there are.
        seed: Of the order in which streams overtake each other; None for none but the waited-for.
        reuse: Whether memory freed in the order of a stream is given out again, as CUDA's pool does.
    """

    def __init__(self, devices=1, seed=None, *, reuse=False):
        self.lock = threading.RLock()
        self.calls, self.failing, self.misuses = [], {}, []
        self.devices, self.current = devices, threading.local()
        self.home = 0  # the device that everything is to happen on
        self.memory, self.pool, self.reuse = {}, {}, reuse
        self.streams = {0: Queue()}
        self.events, self.templates, self.graphs = {}, {}, {}
        self.flags = {}  # that streams and events were made with
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
