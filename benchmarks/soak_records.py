"""What a soak keeps: readings of one process, window by window, and what its answers were."""

import msgspec

from resnet_deploy.bench.records import MachineState
from resnet_deploy.environment import Environment


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a process holds while no request is under way, after a garbage collection.

    Attributes:
        resident: Bytes of its memory that are in the machine's, shared ones too (proc(5), VmRSS).
        proportional: The same, shared pages parted among those that share them (Pss).
        private: Bytes that nobody shares with it (Private_Clean and Private_Dirty).
        heap: Bytes in use of the C library's ``malloc`` (mallinfo2(3)), which knows nothing of what it keeps back;
            None where the C library does not tell.
        files: Open file descriptors.
        threads: Of the whole process, backends' too.
        objects: Containers that Python's garbage collector knows.
        blocks: Memory blocks that Python's allocator has given out.
    """

    resident: int
    proportional: int
    private: int
    heap: int | None
    files: int
    threads: int
    objects: int
    blocks: int


class Times(msgspec.Struct, frozen=True):
    """Requests of one kind in one window: how many, images in them, and percentiles of their latency in seconds."""

    count: int
    images: int
    p50: float
    p99: float


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A few seconds of load, and what was read at their end.

    Attributes:
        start: Seconds since the load began.
        seconds: How long there was load.
        processor_s: Processor time of the whole process in these.
        times: By kind of request.
        outcomes: How often a request ended otherwise than by an answer, by kind and what it was, such as
            ``deadline: DeadlineError``; all of these are what the request asked for.
        worst: Largest difference of a logit from that of the image alone.
        wrong: What was not as it has to be, in words; the first few.
        wrong_count: How many times.
        reading: At the end.
        machine: Meanwhile.
    """

    start: float
    seconds: float
    processor_s: float
    times: dict[str, Times]
    outcomes: dict[str, int]
    worst: float
    wrong: tuple[str, ...]
    wrong_count: int
    reading: Reading
    machine: MachineState


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of one process.

    Attributes:
        engine: A bundle.
        window_s: Seconds of load between readings.
        windows: How many.
        workers: Threads that make requests.
        requests: Batches of a long array to run side by side, as ``load`` takes them.
        library: The C library to call too; empty for none.
        seed: Of the images and of the order of requests.
    """

    engine: str
    window_s: float = 5.0
    windows: int = 360
    workers: int = 6
    requests: int = 1
    library: str = ""
    seed: int = 0


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """What answers are held against.

    Attributes:
        images: How many different images there are.
        largest: Largest logit, in magnitude.
        apart: Smallest difference, by their worst logit, between the answers to two images.
        tolerance: How far a logit may be from that of the image alone.
    """

    images: int
    largest: float
    apart: float
    tolerance: float


class Soak(msgspec.Struct, frozen=True, kw_only=True):
    """One engine under load.

    Attributes:
        name, backend, precision: Of the engine.
        load: What was asked for.
        opening: What answers were held against.
        windows: In order.
        end: How the process ended, where it was not at its end: empty, or its exit code or signal and last words.
    """

    name: str
    backend: str
    precision: str
    load: Load
    opening: Opening
    windows: tuple[Window, ...]
    end: str = ""


class SoakRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What this script measured."""

    schema_version: int = 1
    kind: str = "soak"
    created: str
    environment: Environment
    soaks: tuple[Soak, ...]
