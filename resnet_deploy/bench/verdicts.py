"""Verdicts: an interval or a test in a word. That two engines cannot be told apart is a verdict too."""

import math
from typing import Final, Literal

from resnet_deploy.bench.accuracy import Flips
from resnet_deploy.bench.intervals import Interval

NO_DIFFERENCE: Final = "no significant difference"
TOO_FEW: Final = "too few rounds for a verdict"
SpeedVerdict = Literal["faster", "slower", "no significant difference", "too few rounds for a verdict"]
Verdict = Literal["better", "worse", "no significant difference"]

# With fewer, the bootstrap sees too few of the machine's states and comes out too narrow.
FEWEST_ROUNDS: Final = 5
LEVEL: Final = 0.05  # of all verdicts on one question together


def speed_verdict(speedup: Interval) -> SpeedVerdict:
    """Say whether an engine is faster than another, from the interval of the speed-up: infinite for too few rounds."""
    if math.isinf(speedup.high):
        return TOO_FEW
    if speedup.low > 1:
        return "faster"
    return "slower" if speedup.high < 1 else NO_DIFFERENCE


def accuracy_verdict(flips: Flips, level: float = LEVEL) -> Verdict:
    """Say whether answers got better or worse: McNemar's exact test at ``level``."""
    if flips.p_value > level:
        return NO_DIFFERENCE
    return "better" if flips.gained > flips.lost else "worse"


def slowdown_verdict(ratio: Interval) -> Verdict:
    """Say whether times got better or worse, from the interval of the new ones over the old."""
    if ratio.low > 1:
        return "worse"
    return "better" if ratio.high < 1 else NO_DIFFERENCE


def hides(ratio: Interval, tolerance: float) -> bool:
    """Whether times of which no difference was found may yet be longer by ``tolerance``, as a share.

    They may if so much lies within the interval, and around a ratio as large the interval would still have included 1.
    Where nothing is put up with, nothing can be ruled out, and nobody asks.
    """
    if tolerance == 0:
        return False
    below = ratio.value / ratio.low if ratio.low > 0 else math.inf
    return min(ratio.high, below) > 1 + tolerance
