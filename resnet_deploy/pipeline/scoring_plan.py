"""What is to be scored, cut into shards, and what it is divided among."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, overload

import msgspec

from resnet_deploy import artifact
from resnet_deploy.errors import SpecError
from resnet_deploy.pipeline.scoring_shard import Shard
from resnet_deploy.specs import MAX_THREADS, require_at_most

# A worker on one core never waits for another within a layer, nor spins while images are decoded: on two cores, two
# workers are 7 % faster than one with a ResNet-50 at 224 pixels, and half as fast again with small images. But every
# worker has the engine in its memory once more.
_FEW_WORKERS: Final = 4
_CORES_PER_WORKER: Final = 4  # where that makes more of them


@dataclass(frozen=True)
class ScoringSpec:
    """How images are scored.

    Attributes:
        shard_size: Images per file of scores.
        top: Best classes to name.
        logits: Whether to keep all logits, too.
        workers: Engines at work; 0 chooses.
        threads: CPU threads for each; 0 chooses.

    Raises:
        SpecError: If a number is out of range.
    """

    shard_size: int = 4096
    top: int = 5
    logits: bool = False
    workers: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise SpecError(f"shard size {self.shard_size} is not positive", hint="use a size such as 4096")
        if self.top < 1:
            raise SpecError(f"top {self.top} is not positive", hint="ask for at least one class")
        for what, value in (("workers", self.workers), ("threads", self.threads)):
            if value < 0:
                raise SpecError(f"{value} {what}", hint="give a positive number, or 0 for the default")
            require_at_most(f"number of {what}", value, MAX_THREADS)


@dataclass(frozen=True)
class Machines:
    """What there is to work with.

    Attributes:
        cores: CPU cores of each machine.
        gpus: How many workers may have a GPU, in all.
    """

    cores: tuple[int, ...]
    gpus: int = 1

    def part(self, spec: ScoringSpec, shards: int, *, on_gpu: bool) -> tuple[int, int]:
        """Choose the numbers of workers, and of threads for each, where ``spec`` leaves them open.

        One worker for each GPU; or for each core of a machine, up to four, and beyond that for each four cores; but no
        more than there are shards to do, and as many threads as still leave room for all workers.
        """
        by_cores = sum(_workers_on(cores, spec.threads) for cores in self.cores)
        workers = min(shards, spec.workers or (max(1, self.gpus) if on_gpu else by_cores))
        return workers, spec.threads or self._most_threads(workers)

    def room(self, threads: int) -> int:
        """Count the workers of so many threads that there are cores for."""
        return sum(cores // threads for cores in self.cores)

    def _most_threads(self, workers: int) -> int:
        return next((count for count in range(max(self.cores), 1, -1) if self.room(count) >= workers), 1)


def _workers_on(cores: int, threads: int) -> int:
    """Choose the number of workers of a machine, of so many threads each; 0 where that is open too."""
    return max(1, cores // threads) if threads else max(min(cores, _FEW_WORKERS), cores // _CORES_PER_WORKER)


class ScoringRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for: all that the rows depend on, and how they are divided into files.

    Attributes:
        engine: Its name.
        engine_sha256: Of the bundle's manifest, which holds the digests of all else.
        source: Folder of the images.
        images: How many there are.
        list_sha256: As ``list_digest``.
        shard_size, top, logits: As in ``ScoringSpec``.
    """

    engine: str
    engine_sha256: str
    source: str
    images: int
    list_sha256: str
    shard_size: int
    top: int
    logits: bool

    @property
    def digest(self) -> str:
        """Of all fields; every file of scores carries it."""
        return artifact.sha256_bytes(msgspec.json.encode(self, order="sorted"))

    def difference_from(self, begun: "ScoringRequest") -> str:
        """Name the fields that differ, with both values; empty if none does."""
        ours, theirs = msgspec.structs.asdict(self), msgspec.structs.asdict(begun)
        differ = (name for name in ours if ours[name] != theirs[name])
        return "; ".join(f"{name} was {theirs[name]}, is {ours[name]}" for name in differ)


def list_digest(names: Sequence[str]) -> str:
    """SHA-256 over the sorted names, each followed by a zero byte, as lower-case hex; what is in the files is not."""
    total = hashlib.sha256()
    for name in names:
        total.update(os.fsencode(name) + b"\0")
    return total.hexdigest()


class Shards(Sequence[Shard]):
    """The sorted list of images, cut into shards as they are asked for.

    Args:
        names: All images.
        size: Images per shard; the last may have fewer.
        numbers: The shards that are in this sequence.
    """

    def __init__(self, names: Sequence[str], size: int, numbers: Sequence[int]) -> None:
        self._names, self._size, self._numbers = names, size, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, position: int) -> Shard: ...

    @overload
    def __getitem__(self, position: slice) -> "Shards": ...

    def __getitem__(self, position: int | slice) -> "Shard | Shards":
        if isinstance(position, slice):
            return Shards(self._names, self._size, self._numbers[position])
        number = self._numbers[position]
        return Shard(number, tuple(self._names[number * self._size : (number + 1) * self._size]))
