"""Two sets of logits in, numbers out. What is good enough is for the caller to say."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resnet_deploy.protocols import Array

_FEW: Final = 8  # best classes, up to which picking them one by one is faster than sorting


@dataclass(frozen=True)
class LogitDifference:
    """How far each image's logits are from the reference's.

    Attributes:
        agreement: Share of images with the same best class.
        noise: Sum of squared differences, per image.
        signal: Sum of squared reference logits, per image.
        max_difference: Largest absolute difference, per image.
    """

    agreement: float
    noise: "NDArray[np.float64]"
    signal: "NDArray[np.float64]"
    max_difference: "NDArray[np.float64]"

    @property
    def sqnr_db(self) -> float:
        """Power of the reference over the power of the difference, in decibels; infinite when they are equal.

        Minus infinity when the difference drowns the reference: it is infinite, or the reference is all zeros.
        """
        return sqnr_db(float(self.signal.sum()), float(self.noise.sum()))


def sqnr_db(signal: float, noise: float) -> float:
    """Ratio of two powers in decibels: infinite without noise, minus infinity where the noise is infinite or no number.

    Minus infinity too where there is noise and no signal.
    """
    if noise == 0:
        return math.inf
    ratio = signal / noise
    return 10 * math.log10(ratio) if 0 < ratio < math.inf else -math.inf


def compare_logits(reference: "Array", candidate: "Array") -> LogitDifference:
    """Compare logits of the same images, each (N, classes) with N at least 1.

    A logit that is not finite, on either side, makes its image disagree and its noise and difference not finite.
    """
    expected, got = reference.astype(np.float64), candidate.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity minus infinity: not a number, as it should be
        difference = got - expected
    finite = np.isfinite(difference).all(1)
    agree = finite & (expected.argmax(1) == got.argmax(1))
    return LogitDifference(
        agreement=float(agree.mean()),
        noise=(difference**2).sum(1),
        signal=(expected**2).sum(1),
        max_difference=np.abs(difference).max(1),
    )


def best_class(logits: "Array") -> "NDArray[np.int64]":
    """Name the class of each image, (N, classes) to (N,), as ``best_classes`` ranks; -1 where a logit is not finite."""
    best: NDArray[np.int64] = np.where(np.isfinite(logits).all(1), logits.argmax(1), -1)
    return best


def best_classes(logits: "Array", count: int = 5) -> "NDArray[np.int64]":
    """Rank classes, best first: (N, classes) to (N, min(count, classes)); of equal logits the lower class wins."""
    count = min(count, logits.shape[1])
    if count > _FEW or not np.isfinite(logits).all():
        ranked: NDArray[np.int64] = np.argsort(-logits.astype(np.float64), axis=1, kind="stable")[:, :count]
        return ranked
    # Sorting a thousand classes takes 0.1 ms an image, as long as a GPU takes for all the rest.
    left, rows = logits.astype(np.float64), np.arange(len(logits))
    best = np.empty((len(logits), count), np.int64)
    for rank in range(count):
        best[:, rank] = left.argmax(1)  # the first of equals
        left[rows, best[:, rank]] = -np.inf
    return best


def softmax(logits: "Array") -> "NDArray[np.float64]":
    """Turn logits, (N, classes), into probabilities that add up to 1 in each row."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    exponentials: NDArray[np.float64] = np.exp(shifted)
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials
