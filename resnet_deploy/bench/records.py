"""What a benchmark run leaves behind: raw samples and the conditions they were taken under.

Only measured values are stored. Percentiles, throughput, accuracy and agreement are computed from them by
``statistics`` whenever they are shown, so that there is one source of truth.

Schema history: 1, the first; 2 adds to samples how many callers there were, graphs, the rate of calls and the wall
clock of each round, to engines their role, settings and the time of each layer, and to the run the state of the machine
in each round and what decoding costs. What 2 adds has a default that says what 1 meant, so that records of 1 are read
as they are. Fields that a reader does not know are ignored; a record of a later version is refused.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from resnet_deploy.bench import record_files
from resnet_deploy.bench_spec import Scope
from resnet_deploy.environment import Environment
from resnet_deploy.specs import Preprocess

SCHEMA_VERSION: Final = 2

Count = Annotated[int, msgspec.Meta(ge=1)]
# Wide enough for any machine; and so that quotients of two are neither 0 nor infinite.
Rate = Annotated[float, msgspec.Meta(ge=1e-15, le=1e15)]  # per second
Seconds = Annotated[float, msgspec.Meta(ge=1e-15, le=1e15)]
Power = Annotated[float, msgspec.Meta(ge=0, le=1e100)]  # a sum of squares of FP32 logits; such sums add up
Created = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")]  # UTC, ISO 8601
Role = Literal["reference", "engine", "peer"]


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies of one engine in one way of calling it.

    Attributes:
        batch: Images per call.
        scope: What lies inside the timer: ``host`` is load, enqueue, synchronize and fetch on arrays in host memory;
            ``device`` is enqueue alone, by the device's clock where it has one; ``h2d`` and ``d2h`` are the copies of
            the images to the device and of the logits back; ``end_to_end`` is from the bytes of JPEG files to labels.
        seconds: One value per call, in the order they were measured. Where calls are paced, each counts from when it
            was due, so that a call that had to wait for the one before it is not taken for a short one.
        rounds: Which round each call belongs to; engines take turns within a round.
        concurrency: Callers at once, each with a runner of its own.
        graphs: Whether the engine ran as CUDA graphs; None where there is no such thing.
        offered: Calls per second that were due, at even distances; None where each caller calls again once it has
            its answer.
        wall: Seconds that each round took from the first call to the last answer, in the order of the rounds; where
            calls are paced, not less than until the next one would have been due. Empty where calls did not overlap
            and their sum is the time that they took.

    Raises:
        ValueError: If there is no call, a call took no time, rounds and calls do not go together, or calls overlapped
            and the wall clock is missing.
    """

    batch: Count
    scope: Scope
    seconds: tuple[Seconds, ...]
    rounds: tuple[int, ...]
    concurrency: Count = 1
    graphs: bool | None = None
    offered: Rate | None = None
    wall: tuple[Seconds, ...] = ()

    def __post_init__(self) -> None:
        if not self.seconds or len(self.seconds) != len(self.rounds):
            raise ValueError(f"{len(self.seconds)} calls in {len(self.rounds)} rounds entries at batch {self.batch}")
        if min(self.seconds) <= 0:
            raise ValueError(f"a call of {min(self.seconds)} s at batch {self.batch}")
        if self.wall and (len(self.wall) != len(set(self.rounds)) or min(self.wall) <= 0):
            raise ValueError(f"wall clock of {len(self.wall)} rounds, calls of {len(set(self.rounds))}")
        if not self.wall and (self.concurrency > 1 or self.offered is not None):
            raise ValueError("calls that overlap or wait need the wall clock of their rounds")

    @property
    def way(self) -> "Way":
        """How the engine was called: what two sets of samples must share to be compared."""
        return Way(self.batch, self.scope, self.concurrency, self.graphs, self.offered)


class Way(msgspec.Struct, frozen=True, order=True):
    """How an engine is called; the attributes are those of ``Samples``."""

    batch: int
    scope: Scope = "host"
    concurrency: int = 1
    graphs: bool | None = None
    offered: float | None = None


class Outputs(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine answered on the data set, per image and in the data set's order.

    FP16 can overflow, and JSON has no NaN or infinity: a sum that is not finite is written as null and read as None.

    Attributes:
        top5: The five best classes, best first (fewer where the model has fewer classes; none where a logit is not
            finite: what is not a number has no order, and must not pass for class 0).
        noise: Sum of squared differences of the logits from the reference's; empty for the reference itself.
        signal: Sum of squared logits of the reference; empty for the reference itself.
        max_difference: Largest absolute difference of a logit from the reference's; empty for the reference itself.
    """

    top5: tuple[tuple[int, ...], ...]
    noise: tuple[Power | None, ...] = ()
    signal: tuple[Power | None, ...] = ()
    max_difference: tuple[float | None, ...] = ()


class TensorHistogram(msgspec.Struct, frozen=True, kw_only=True):
    """What calibration saw of one tensor, and the range it chose.

    Attributes:
        tensor: Its name.
        first: Lower edge of the first bin.
        width: Width of a bin.
        counts: Values in each bin.
        low, high: The range that the 8-bit grid covers.
        sqnr_db: Power of the tensor over that of rounding and clipping it, as the histogram has it.
    """

    tensor: str
    first: float
    width: float
    counts: tuple[int, ...]
    low: float
    high: float
    sqnr_db: float


class SearchStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the search that kept an engine to a limit of accuracy.

    Attributes:
        layers: How many layers were in floating point.
        drop: Points of accuracy lost.
        cost: Of a call, over that with everything on integers; of multiply-adds, where the backend could not run.
    """

    layers: int
    drop: float
    cost: float


class LayerTime(msgspec.Struct, frozen=True, kw_only=True):
    """What one layer of an engine costs.

    Attributes:
        name: As the backend calls it after its fusions.
        kind: The operator, such as ``Conv``.
        seconds: Mean of the calls that were profiled.
    """

    name: str
    kind: str
    seconds: float


class LayerTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of a call goes, by the backend's own profiler, in calls of their own: profiling slows them down.

    Attributes:
        batch: Images per call.
        calls: How many were profiled.
        profiler: Whose figures these are, such as ``ONNX Runtime``.
        layers: In the order of execution.
    """

    batch: Count
    calls: Count
    profiler: str
    layers: tuple[LayerTime, ...]


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One engine, as measured in one run.

    Attributes:
        name: Folder name of the bundle, or ``pytorch`` for the reference.
        backend: Its row in the table of backends.
        precision: One of ``specs.PRECISIONS``.
        size_bytes: Size of the engine file (of the weights, for the reference).
        sha256: Digest of the engine file; of the weights, for the reference.
        device: What it ran on, in the backend's words, such as ``CPUExecutionProvider``.
        latency: One entry per way of calling it.
        outputs: Answers on the data set; absent when the run had none.
        in_sample: Whether its ranges, or the layers it keeps in floating point, were chosen on this very data set.
        histograms: The tensors that its 8-bit grid serves worst, the worst first; empty where it has none.
        search: The steps of the search that kept it to a limit; empty where there was none.
        role: ``reference``, an ``engine`` of ours, or a ``peer``: what one would get elsewhere.
        settings: What a peer is and how it was called, in a line.
        notes: What the runner had to say of how it ran.
        layers: Where its time goes; absent where no profiler was asked.
    """

    name: str
    backend: str
    precision: str
    size_bytes: int
    sha256: str
    device: str
    latency: Annotated[tuple[Samples, ...], msgspec.Meta(min_length=1)]
    outputs: Outputs | None = None
    in_sample: bool = False
    histograms: tuple[TensorHistogram, ...] = ()
    search: tuple[SearchStep, ...] = ()
    role: Role = "engine"
    settings: str = ""
    notes: tuple[str, ...] = ()
    layers: LayerTimes | None = None

    def __post_init__(self) -> None:
        if not self.latency:  # which msgspec looks at when a record is read, and not when it is made
            raise ValueError(f"no latencies of {self.name!r}")


class MachineState(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine did in one round; a figure is None where the system does not tell.

    Attributes:
        round: Its number.
        seconds: How long it lasted.
        used: Processor time of this process, over that of all usable cores.
        elsewhere: Processor time of other processes, over that of all usable cores.
        stolen: Time that the host of this virtual machine gave to others, over that of all usable cores.
        mhz: Mean clock of the cores at the end of the round.
        throttled: Why clocks were held down, in the system's words; empty where they were not, or nobody tells.
        gpu_mhz: Clock of the GPU at the end of the round.
        gpu_celsius: Its temperature.
    """

    round: int
    seconds: float
    used: float | None = None
    elsewhere: float | None = None
    stolen: float | None = None
    mhz: float | None = None
    throttled: str = ""
    gpu_mhz: float | None = None
    gpu_celsius: float | None = None


class DecodeTimes(msgspec.Struct, frozen=True, kw_only=True):
    """What reading the images costs beside running them, in images per second.

    Attributes:
        workers: Decoding threads.
        images: How many each figure rests on.
        decode: Decoding alone.
        engines: Of each engine by name: alone on decoded images, and both together.
    """

    workers: Count
    images: Count
    decode: Rate
    engines: dict[str, tuple[Rate, Rate]]


class DatasetRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The images a run was made on.

    Attributes:
        name: Folder name.
        digest: SHA-256 over names and contents.
        images: How many were evaluated.
        labels: Class of each image; empty when unlabelled.
        labels_note: What a reader of the accuracy must know of the labels; empty if nothing.
        skipped: Names of corrupt images left out at the user's request.
    """

    name: str
    digest: str
    images: Count
    labels: tuple[int, ...] = ()
    labels_note: str = ""
    skipped: tuple[str, ...] = ()


def require_one_each(answers: Iterable[tuple[str, Outputs]], dataset: DatasetRecord) -> None:
    """Hold answers, each with the name of its engine, and labels against the number of images.

    Raises:
        ValueError: If they are not one per image.
    """
    counts = [("labels", len(dataset.labels))] if dataset.labels else []
    counts += [(f"answers of {name!r}", len(outputs.top5)) for name, outputs in answers]
    for what, count in counts:
        if count != dataset.images:
            raise ValueError(f"{count} {what} for {dataset.images} images")


class NotRun(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that was found and could not be run here, and why."""

    name: str
    backend: str
    precision: str
    size_bytes: int
    reason: str


class BenchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the benchmark.

    Attributes:
        created: UTC time, ISO 8601.
        environment: The machine and its libraries.
        architecture: Of the model, such as ``resnet50``.
        weights_sha256: Of the model.
        preprocess: The input contract that all engines share.
        threads: Threads given to each engine on the CPU.
        warmup_calls: Untimed calls at the beginning of each turn, at the pace of the timed ones; two, where both took
            longer than the turn was to last.
        seed: Of the order of engines within each round.
        dataset: Absent when the run had no images; latencies are then taken on synthetic ones.
        harness: The null runner's latencies through the same code: what the harness itself costs.
        engines: In the order they were given, the reference first.
        reference: Name of the engine the others are compared with; empty when there is none.
        not_run: Engines that were found and could not be run here.
        machine: The state of the machine, round by round.
        governor: What chooses the clocks of the cores, in the kernel's words; empty where it does not tell.
        suite: Name of the suite that asked for this run; empty for none.
        decoding: What reading the images costs; measured where a scope is ``end_to_end``, on a few of them.

    Raises:
        ValueError: If the reference is not among the engines, two of these have one name, or answers or labels are not
            one per image.
    """

    schema_version: int = SCHEMA_VERSION
    created: Created
    environment: Environment
    architecture: str
    weights_sha256: str
    preprocess: Preprocess
    threads: Count
    warmup_calls: int
    seed: int
    dataset: DatasetRecord | None
    harness: tuple[Samples, ...]
    engines: tuple[EngineRecord, ...]
    reference: str = ""
    not_run: tuple[NotRun, ...] = ()
    machine: tuple[MachineState, ...] = ()
    governor: str = ""
    suite: str = ""
    decoding: DecodeTimes | None = None

    def __post_init__(self) -> None:
        names = [engine.name for engine in self.engines]
        if len(set(names)) < len(names):
            raise ValueError("two engines have one name")
        if self.reference and self.reference not in names:
            raise ValueError(f"the reference {self.reference!r} is not among the engines")
        if self.dataset is not None:
            answers = [(one.name, one.outputs) for one in self.engines if one.outputs is not None]
            require_one_each(answers, self.dataset)


FORMAT: Final = record_files.Format(record_files.BENCH, SCHEMA_VERSION, BenchRecord)


def write_record(record: BenchRecord, path: Path) -> None:
    """Write ``record`` as JSON, atomically; raises as ``record_files.write``."""
    record_files.write(record, path)


def read_record(path: Path) -> BenchRecord:
    """Read a record of any schema version so far; raises as ``record_files.read``."""
    return record_files.read(path, FORMAT)
