"""Timing engines in turns.

Every engine sees the same machine: a round gives each of them one turn per batch size, in an order drawn anew, so that
a slow minute falls on all. A turn begins with untimed calls, for the turn before has left the caches and the other
engine's spinning threads behind.
"""

import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from resnet_deploy.batching import run_once
from resnet_deploy.bench.records import Samples
from resnet_deploy.collector import no_garbage_collection

if TYPE_CHECKING:
    from resnet_deploy.bench_spec import BenchSpec
    from resnet_deploy.protocols import Array, Progress, Runner

WARMUP_CALLS: Final = 3
# A turn makes at least this many timed calls, however slow they are, and stops after this many, however fast.
_LEAST_CALLS: Final = 3
_MOST_CALLS: Final = 2000


@dataclass(frozen=True)
class Entrant:
    """A runner and the name it appears under."""

    name: str
    runner: "Runner"


def measure_in_turns(
    entrants: Sequence[Entrant], images: "Array", spec: "BenchSpec", progress: "Progress"
) -> dict[str, tuple[Samples, ...]]:
    """Time every entrant at every batch size it takes, scope ``host``: load, enqueue, synchronize, fetch.

    Args:
        entrants: With distinct names.
        images: Contract tensors, repeated as needed to fill the largest batch.
        spec: Batch sizes, rounds, seconds and the seed of the order.
        progress: Shows the turns.

    Returns:
        Samples by name, one entry per batch size, smallest first.
    """
    order = random.Random(spec.seed)  # noqa: S311 - an order of play, not a secret
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    rounds: dict[tuple[str, int], list[int]] = defaultdict(list)
    turns = []
    for number in range(spec.rounds):
        of_round = [
            (number, entrant, batch)
            for entrant in entrants
            for batch in spec.batches
            if entrant.runner.batch.min <= batch <= entrant.runner.batch.max
        ]
        order.shuffle(of_round)
        turns += of_round
    for number, entrant, batch in progress.track(turns, "timing", len(turns)):
        taken = time_turn(entrant.runner, _filled(images, batch), spec.seconds / spec.rounds)
        seconds[entrant.name, batch] += taken
        rounds[entrant.name, batch] += [number] * len(taken)
    return {
        entrant.name: tuple(
            Samples(
                batch=batch,
                scope="host",
                seconds=tuple(seconds[entrant.name, batch]),
                rounds=tuple(rounds[entrant.name, batch]),
            )
            for batch in sorted(spec.batches)
            if (entrant.name, batch) in seconds
        )
        for entrant in entrants
    }


def time_turn(runner: "Runner", feed: "Array", budget_s: float) -> list[float]:
    """Call ``runner`` on one batch for ``budget_s`` seconds after warming up; return seconds per call."""
    for _ in range(WARMUP_CALLS):
        run_once(runner, feed)
    taken: list[float] = []
    clock = time.perf_counter_ns
    with no_garbage_collection():
        end = clock() + int(budget_s * 1e9)
        while len(taken) < _LEAST_CALLS or (clock() < end and len(taken) < _MOST_CALLS):
            start = clock()
            runner.load(feed)
            runner.enqueue()
            runner.synchronize()
            runner.fetch()
            taken.append((clock() - start) * 1e-9)
    return taken


def _filled(images: "Array", batch: int) -> "Array":
    """Take the first ``batch`` images, going round as often as needed; contiguous."""
    import numpy as np

    return np.ascontiguousarray(images[np.arange(batch) % len(images)])
