"""How far one set of values lies from another: an interval that asks nothing of their distribution.

The estimate of Hodges and Lehmann (1963) is the median of all differences between a value of one set and a value of the
other; the interval that goes with it runs from the k-th smallest of them to the k-th largest, k as the exact
distribution of Mann and Whitney's U (1947) has it. A few values that are far off move neither, and where there are too
few values for the confidence asked for, the interval is infinite instead of too narrow.
"""

import itertools
from fractions import Fraction
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

import numpy as np

from resnet_deploy.bench.intervals import Interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Beyond so many pairs the normal approximation is good to a rank or two of thousands, and the exact one slow.
_MOST_PAIRS: Final = 2500


def shift_interval(before: "Floats", after: "Floats", level: float) -> Interval:
    """Estimate how much ``after`` exceeds ``before``.

    Args:
        before: At least one value, shape (m,), in no order.
        after: Likewise, shape (n,).
        level: Chance, at most 1, that the interval misses where both are drawn from one distribution but for the shift.

    Returns:
        The shift, with an interval of confidence 1 - ``level``.
    """
    differences = np.sort((after[:, None] - before[None, :]).ravel())
    return inner_interval(differences, critical_count(len(before), len(after), level))


def inner_interval(ordered: "Floats", outside: int) -> Interval:
    """The median of sorted values, from the ``outside``-th smallest to the ``outside``-th largest; 0 for all there is.

    Where so many would cross, the two in the middle are left.
    """
    value = float(np.median(ordered))
    if outside == 0:
        return Interval(value, -np.inf, np.inf)
    outside = min(outside, (len(ordered) + 1) // 2)
    return Interval(value, float(ordered[outside - 1]), float(ordered[-outside]))


@lru_cache(maxsize=256)
def critical_count(m: int, n: int, level: float) -> int:
    """How many of the m n sorted differences to count off at either end: 0 where there are too few for ``level``."""
    if m * n > _MOST_PAIRS:
        spread = (m * n * (m + n + 1) / 12) ** 0.5
        return max(0, int(m * n / 2 - NormalDist().inv_cdf(1 - level / 2) * spread))
    ways = _ways(m, n)
    allowed = Fraction(level) / 2 * sum(ways)
    return sum(1 for total in itertools.accumulate(ways) if total <= allowed)


def _ways(m: int, n: int) -> list[int]:
    """Count, for each U from 0 to m n, the orders of m and n values that have it: a Gaussian binomial coefficient."""
    ways = [1] + [0] * (m * n)
    for i in range(1, m + 1):
        for u in range(m * n, n + i - 1, -1):  # times 1 - q^(n + i)
            ways[u] -= ways[u - n - i]
        for u in range(i, m * n + 1):  # over 1 - q^i
            ways[u] += ways[u - i]
    return ways
