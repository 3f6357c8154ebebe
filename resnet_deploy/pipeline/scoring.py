"""Scoring every image below a folder, shard by shard, going on with what is there already."""

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from resnet_deploy import artifact, environment
from resnet_deploy.backends import find_backend
from resnet_deploy.bench import record_files
from resnet_deploy.bundle import open_bundle
from resnet_deploy.errors import ScoringError
from resnet_deploy.integrations.pyarrow import require_parquet
from resnet_deploy.names import readable
from resnet_deploy.pipeline.scoring_folders import absolute, open_folder
from resnet_deploy.pipeline.scoring_output import ScoringOutput, ScoringRecord, ScoringSession
from resnet_deploy.pipeline.scoring_plan import Machines, ScoringRequest, ScoringSpec, Shards, list_digest
from resnet_deploy.pipeline.scoring_shard import Outcome, ScoringTask, Shard, ShardDone, ShardFailed, part_name
from resnet_deploy.pipeline.scoring_workers import score_in_processes

if TYPE_CHECKING:
    from resnet_deploy.protocols import Progress

_TOLD: Final = 5  # failed shards that a message names

# Scores shards in so many workers, and yields what became of each; what is refused is refused when it is called.
ScoreShards: TypeAlias = Callable[[ScoringTask, Sequence[Shard], int], Generator[Outcome, None, None]]


@dataclass(frozen=True)
class ScoringPlaces:
    """What is read and written.

    Attributes:
        engine: The bundle.
        source: Folder of the images, or its URI.
        output: Folder of the scores, or its URI.
    """

    engine: Path
    source: str
    output: str


@dataclass(frozen=True)
class ScoringWay:
    """Who does the work; by default, worker processes on this machine.

    Attributes:
        name: As the record has it.
        score: Does it.
        machines: What there is for it.
    """

    name: str = "processes"
    score: ScoreShards = score_in_processes
    machines: Machines = field(default_factory=lambda: Machines((environment.compute_threads(),)))


def score(places: ScoringPlaces, spec: ScoringSpec, way: ScoringWay, progress: "Progress") -> ScoringRecord:
    """Score every image below a folder; where an earlier run was interrupted, go on with the shards that are missing.

    Args:
        places: Engine, images, scores.
        spec: How.
        way: Who does the work.
        progress: Shows how many shards are done.

    Returns:
        The record, as it lies in the output.

    Raises:
        UserError: If pyarrow is not installed, something cannot be read or written, there is no image, another command
            is scoring into the output, or what lies there is of another engine, list of images, or request; the message
            says what differs.
        ScoringError: If shards are left, after all others were done.
    """
    require_parquet()
    bundle = open_bundle(places.engine)
    bundle.verify_files()
    source, place = absolute(places.source), absolute(places.output)
    with progress.task("finding the images"):
        names = open_folder(source).image_names()
    request = ScoringRequest(
        engine=bundle.manifest.name,
        engine_sha256=artifact.sha256_file(bundle.manifest_path),
        source=readable(source),
        images=len(names),
        list_sha256=list_digest(names),
        shard_size=spec.shard_size,
        top=spec.top,
        logits=spec.logits,
    )
    with open_folder(place).held():
        with progress.task("finding what is done"):
            output = ScoringOutput(place, request)
        on_gpu = find_backend(bundle.manifest.spec.backend).device not in ("any", "cpu")
        workers, threads = way.machines.part(spec, len(output.missing), on_gpu=on_gpu)
        task = ScoringTask(
            engine=absolute(str(places.engine)),
            engine_sha256=request.engine_sha256,
            source=source,
            output=place,
            scoring_sha256=request.digest,
            top=spec.top,
            logits=spec.logits,
            threads=threads,
            on_gpu=on_gpu,
        )
        session = ScoringSession(
            begun=record_files.created_now(),
            way=way.name,
            workers=workers,
            threads=threads,
            environment=environment.collect(),
        )
        return _run(output, session, way.score(task, Shards(names, spec.shard_size, output.missing), workers), progress)


def _run(
    output: ScoringOutput, session: ScoringSession, outcomes: Generator[Outcome, None, None], progress: "Progress"
) -> ScoringRecord:
    """Have the missing shards scored, and keep count."""
    missing, before = output.missing, len(output.done)
    output.keep(session)
    begun = time.perf_counter()
    new: list[ShardDone] = []
    failed: dict[int, str] = {}
    with contextlib.closing(outcomes):  # an interrupt may hit this loop: the workers are to end all the same
        for outcome in progress.track(outcomes, f"scoring, {before:,} shards done before", len(missing)):
            if isinstance(outcome, ShardFailed):
                failed[outcome.number] = outcome.reason
            else:
                new.append(outcome)
                output.done[outcome.number] = outcome
    failed |= dict.fromkeys(output.drop_unseen(), "in so far as its file is not to be seen here: is --out shared?")
    new = [one for one in new if one.number in output.done]
    session = msgspec.structs.replace(
        session,
        shards=len(new),
        scored=sum(one.scored for one in new),
        bad=sum(one.bad for one in new),
        seconds=time.perf_counter() - begun,
    )
    record = output.keep(session)
    _require_all(output, failed)
    return record


def _require_all(output: ScoringOutput, failed: dict[int, str]) -> None:
    left = output.missing
    if not left:
        return
    told = "; ".join(f"{part_name(number)} failed {failed.get(number, 'without a word')}" for number in left[:_TOLD])
    more = f"; and {len(left) - _TOLD} others" if len(left) > _TOLD else ""
    raise ScoringError(
        f"{len(left)} of {output.shards} shards are not scored: {told}{more}",
        hint="all others are done, and the same command tries these again",
    )
