"""Answers counted against labels and against another engine's, image by image.

Intervals of shares need no resampling: Wilson's for one share, and the one of Agresti and Min (2005) for the difference
between two shares of the same images. Whether two engines differ in what they get right is McNemar's question (1947),
answered by the exact test on the images that one of them alone got right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from resnet_deploy.bench.intervals import Interval
from resnet_deploy.bench.records import DatasetRecord, Outputs

_Z95: Final = 1.959964  # two-sided 95 % of the normal distribution


@dataclass(frozen=True)
class Flips:
    """Images that one engine got right and the other did not.

    Attributes:
        gained: Right now, wrong before.
        lost: Wrong now, right before.
        p_value: Of McNemar's exact test: how likely so uneven a pair is, or a more uneven one, if each such image were
            as likely to be gained as lost.
    """

    gained: int
    lost: int
    p_value: float


@dataclass(frozen=True)
class Accuracy:
    """Answers counted against labels and against the reference; a figure is None where it cannot be had.

    Attributes:
        images: How many were counted.
        top1: Share of images whose best class is the label.
        top5: Share of images whose label is among the five best.
        top1_change: ``top1`` less the reference's, counted on the same images.
        agreement: Share of images whose best class is the reference's.
        sqnr_db: Power of the reference's logits over the power of the difference, in decibels; infinite where there is
            no difference, NaN where logits are not finite.
        max_difference: Largest absolute difference of a logit; NaN where logits are not finite.
        not_finite: How many images have logits that are NaN or infinite.
        flips: Images gained and lost against the reference.
    """

    images: int
    top1: float | None
    top5: float | None
    top1_change: Interval | None
    agreement: float | None
    sqnr_db: float | None
    max_difference: float | None
    not_finite: int
    flips: Flips | None = None


def share_interval(share: float, count: int) -> Interval:
    """Wilson's interval of a share of ``count`` images."""
    square = _Z95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = _Z95 / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    # The limits are exactly 0 and 1 at the ends, which rounding misses.
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def accuracy(outputs: Outputs, reference: Outputs | None, dataset: DatasetRecord) -> Accuracy:
    """Count ``outputs`` against the labels of ``dataset`` and the answers of ``reference``."""
    count = len(outputs.top5)
    top1 = top5 = change = flips = sqnr = max_difference = None
    if dataset.labels:
        right = hits(outputs, dataset)
        top1 = sum(right) / count
        top5 = sum(label in best for best, label in zip(outputs.top5, dataset.labels, strict=True)) / count
        if reference is not None:
            flips = count_flips(hits(reference, dataset), right)
            change = change_interval(flips, count)
    if outputs.noise:
        sqnr = _decibels(_total(outputs.signal), _total(outputs.noise))
    differences = [math.nan if value is None else value for value in outputs.max_difference]
    not_finite = sum(not best for best in outputs.top5)
    if differences:
        not_finite = sum(not math.isfinite(value) for value in differences)  # counts the reference's too
        max_difference = math.nan if not_finite else max(differences)
    return Accuracy(
        images=count,
        top1=top1,
        top5=top5,
        top1_change=change,
        agreement=None if reference is None else agreement(outputs, reference),
        sqnr_db=sqnr,
        max_difference=max_difference,
        not_finite=not_finite,
        flips=flips,
    )


def hits(outputs: Outputs, dataset: DatasetRecord) -> list[bool]:
    """Say of each image whether its best class is the label."""
    return [best[:1] == (label,) for best, label in zip(outputs.top5, dataset.labels, strict=True)]


def agreement(outputs: Outputs, others: Outputs) -> float:
    """Share of images with the same best class; an answer that is no number agrees with nothing."""
    pairs = zip(outputs.top5, others.top5, strict=True)
    return sum(bool(mine) and mine[:1] == theirs[:1] for mine, theirs in pairs) / len(outputs.top5)


def count_flips(before: Sequence[bool], after: Sequence[bool]) -> Flips:
    """Count the images gained and lost, and test whether they are even."""
    gained = sum(new and not old for old, new in zip(before, after, strict=True))
    lost = sum(old and not new for old, new in zip(before, after, strict=True))
    return Flips(gained, lost, mcnemar(gained, lost))


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact two-sided test: twice the binomial tail of the smaller count, at evens; 1 where nothing flipped.

    The conditional test of McNemar (1947) with the binomial in place of its normal approximation, in whole numbers.
    """
    flipped, fewer = gained + lost, min(gained, lost)
    tail, term = 0, 1
    for count in range(fewer + 1):
        tail += term
        term = term * (flipped - count) // (count + 1)  # the next binomial coefficient
    evens: int = 2**flipped
    return min(1.0, 2 * tail / evens)


def change_interval(flips: Flips, images: int) -> Interval:
    """Difference of two shares of the same images; Agresti and Min add half an image to each of the four cells."""
    gained, lost, count = flips.gained, flips.lost, images + 2
    centre = (gained - lost) / count
    half = _Z95 * math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / count) / count
    return Interval((gained - lost) / images, max(-1.0, centre - half), min(1.0, centre + half))


def _total(values: Sequence[float | None]) -> float:
    """Sum to NaN where a value is not finite."""
    return math.fsum(math.nan if value is None or not math.isfinite(value) else value for value in values)


def _decibels(signal: float, noise: float) -> float:
    if math.isnan(signal) or math.isnan(noise):
        return math.nan
    if noise == 0:
        return math.inf
    # Of each by itself, for their quotient may be too small for a number.
    return 10 * (math.log10(signal) - math.log10(noise)) if signal > 0 else -math.inf
