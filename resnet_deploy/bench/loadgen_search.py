"""The highest rate that holds: bracketed, bisected, and confirmed from both sides.

On a machine that others use too, a rate that held may fail when it is tried again, and the other way about. What was
seen last counts: it also overrules what was seen earlier of lower rates that failed and of higher ones that held. The
search ends once a rate has held twice in succession and one at most a tolerance above it has failed twice.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_GROWTH: Final = 2.0  # from one rate to the next, until some hold and some do not
_LOWEST: Final = 1 / 64  # of the first rate: below, none is looked for


@dataclass(frozen=True)
class Found:
    """The end of a search: the rate, or why there is none."""

    rate: float | None
    reason: str = ""


def find_peak(holds: Callable[[float], bool], start: float, *, tolerance: float, most: int) -> Found:
    """Search the highest rate that holds.

    Args:
        holds: Tries a rate.
        start: The rate to begin with.
        tolerance: How far apart the two rates may end, as a share of the lower one.
        most: Most rates to try.
    """
    seen = _Seen()
    growth = _GROWTH
    for _ in range(most):
        low, high = seen.low, seen.high
        if low is None:
            if high is not None and high <= start * _LOWEST:
                return Found(None, f"not even {high:.3g} queries/s hold")
            rate = start if high is None else high / growth
        elif high is None:
            rate = low * growth
        else:
            growth = min(growth, (1 + tolerance) ** 4)  # surprises from now on are small ones
            if high / low > 1 + tolerance:
                rate = math.sqrt(low * high)
            elif not seen.twice(low):
                rate = low
            elif not seen.twice(high):
                rate = high
            else:
                return Found(low)
        seen.add(rate, held=holds(rate))
    return Found(None, f"not settled after {most} probes: the machine may be too noisy")


class _Seen:
    """What was seen last of each rate, as far as nothing later contradicts it, and how often in succession."""

    def __init__(self) -> None:
        self._held: dict[float, bool] = {}
        self._times: dict[float, int] = {}

    def add(self, rate: float, *, held: bool) -> None:
        self._times[rate] = self._times[rate] + 1 if self._held.get(rate) == held else 1
        agrees = {one: was for one, was in self._held.items() if was == held or (one > rate if held else one < rate)}
        self._held = {**agrees, rate: held}

    def twice(self, rate: float) -> bool:
        return self._times[rate] > 1

    @property
    def low(self) -> float | None:
        """The highest rate that held."""
        return max((rate for rate, held in self._held.items() if held), default=None)

    @property
    def high(self) -> float | None:
        """The lowest rate that failed, above all that held."""
        return min((rate for rate, held in self._held.items() if not held), default=None)
