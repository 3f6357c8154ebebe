"""What a run of MLCommons' LoadGen leaves behind: its own figures and verdicts, and the digests of its logs."""

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from resnet_deploy.bench import record_files
from resnet_deploy.bench.loadgen_spec import Scenario
from resnet_deploy.bench.records import Created, NotRun
from resnet_deploy.environment import Environment
from resnet_deploy.specs import Preprocess

SCHEMA_VERSION: Final = 1

Setting = bool | int | float | str
Purpose = Literal["performance", "accuracy", "probe", "capacity", "overhead"]


_NEEDED: Final[dict[Scenario, tuple[str, ...]]] = {
    "server": ("target_qps", "target_latency_ns"),
    "multistream": ("samples_per_query",),
}


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """The one figure of a scenario that MLPerf compares; the value is None where LoadGen gave none."""

    name: str
    value: float | None
    unit: str


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Right answers, counted by us from the answers in LoadGen's log."""

    correct: int
    images: Annotated[int, msgspec.Meta(ge=1)]

    @property
    def share(self) -> float:
        """Top-1 accuracy, 0 to 1."""
        return self.correct / self.images


class LoadgenResult(msgspec.Struct, frozen=True, kw_only=True):
    """What LoadGen says of one test.

    Attributes:
        scenario: Which.
        settings: As LoadGen used them: the ``effective_...`` entries of its detail log, without that word.
        valid: LoadGen's verdict; None in accuracy mode, where it gives none.
        reasons: Why not, in LoadGen's words.
        errors: What the detail log has as such.
        metric: Absent in accuracy mode.
        percentiles: Latency in seconds, by percent such as ``99.00``, per query; none for Offline, whose one query
            says nothing of latency.
        queries: How many were answered.
        samples: Images in them.
        seconds: From the first query to the last answer, by LoadGen's clock.
        late: Server: queries beyond the bound.
        scheduled: Server: queries per second that really fell due; of a thousand drawn arrivals, some percent more or
            fewer than were asked for.
        loadgen: Version and commit.

    Raises:
        ValueError: If a setting that its scenario cannot do without is missing, or is no positive number.
    """

    scenario: Scenario
    settings: dict[str, Setting]
    valid: bool | None
    reasons: tuple[str, ...]
    errors: tuple[str, ...]
    metric: Metric | None
    percentiles: dict[str, float]
    queries: int
    samples: int
    seconds: float
    late: int | None
    loadgen: str
    scheduled: float | None = None

    def __post_init__(self) -> None:
        for name in _NEEDED.get(self.scenario, ()):
            value = self.settings.get(name)
            if not isinstance(value, int | float) or value <= 0:
                raise ValueError(f"{self.scenario} without {name}")


class LoadgenTest(msgspec.Struct, frozen=True, kw_only=True):
    """One test of one engine.

    Attributes:
        engine: Its name; ``null`` for the runner that does nothing.
        purpose: What it was made for. ``capacity`` says between which rates a search goes on, ``overhead`` what LoadGen
            and our own code cost.
        batch: Largest batch that was made of what was waiting.
        result: What LoadGen says.
        accuracy: Counted where labels were given and it was an accuracy run.
        device: What it ran on, in the backend's words.
        logs: SHA-256 of each file that is kept, by its path relative to the record's folder.
    """

    engine: str
    purpose: Purpose
    batch: int
    result: LoadgenResult
    accuracy: Accuracy | None = None
    device: str = ""
    logs: dict[str, str] = {}


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """An engine; the digest is that of its file."""

    name: str
    backend: str
    precision: str
    size_bytes: int
    sha256: str


class DataFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The images; the digest is ``ImageDataset.digest``."""

    name: str
    digest: str
    images: int
    labelled: bool
    labels_note: str = ""


class RulesVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """One engine in one scenario held against MLPerf's rules.

    Attributes:
        accuracy: Top-1, as a share.
        target: 99 % of the reference, as a share.
        reference: Where the reference comes from.
        unmet: The rules that were not met, a line each; none if all that are checked were.
    """

    engine: str
    scenario: Scenario
    accuracy: float
    target: float
    reference: str
    unmet: tuple[str, ...]


class Peak(msgspec.Struct, frozen=True, kw_only=True):
    """The highest Server rate that holds.

    Attributes:
        engine: Of which.
        latency_s: The bound on the 99th percentile, in seconds.
        tolerance: How far above ``rate`` a rate was found that does not hold, at most, as a share.
        seconds, queries: Least duration and number of queries of a probe.
        rate: Queries per second; None if none holds, or the search did not come to an end.
        reason: Why there is none.
    """

    engine: str
    latency_s: float
    tolerance: float
    seconds: float
    queries: int
    rate: float | None
    reason: str = ""


class LoadgenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the command.

    Attributes:
        created: UTC time, ISO 8601.
        environment: The machine and its libraries.
        architecture, weights_sha256, preprocess: Of the model.
        threads: Threads given to each engine on the CPU.
        data: Absent when the images were synthetic.
        engines: In the order they were given.
        tests: In the order they were made, those of the overhead first.
        verdicts: With MLPerf's rules, one per engine and scenario.
        peaks: Where a highest rate was searched, one per engine.
        not_run: Engines that were found and could not be run here.
    """

    kind: Literal["loadgen"] = "loadgen"
    schema_version: int = SCHEMA_VERSION
    created: Created
    environment: Environment
    architecture: str
    weights_sha256: str
    preprocess: Preprocess
    threads: int
    data: DataFacts | None
    engines: tuple[EngineFacts, ...]
    tests: tuple[LoadgenTest, ...]
    verdicts: tuple[RulesVerdict, ...] = ()
    peaks: tuple[Peak, ...] = ()
    not_run: tuple[NotRun, ...] = ()


FORMAT: Final = record_files.Format("loadgen", SCHEMA_VERSION, LoadgenRecord)


def read_loadgen_record(path: Path) -> LoadgenRecord:
    """Read a record; raises as ``record_files.read``."""
    return record_files.read(path, FORMAT)
