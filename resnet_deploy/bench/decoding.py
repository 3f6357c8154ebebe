"""What reading images costs beside running them: decoding alone, an engine alone, and both together.

Where the engine has a device of its own, decoding and running overlap, and the slower of the two is the bound. Where
both use all cores of one CPU, each image costs the time of both, and the bound is the harmonic one.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from resnet_deploy.batching import infer
from resnet_deploy.bench.records import DecodeTimes

if TYPE_CHECKING:
    from resnet_deploy.bench.ways import Entrant
    from resnet_deploy.datasets import BatchReader
    from resnet_deploy.protocols import Array, Progress

ROUNDS: Final = 3
_KEPT: Final = 4  # batches that an engine alone is run on, again and again; more would only take memory


@dataclass(frozen=True)
class _Turn:
    """One thing to be timed: a pass over the images."""

    name: str
    run: Callable[[], int]


def measure_decoding(
    reader: "BatchReader", entrants: "Sequence[Entrant]", progress: "Progress", rounds: int = ROUNDS
) -> DecodeTimes:
    """Time passes over the images in turns, and take the median of each; the first pass warms up the file cache.

    Args:
        reader: Of at least one sound image.
        entrants: With distinct names.
        progress: Shows the turns.
        rounds: How often each is timed.
    """
    kept: list[Array] = []
    images = 0
    for batch in reader:
        images += len(batch.images)
        if len(kept) < _KEPT:
            kept.append(batch.images)
    turns = [_Turn("", lambda: sum(len(batch.images) for batch in reader))]
    for entrant in entrants:
        turns.append(_Turn(f"alone {entrant.name}", _run_alone(entrant, kept, images)))
        turns.append(_Turn(f"both {entrant.name}", _run_both(entrant, reader)))
    rates: dict[str, list[float]] = {turn.name: [] for turn in turns}
    for turn in progress.track(turns * rounds, "decoding and running", len(turns) * rounds):
        begun = time.perf_counter()
        passed = turn.run()
        rates[turn.name].append(passed / (time.perf_counter() - begun))
    median = {name: statistics.median(values) for name, values in rates.items()}
    return DecodeTimes(
        workers=reader.threads,
        images=images,
        decode=median[""],
        engines={one.name: (median[f"alone {one.name}"], median[f"both {one.name}"]) for one in entrants},
    )


def bound(decode: float, engine: float, *, shared: bool) -> float:
    """Return the most images per second that decoding and an engine can reach together.

    Args:
        decode: Of decoding alone, in images per second.
        engine: Of the engine alone, likewise.
        shared: Whether both use all cores of the same CPU.
    """
    return 1 / (1 / decode + 1 / engine) if shared else min(decode, engine)


def _run_alone(entrant: "Entrant", batches: "Sequence[Array]", images: int) -> Callable[[], int]:
    def run() -> int:
        done = number = 0
        while done < images:
            feed = batches[number % len(batches)]
            infer(entrant.runner, feed)
            done, number = done + len(feed), number + 1
        return done

    return run


def _run_both(entrant: "Entrant", reader: "BatchReader") -> Callable[[], int]:
    def run() -> int:
        done = 0
        for batch in reader:
            infer(entrant.runner, batch.images)
            done += len(batch.images)
        return done

    return run
