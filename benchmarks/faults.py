"""What kills, crowds and bad places do to the commands that write something.

    python benchmarks/faults.py [-o RECORD.json] [--parts kills,...] [--kills 200] [--only NAME,...] [--seed 0]

Each command works on an untrained ResNet-18 at 32 pixels and a few images, in a child of this process, which has
everything imported, so that a kill falls into the command's work, and not into the import of PyTorch. Parts:

* ``kills``: SIGKILL, in turns after a random time and right before a random change to a file, half of them where an
  earlier result of another request lies. Then everything that has the name of something whole is checked to be whole
  (digests, golden answers, schema), and the same command must succeed, clean up, and give what it gives undisturbed.
* ``together``: two of a kind at once for one place, at random distances: the same twice, and one that asks for another
  thing. What lies there then is whole and what one of them alone would write; at most one was refused, in two lines.
* ``full``: a disk (tmpfs) too small by more and by less, then the same command with room.
* ``read-only``: inputs, HOME and caches, TMPDIR, and the output itself.
* ``memory``: an address space (RLIMIT_AS) of little more than the process has at its start.

What this does not cover: kills during imports or within one system call; a machine that stops, and with it what a disk
has not yet written (that is left to fsync, whose order a test holds); network file systems; native code's own files
and children's changes are killed by time alone.
"""

import argparse
import contextlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from faults_children import get_ready
from faults_kills import KillTrial, kill_at_random, kill_rows
from faults_places import MIB, PlaceTrial, fill_disks, forbid_writing, limit_memory, place_rows
from faults_subjects import SUBJECTS, make_base
from faults_together import PairTrial, pair_rows, run_together

from resnet_deploy import environment
from resnet_deploy.bench import record_files
from resnet_deploy.environment import Environment

PARTS: Final = ("kills", "together", "full", "read-only", "memory")
MEMORY: Final = tuple(16 * 4**step * MIB for step in range(4))  # more than the process has when it begins
# Of every hundred kills; what takes longest gets the fewest.
SHARES: Final = {
    "export": 2,
    "build --fp32": 16,
    "build --int8": 8,
    "calibrate": 12,
    "merge": 16,
    "build --max-drop": 2,
    "bench": 6,
    "evaluate": 14,
    "package": 18,
    "predict --out": 3,
    "prebuild": 3,
}
SLOW: Final = frozenset({"export", "build --max-drop", "predict --out", "prebuild"})  # half as many of all else


class FaultRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What this script saw.

    Attributes:
        created: UTC time, ISO 8601.
        environment: The machine and its libraries.
        seed: Of the moments.
        seconds: How long it took.
        kills: Every command that was killed.
        pairs: Every two commands at once.
        places: Every command that had no room, no writing, or no memory.
    """

    schema_version: int = 1
    created: str
    environment: Environment
    seed: int
    seconds: float
    kills: tuple[KillTrial, ...] = ()
    pairs: tuple[PairTrial, ...] = ()
    places: tuple[PlaceTrial, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether something was tried, and nothing went wrong that must not."""
        trials = (*self.kills, *self.pairs, *self.places)
        return bool(trials) and all(one.is_sound for one in trials)


def kill_all(names: Sequence[str], kills: int, folder: Path, draw: random.Random) -> tuple[KillTrial, ...]:
    """Share the kills out among the commands."""
    total, trials = sum(SHARES[name] for name in names), []
    with contextlib.suppress(KeyboardInterrupt):  # what was done counts
        for name in names:
            count = max(2, -(-kills * SHARES[name] // total))
            for trial in kill_at_random(SUBJECTS[name], folder / "base", folder / "work", count, draw):
                trials.append(trial)
                tell(f"{name}, killed at {trial.moment:.0%}", trial.is_sound, str(trial))
    return tuple(trials)


def pair_all(names: Sequence[str], pairs: int, folder: Path, draw: random.Random) -> tuple[PairTrial, ...]:
    """Run every command twice at once."""
    trials = []
    with contextlib.suppress(KeyboardInterrupt):  # what was done counts
        for name in names:
            count = shared(name, pairs)
            for trial in run_together(SUBJECTS[name], folder / "base", folder / "work", count, draw):
                trials.append(trial)
                tell(f"{name}, twice at once", trial.is_sound, str(trial))
    return tuple(trials)


def place_all(names: Sequence[str], parts: Sequence[str], folder: Path, steps: int) -> tuple[PlaceTrial, ...]:
    """Run every command in every bad place that is asked for."""
    trials, base, work = [], folder / "base", folder / "work"
    with contextlib.suppress(KeyboardInterrupt):
        for name in names:
            ways = {
                "full": partial(fill_disks, sizes=shared(name, steps)),
                "read-only": forbid_writing,
                "memory": partial(limit_memory, limits=MEMORY[:: 2 if name in SLOW else 1]),
            }
            for part in parts:
                for trial in ways[part](SUBJECTS[name], base, work) if part in ways else ():
                    trials.append(trial)
                    tell(f"{name}, {trial.place}: {trial.what}", trial.is_sound, str(trial))
    return tuple(trials)


def shared(name: str, count: int) -> int:
    """Return how many trials of so many a command gets."""
    return -(-count // 2) if name in SLOW else count


def tell(what: str, is_sound: bool, details: str) -> None:
    """Say on standard error how far it is."""
    print(f"{what}: {'sound' if is_sound else details}", file=sys.stderr, flush=True)


def campaign(arguments: argparse.Namespace, folder: Path) -> FaultRecord:
    """Do the parts that are asked for."""
    begun, draw = time.monotonic(), random.Random(arguments.seed)
    make_base(folder / "base")
    names = arguments.only or list(SUBJECTS)
    kills = kill_all(names, arguments.kills, folder, draw) if "kills" in arguments.parts else ()
    pairs = pair_all(names, arguments.pairs, folder, draw) if "together" in arguments.parts else ()
    places = place_all(names, arguments.parts, folder, arguments.steps)
    return FaultRecord(
        created=record_files.created_now(),
        environment=environment.collect(),
        seed=arguments.seed,
        seconds=time.monotonic() - begun,
        kills=kills,
        pairs=pairs,
        places=places,
    )


def table(record: FaultRecord) -> list[str]:
    """Lines of Markdown: a table for each part."""
    tables = ((record.kills, kill_rows), (record.pairs, pair_rows), (record.places, place_rows))
    parts = [rows(trials) for trials, rows in tables if trials]
    return [line for rows in parts for line in (*(f"| {' | '.join(row)} |" for row in rows), "")]


def listed(text: str) -> list[str]:
    """Part names at commas."""
    return [one.strip() for one in text.split(",")]


def main(words: Sequence[str] | None = None) -> None:
    """Do it, print, write the record where one is asked for; exit status 1 where something is not sound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--parts", type=listed, default=list(PARTS), metavar="NAME,...")
    parser.add_argument("--kills", type=int, default=200, help="in all, as a multiple of the commands' shares")
    parser.add_argument("--pairs", type=int, default=6, help="of each command")
    parser.add_argument("--steps", type=int, default=4, help="sizes of full disks, for each command")
    parser.add_argument("--only", type=listed, metavar="COMMAND,...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work  [default: a temporary folder]")
    arguments = parser.parse_args(words)
    for asked, known in ((arguments.parts, PARTS), (arguments.only or (), SUBJECTS)):
        if odd := [one for one in asked if one not in known]:
            parser.error(f"there is no {', '.join(odd)}; there are {', '.join(known)}")
    get_ready()
    folder = Path(tempfile.mkdtemp(prefix="resnet-deploy-faults-", dir=arguments.folder))
    try:
        record = campaign(arguments, folder)
    finally:
        shutil.rmtree(folder)
    print("\n".join(table(record)))
    if arguments.output is not None:
        record_files.write(record, arguments.output)
    if not record.is_sound:
        sys.exit(1)


if __name__ == "__main__":
    main()
