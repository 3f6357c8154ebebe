"""Any number of images through a runner that takes a limited range of batch sizes."""

from collections import deque
from typing import TYPE_CHECKING, Protocol

import numpy as np

from resnet_deploy.errors import FeedError
from resnet_deploy.protocols import WritesInto

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from resnet_deploy.protocols import Array, Runner, TensorSpec


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


class TakesImages(Protocol):
    """What says which images it takes: a runner, or what stands before one."""

    @property
    def input(self) -> "TensorSpec":
        """Of one image."""
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


def check_images(images: "Shaped", runner: "TakesImages") -> None:
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
    try:
        runner.enqueue()
        runner.synchronize()
        return runner.fetch()
    except BaseException:  # interrupted: what was begun reads its batch until it is done
        runner.synchronize()
        raise


def run_into(runner: "Runner", feed: "Array", out: "Array") -> None:
    """Take one batch through a runner's four steps; its first ``len(out)`` answers are written into ``out``.

    By the backend itself where the runner is one that ``WritesInto``, else copied.
    """
    _load(runner, feed, out)
    try:
        runner.enqueue()
        _finish(runner, out)
    except BaseException:  # as in run_once
        runner.synchronize()
        raise


def _load(runner: "Runner", feed: "Array", out: "Array") -> None:
    runner.load(feed)
    if len(out) == len(feed) and isinstance(runner, WritesInto):
        runner.write_into(out)


def _finish(runner: "Runner", out: "Array") -> None:
    runner.synchronize()
    _keep(runner.fetch(), out)


def _keep(answers: "Array", out: "Array") -> None:
    if answers is not out:
        out[...] = answers[: len(out)]


def infer(runner: "Runner", images: "Array") -> "Array":
    """Run any number of images, shape (N, *runner.input.shape); return logits (N, *runner.output.shape).

    Batches are as large as the runner takes; a remainder below its smallest is filled up with copies of the last image,
    whose answers are dropped. Images that are not C-contiguous are copied a batch at a time.

    Raises:
        FeedError: If dtype or shape does not fit.
    """
    check_images(images, runner)
    logits = np.empty((len(images), *runner.output.shape), runner.output.dtype)
    infer_some([runner], images, logits)
    return logits


def infer_some(
    runners: "Sequence[Runner]", images: "Array", out: "Array", goes_on: "Callable[[], bool]" = lambda: True
) -> int:
    """Run images as ``infer`` does, the batches on one runner after the other, until there are none or it is stopped.

    From one thread: a runner's answers are fetched only when its turn comes again, so that as many batches are under
    way as there are runners, where ``enqueue`` returns before it is done. When this returns, none is.

    Args:
        runners: Of the same engine.
        images: Any number.
        out: Where the logits go, C-contiguous, of the runners' dtype. After an error it may hold the answers of the
            batches before.
        goes_on: Asked after each batch is begun, whether another one may be.

    Returns:
        How many images were run: all, or the first so many.

    Raises:
        FeedError: If dtype or shape does not fit.
    """
    first = runners[0]
    check_images(images, first)
    begun = 0

    def taken() -> "Iterator[tuple[Array, Array]]":
        nonlocal begun
        for part, batch in zip(_parts(out, first), _batches(images, first), strict=True):
            begun += len(part)
            yield part, batch
            if not goes_on():
                return

    if len(runners) > 1:
        _run_in_turns(runners, taken())
    elif _loads_ahead(first):
        _run_ahead_into(first, taken())
    else:
        for part, batch in taken():
            run_into(first, batch, part)
    return begun


def run_each(runner: "Runner", batches: "Iterable[Array]") -> "Iterator[Array]":
    """Yield the logits of each batch, in order, loading ahead where the runner can."""
    if _loads_ahead(runner):
        yield from _run_ahead(runner, batches)
    else:
        for batch in batches:
            yield run_once(runner, batch)


def filled_up(batch: "Array", least: int) -> "Array":
    """Fill a batch that is too small up to ``least`` with copies of its last image; contiguous."""
    if len(batch) < least:
        batch = np.concatenate([batch, np.repeat(batch[-1:], least - len(batch), axis=0)])
    return np.ascontiguousarray(batch)


def _run_in_turns(runners: "Sequence[Runner]", parts: "Iterable[tuple[Array, Array]]") -> None:
    running: deque[tuple[Runner, Array]] = deque()
    try:
        for index, (part, batch) in enumerate(parts):
            if len(running) == len(runners):
                _finish(*running[0])
                running.popleft()
            runner = runners[index % len(runners)]
            _load(runner, batch, part)
            running.append((runner, part))
            runner.enqueue()
        while running:
            _finish(*running[0])
            running.popleft()
    finally:
        for runner, _ in running:  # as in run_once
            runner.synchronize()


def _run_ahead_into(runner: "Runner", parts: "Iterable[tuple[Array, Array]]") -> None:
    begun: deque[Array] = deque()

    def batches() -> "Iterator[Array]":
        for part, batch in parts:
            begun.append(part)
            yield batch

    for answers in _run_ahead(runner, batches()):
        _keep(answers, begun.popleft())


def _loads_ahead(runner: "Runner") -> bool:
    return getattr(runner, "loads_ahead", False)  # one runner does: the protocol asks for less


def _parts(logits: "Array", runner: "Runner") -> "Iterator[Array]":
    """Split logits as ``_batches`` splits images."""
    for start in range(0, len(logits), runner.batch.max):
        yield logits[start : start + runner.batch.max]


def _batches(images: "Array", runner: "Runner") -> "Iterator[Array]":
    """Split ``images``, and fill up a remainder that is too small."""
    for start in range(0, len(images), runner.batch.max):
        yield filled_up(images[start : start + runner.batch.max], runner.batch.min)


def _run_ahead(runner: "Runner", batches: "Iterable[Array]") -> "Iterator[Array]":
    """Load each batch while the one before it is run, and start it before the answers are handed on."""
    running = False
    try:
        for batch in batches:
            runner.load(batch)
            answers = runner.fetch() if running else None
            running = True
            runner.enqueue()
            if answers is not None:
                yield answers
        if running:
            runner.synchronize()
            yield runner.fetch()
    except BaseException:  # as in run_once; or whoever takes the answers has stopped
        if running:
            runner.synchronize()
        raise
