"""How far values lie from those that they are paired with: an exact interval, as ``shifts`` has it for unpaired ones.

The estimate of Hodges and Lehmann (1963) is the median of the means of all pairs of differences, each with itself
too (Walsh's averages); the interval that goes with it runs from the k-th smallest of them to the k-th largest, k as the
exact distribution of Wilcoxon's signed ranks (1945) has it. It asks that differences lie evenly about their centre,
which those of two engines that do not differ do: either might have been the other. Where there are too few pairs for
the confidence asked for, the interval is infinite instead of too narrow.
"""

import itertools
from fractions import Fraction
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

import numpy as np

from resnet_deploy.bench.intervals import Interval, time_per_image
from resnet_deploy.bench.records import Samples
from resnet_deploy.bench.shifts import inner_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Beyond so many pairs the normal approximation is good to a rank or two of thousands, and the exact one slow.
_MOST_EXACT: Final = 60


def paired_interval(differences: "Floats", level: float) -> Interval:
    """Estimate the centre of at least one difference.

    Args:
        differences: Shape (n,), in no order.
        level: Chance, at most 1, that the interval misses.

    Returns:
        The centre, with an interval of confidence 1 - ``level``.
    """
    rows, columns = np.triu_indices(len(differences))
    averages = np.sort((differences[rows] + differences[columns]) / 2)
    return inner_interval(averages, signed_rank_count(len(differences), level))


@lru_cache(maxsize=256)
def signed_rank_count(n: int, level: float) -> int:
    """How many of the n (n + 1) / 2 sorted averages to count off at either end: 0 where there are too few."""
    if n > _MOST_EXACT:
        spread = (n * (n + 1) * (2 * n + 1) / 24) ** 0.5
        return max(0, int(n * (n + 1) / 4 - NormalDist().inv_cdf(1 - level / 2) * spread))
    ways = _ways(n)
    allowed = Fraction(level) / 2 * 2**n
    return sum(1 for total in itertools.accumulate(ways) if total <= allowed)


def speedup_interval(reference: Samples, candidate: Samples, level: float) -> Interval | None:
    """Estimate how many times the reference's throughput an engine has, from the ratio in each round that both have.

    Engines take turns within a round, so what slowed a round down slowed both.

    Returns:
        The ratio of a typical round with an interval of confidence 1 - ``level``, from 0 to infinity where there are
        too few rounds; None where there is no common round.
    """
    slow, fast = time_per_image(reference), time_per_image(candidate)
    shared = [number for number in slow if number in fast]
    if not shared:
        return None
    found = paired_interval(np.array([np.log(slow[number] / fast[number]) for number in shared]), level)
    return Interval(*(float(np.exp(end)) for end in (found.value, found.low, found.high)))


def _ways(n: int) -> list[int]:
    """Count, for each sum of ranks from 0 to n (n + 1) / 2, the sets of ranks from 1 to n that have it."""
    ways = [1] + [0] * (n * (n + 1) // 2)
    for rank in range(1, n + 1):
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    return ways
