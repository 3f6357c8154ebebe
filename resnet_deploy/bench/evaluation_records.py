"""What an evaluation leaves behind: the answers of engines on a whole data set, and what it cost to get them.

As in ``records``, only what was observed is stored, and figures are computed when they are shown. There are no
latencies: engines run one after the other on each batch while the next one is decoded.
"""

from pathlib import Path
from typing import Final, Literal

import msgspec

from resnet_deploy.bench import record_files
from resnet_deploy.bench.records import (
    Count,
    Created,
    DatasetRecord,
    DecodeTimes,
    NotRun,
    Outputs,
    Role,
    Seconds,
    require_one_each,
)
from resnet_deploy.contract import Preprocess
from resnet_deploy.environment import Environment

SCHEMA_VERSION: Final = 1


class EvaluatedEngine(msgspec.Struct, frozen=True, kw_only=True):
    """One engine; the attributes are those of ``records.EngineRecord``, with answers that are always there.

    ``outputs`` are compared with those of the record's first engine.
    """

    name: str
    backend: str
    precision: str
    size_bytes: int
    sha256: str
    device: str
    role: Role
    in_sample: bool
    outputs: Outputs


class EvaluationCost(msgspec.Struct, frozen=True, kw_only=True):
    """What the evaluation took, all sessions of it together; opening engines is not included.

    Attributes:
        sessions: How often it was begun and gone on with.
        seconds: From the first image to the last answer.
        waiting: Of these, waiting for decoded images.
        inferring: Of these, within the engines. What is left is counting and writing down.
    """

    sessions: Count
    seconds: Seconds
    waiting: float
    inferring: float


class EvaluationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation.

    Attributes:
        kind: Tells it from other records.
        created: UTC time at which it was begun, ISO 8601.
        environment: The machine and its libraries.
        architecture: Of the model, such as ``resnet50``.
        weights_sha256: Of the model.
        preprocess: The input contract that all engines share.
        threads: Threads given to each engine on the CPU.
        batch: Images per call, of engines that take as many.
        workers: Decoding threads.
        dataset: The images and their labels.
        engines: The first is what the others are compared with.
        cost: What it took.
        not_run: Engines that were found and could not be run here.
        decoding: Decoding alone, engines alone, and both together; absent where that was not measured.

    Raises:
        ValueError: If there is no engine, or answers or labels are not one per image.
    """

    kind: Literal["evaluate"] = "evaluate"
    schema_version: int = SCHEMA_VERSION
    created: Created
    environment: Environment
    architecture: str
    weights_sha256: str
    preprocess: Preprocess
    threads: int
    batch: Count
    workers: Count
    dataset: DatasetRecord
    engines: tuple[EvaluatedEngine, ...]
    cost: EvaluationCost
    not_run: tuple[NotRun, ...] = ()
    decoding: DecodeTimes | None = None

    def __post_init__(self) -> None:
        if not self.engines:
            raise ValueError("an evaluation of no engine")
        require_one_each([(one.name, one.outputs) for one in self.engines], self.dataset)


FORMAT: Final = record_files.Format("evaluate", SCHEMA_VERSION, EvaluationRecord)


def write_evaluation(record: EvaluationRecord, path: Path) -> None:
    """Write ``record`` as JSON, atomically; raises as ``record_files.write``."""
    record_files.write(record, path)


def read_evaluation(path: Path) -> EvaluationRecord:
    """Read a record; raises as ``record_files.read``."""
    return record_files.read(path, FORMAT)
