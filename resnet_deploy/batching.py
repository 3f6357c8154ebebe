"""Any number of images through a runner that takes a limited range of batch sizes."""

from typing import TYPE_CHECKING

import numpy as np

from resnet_deploy.errors import FeedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from resnet_deploy.protocols import Array, Runner


def check_feed(feed: "Array", runner: "Runner") -> None:
    """Hold one batch against what ``runner.load`` accepts.

    Raises:
        FeedError: If its dtype, shape or batch size does not fit, or it is not C-contiguous.
    """
    check_images(feed, runner)
    sizes = runner.batch
    if not sizes.min <= len(feed) <= sizes.max:
        raise FeedError(
            f"batch of {len(feed)}, the engine takes {sizes.min} to {sizes.max}",
            hint="build the engine with another --batch, or let Engine split the images",
        )
    if not feed.flags.c_contiguous:
        raise FeedError("the batch is not contiguous", hint="pass it through numpy.ascontiguousarray")


def check_images(images: "Array", runner: "Runner") -> None:
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
    for start in range(0, len(images), runner.batch.max):
        batch = images[start : start + runner.batch.max]
        missing = runner.batch.min - len(batch)
        if missing > 0:
            batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        answers.append(run_once(runner, np.ascontiguousarray(batch))[: len(images) - start])
    return np.concatenate(answers)
