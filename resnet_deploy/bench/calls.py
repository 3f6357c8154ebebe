"""What one call is, in each scope: a function that makes it and returns the seconds within its timer."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from resnet_deploy.bench.end_to_end import EncodedImages, classify
from resnet_deploy.protocols import TimesSteps

if TYPE_CHECKING:
    from resnet_deploy.bench.records import Way
    from resnet_deploy.protocols import Array, Runner

Call = Callable[[], float]


@dataclass(frozen=True)
class Feeds:
    """What engines are timed on.

    Attributes:
        images: Contract tensors, repeated as needed to fill a batch.
        encoded: Image files for the scope ``end_to_end``; None where that is not asked for.
        start: Where among the files calls begin, from 0 to 1.
    """

    images: "Array"
    encoded: EncodedImages | None = None
    start: float = 0.0


def call_for(runner: "Runner", way: "Way", feeds: Feeds) -> Call:
    """Make the function that calls ``runner`` in ``way``.

    Raises:
        ValueError: If files are needed and there are none.
    """
    if way.scope == "end_to_end":
        if feeds.encoded is None:
            raise ValueError("end to end without image files")
        return end_to_end_call(runner, feeds.encoded, way.batch, feeds.start)
    feed = _filled(feeds.images, way.batch)
    if way.scope == "host":
        return host_call(runner, feed)
    if isinstance(runner, TimesSteps):
        timed, step = runner, way.scope
        return lambda: float(getattr(timed.time_steps(feed), step))
    return device_call(runner, feed)


def host_call(runner: "Runner", feed: "Array") -> Call:
    """Time all four steps."""
    # Bound once: what looking them up takes is not the engine's.
    clock, load, enqueue = time.perf_counter_ns, runner.load, runner.enqueue
    synchronize, fetch = runner.synchronize, runner.fetch

    def call() -> float:
        start = clock()
        load(feed)
        enqueue()
        synchronize()
        fetch()
        return (clock() - start) * 1e-9

    return call


def device_call(runner: "Runner", feed: "Array") -> Call:
    """Time what lies between staging and fetching, by the host's clock."""
    clock = time.perf_counter_ns

    def call() -> float:
        runner.load(feed)
        start = clock()
        runner.enqueue()
        runner.synchronize()
        end = clock()
        runner.fetch()
        return (end - start) * 1e-9

    return call


def end_to_end_call(runner: "Runner", encoded: EncodedImages, batch: int, start: float) -> Call:
    """Time the way from files to classes; each call takes the next files, the first those at the share ``start``."""
    clock, in_order = time.perf_counter_ns, encoded.groups(batch)
    first = int(start * len(in_order))
    groups = itertools.cycle(in_order[first:] + in_order[:first])

    def call() -> float:
        files = next(groups)
        start = clock()
        classify(runner, encoded, files)
        return (clock() - start) * 1e-9

    return call


def _filled(images: "Array", batch: int) -> "Array":
    """Take the first ``batch`` images, going round as often as needed; contiguous."""
    return np.ascontiguousarray(images[np.arange(batch) % len(images)])
