"""Any number of images through a runner that takes a limited range of batch sizes."""

from collections import deque
from typing import TYPE_CHECKING, Protocol

import numpy as np

from resnet_deploy.errors import FeedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from resnet_deploy.protocols import Array, Runner


class Shaped(Protocol):
    """What has a type and a shape, in the memory of the host or of a device."""

    @property
    def dtype(self) -> object:
        """Compares equal to NumPy's name of it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """In elements, the batch first."""
        ...


def check_feed(feed: "Array", runner: "Runner") -> None:
    """Hold one batch against what ``runner.load`` accepts.

    Raises:
        FeedError: If its dtype, shape or batch size does not fit, or it is not C-contiguous.
    """
    check_batch(feed, runner)
    if not feed.flags.c_contiguous:
        raise FeedError("the batch is not contiguous", hint="pass it through numpy.ascontiguousarray")


def check_batch(feed: "Shaped", runner: "Runner") -> None:
    """Hold dtype, shape and batch size of ``feed``, wherever it is, against what ``runner`` runs at once.

    Raises:
        FeedError: If they do not fit.
    """
    check_images(feed, runner)
    sizes, size = runner.batch, feed.shape[0]
    if not sizes.min <= size <= sizes.max:
        raise FeedError(
            f"batch of {size}, the engine takes {sizes.min} to {sizes.max}",
            hint="build the engine with another --batch, or let Engine split the images",
        )


def check_images(images: "Shaped", runner: "Runner") -> None:
    """Hold dtype and per-image shape of ``images`` against what ``runner`` accepts, for any number of them.

    Raises:
        FeedError: If they do not fit.
    """
    expected = runner.input
    if images.dtype != expected.dtype:
        raise FeedError(
            f"input {expected.name} has dtype {images.dtype}, the engine takes {expected.dtype}",
            hint="prepare images with the engine's own preprocessing, or convert the array",
        )
    if images.shape[1:] != expected.shape:
        wanted = ", ".join(map(str, expected.shape))
        raise FeedError(
            f"input {expected.name} has shape {images.shape}, the engine takes (N, {wanted})",
            hint="resize and crop the images to the engine's input, or give file paths",
        )


def one_by_one(batches: "Iterable[Array]") -> "Iterator[Array]":
    """Yield batches of one image."""
    for batch in batches:
        for index in range(len(batch)):
            yield batch[index : index + 1]


def run_once(runner: "Runner", feed: "Array") -> "Array":
    """Take one batch through a runner's four steps."""
    runner.load(feed)
    runner.enqueue()
    runner.synchronize()
    return runner.fetch()


def infer(runner: "Runner", images: "Array") -> "Array":
    """Run any number of images, shape (N, *runner.input.shape); return logits (N, *runner.output.shape).

    Batches are as large as the runner takes; a remainder below its smallest is filled up with copies of the last image,
    whose answers are dropped.

    Raises:
        FeedError: If dtype or shape does not fit.
    """
    check_images(images, runner)
    answers: list[Array] = [np.zeros((0, *runner.output.shape), runner.output.dtype)]
    answers += run_each(runner, _batches(images, runner))
    return np.concatenate(answers)[: len(images)]


def run_each(runner: "Runner", batches: "Iterable[Array]") -> "Iterator[Array]":
    """Yield the logits of each batch, in order, loading ahead where the runner can."""
    if getattr(runner, "loads_ahead", False):  # one runner does: the protocol asks for less
        yield from _run_ahead(runner, batches)
    else:
        for batch in batches:
            yield run_once(runner, batch)


def filled_up(batch: "Array", least: int) -> "Array":
    """Fill a batch that is too small up to ``least`` with copies of its last image; contiguous."""
    if len(batch) < least:
        batch = np.concatenate([batch, np.repeat(batch[-1:], least - len(batch), axis=0)])
    return np.ascontiguousarray(batch)


def infer_in_turns(runners: "Sequence[Runner]", images: "Array") -> "Array":
    """Run any number of images as ``infer`` does, batch by batch on one runner after the other.

    From one thread: a runner's answers are fetched only when its turn comes again, so that as many batches are under
    way as there are runners, where ``enqueue`` returns before it is done.

    Raises:
        FeedError: If dtype or shape does not fit.
    """
    first = runners[0]
    check_images(images, first)
    answers: list[Array] = [np.zeros((0, *first.output.shape), first.output.dtype)]
    running: deque[Runner] = deque()
    try:
        for index, batch in enumerate(_batches(images, first)):
            if len(running) == len(runners):
                answers.append(_finish(running.popleft()))
            runner = runners[index % len(runners)]
            runner.load(batch)
            runner.enqueue()
            running.append(runner)
        while running:
            answers.append(_finish(running.popleft()))
    finally:
        for runner in running:  # interrupted: what was begun reads its batch until it is done
            runner.synchronize()
    return np.concatenate(answers)[: len(images)]


def _finish(runner: "Runner") -> "Array":
    runner.synchronize()
    return runner.fetch()


def _batches(images: "Array", runner: "Runner") -> "Iterator[Array]":
    """Split ``images``, and fill up a remainder that is too small."""
    for start in range(0, len(images), runner.batch.max):
        yield filled_up(images[start : start + runner.batch.max], runner.batch.min)


def _run_ahead(runner: "Runner", batches: "Iterable[Array]") -> "Iterator[Array]":
    """Load each batch while the one before it is run, and start it before the answers are handed on."""
    running = False
    for batch in batches:
        runner.load(batch)
        answers = runner.fetch() if running else None
        runner.enqueue()
        running = True
        if answers is not None:
            yield answers
    if running:
        runner.synchronize()
        yield runner.fetch()
