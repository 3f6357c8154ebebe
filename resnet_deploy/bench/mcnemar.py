"""Whether two engines differ in what they get right: McNemar's exact test (1947) on their answers."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Flips(NamedTuple):
    """Images that one engine gets right and another does not.

    Attributes:
        gained: Right now and wrong before.
        lost: Wrong now and right before.
    """

    gained: int
    lost: int

    @property
    def p_value(self) -> float:
        """How likely so uneven a pair of counts, or a more uneven one, is where either way is as likely.

        Twice the binomial tail of the smaller count at evens, in whole numbers; 1 where nothing flipped.
        """
        total = self.gained + self.lost
        tail = sum(math.comb(total, count) for count in range(min(self.gained, self.lost) + 1))
        return min(1.0, 2 * tail / (1 << total))


def count_flips(before: Sequence[bool], after: Sequence[bool]) -> Flips:
    """Count the images of which only one of two engines has the class right."""
    pairs = list(zip(before, after, strict=True))
    return Flips(gained=pairs.count((False, True)), lost=pairs.count((True, False)))
