"""Scoring on a Ray cluster: the engine brought to every machine, and one in each actor.

Ray Data gives out shards, not images. An actor writes its shard itself, as a worker process does, so that the files,
their names, what is done, and what is done again are the same whoever worked.
"""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from resnet_deploy import artifact
from resnet_deploy.bundle import MANIFEST, open_bundle
from resnet_deploy.environment import cache_folder
from resnet_deploy.errors import BackendError, SpecError, UserError
from resnet_deploy.integrations import ray
from resnet_deploy.pipeline.scoring import ScoringWay
from resnet_deploy.pipeline.scoring_plan import Machines
from resnet_deploy.pipeline.scoring_shard import (
    ATTEMPTS,
    Outcome,
    ScoringTask,
    Shard,
    ShardDone,
    ShardFailed,
    ShardScorer,
)
from resnet_deploy.version import __version__


@contextlib.contextmanager
def ray_way(address: str | None) -> Iterator[ScoringWay]:
    """Connect to a Ray cluster, or start one here, until the block ends.

    Raises:
        BackendError: If Ray is not installed, or the cluster cannot be reached or has no cores.
    """
    with ray.connected(address):
        cores = ray.node_cpus()
        if not cores:
            raise BackendError("the Ray cluster has no CPU cores", hint="add a node that has")
        yield ScoringWay("ray", score_with_ray, Machines(cores, ray.cluster_gpus()))


def score_with_ray(task: ScoringTask, shards: Sequence[Shard], workers: int) -> Generator[Outcome, None, None]:
    """Score shards on the cluster that is connected, and yield what became of each as it does.

    Raises:
        UserError: If a machine cannot open the engine, or does not see the folders; what was done stays.
        SpecError: At once, before anything is asked for, if the cluster has no room for the workers.
    """
    _require_room(task, workers)
    return _score_shards(task, shards, workers)


def _require_room(task: ScoringTask, workers: int) -> None:
    """Refuse what Ray would wait for, for ever: more cores or GPUs than there are."""
    gpus = ray.cluster_gpus()
    if task.on_gpu and workers > gpus:
        raise SpecError(
            f"the Ray cluster has {gpus} GPUs, not one for each of {workers} workers",
            hint="ask for fewer --workers, or take an engine for CPUs",
        )
    room = Machines(ray.node_cpus()).room(task.threads)
    if workers > room:
        raise SpecError(
            f"the Ray cluster has room for {room} workers of {task.threads} threads, not for {workers}",
            hint="ask for fewer --workers or --threads",
        )


def _score_shards(task: ScoringTask, shards: Sequence[Shard], workers: int) -> Generator[Outcome, None, None]:
    if not shards:
        return
    parcel = Parcel.of(Path(task.engine), task.engine_sha256)
    pool = ray.Pool(workers, task.threads, int(task.on_gpu), ATTEMPTS)
    with contextlib.closing(ray.map_on_actors(partial(_Worker, task, parcel), shards, pool)) as answers:
        for position, answer in answers:
            if isinstance(answer, UserError):
                raise answer
            yield answer or ShardFailed(shards[position].number, f"{ATTEMPTS} times; its actor died")


@dataclass(frozen=True)
class Parcel:
    """An engine bundle on its way to other machines.

    Attributes:
        path: Where it lies here, and may lie there.
        sha256: Of its manifest, which holds the digests of all other files.
        files: Reference to the content of every file, by name.
    """

    path: str
    sha256: str
    files: Any

    @classmethod
    def of(cls, path: Path, sha256: str) -> "Parcel":
        """Pack a bundle."""
        names = (MANIFEST, *open_bundle(path).manifest.files)
        return cls(str(path), sha256, ray.put({name: artifact.read_bytes(path / name) for name in names}))

    def unpack(self) -> Path:
        """Return the path where this very bundle is to be had, writing it into the cache if need be.

        Raises:
            UserError: If what arrived is not what was sent.
        """
        if _is_bundle(Path(self.path), self.sha256):
            return Path(self.path)
        cached = cache_folder() / "engines" / self.sha256
        if not _is_bundle(cached, self.sha256):
            with artifact.atomic_folder(cached) as folder:
                for name, data in ray.get(self.files).items():
                    artifact.write_bytes(folder / name, data)
                open_bundle(folder).verify_files()
        return cached


def _is_bundle(path: Path, sha256: str) -> bool:
    """Whether a bundle with that manifest is there, and whole."""
    try:
        if artifact.sha256_file(path / MANIFEST) != sha256:
            return False
        open_bundle(path).verify_files()
    except UserError:
        return False
    return True


class _Worker:
    """What an actor does with shards; an error of the user's is an answer, as Ray would try again where it is raised.

    The engine is opened with the first shard, for the same reason.
    """

    def __init__(self, task: ScoringTask, parcel: Parcel, version: str = __version__) -> None:
        self._task, self._parcel, self._version = task, parcel, version
        self._scorer: ShardScorer | None = None

    def __call__(self, shard: Shard) -> Outcome | UserError:
        try:
            if self._scorer is None:
                self._scorer = self._open()
            return _score(self._scorer, shard)
        except UserError as error:
            return error

    def _open(self) -> ShardScorer:
        if self._version != __version__:
            raise BackendError(
                f"resnet-deploy is {self._version} here, and {__version__} on a machine of the cluster",
                hint="install the same version everywhere",
            )
        return ShardScorer(replace(self._task, engine=str(self._parcel.unpack())))


def _score(scorer: ShardScorer, shard: Shard) -> Outcome:
    """Score a shard, again where something fails that no user can cause."""
    for _ in range(ATTEMPTS - 1):
        outcome = scorer.attempt(shard)
        if isinstance(outcome, ShardDone):
            return outcome
    return scorer.attempt(shard)
