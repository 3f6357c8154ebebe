"""Two commands of one kind at once, for the same place, begun one after the other at a random distance."""

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
from faults_children import Command, run, wait_for_orphans
from faults_kills import fresh, look, require_done, run_undisturbed
from faults_subjects import Subject


class PairTrial(msgspec.Struct, frozen=True, kw_only=True):
    """Two commands at once.

    Attributes:
        subject: Their name.
        is_same: Whether both ask for the same, or the second for what lies in no other's way but its place.
        distance: Between their beginnings, as a share of the time that one takes alone.
        statuses: How they ended.
        refusals: What was said by those that were refused, in two lines.
        broken, left: As for kills, when both had ended.
        of_one: Whether what lies there is what one of them alone would have written.
    """

    subject: str
    is_same: bool
    distance: float
    statuses: tuple[int, int]
    refusals: tuple[str, ...]
    broken: tuple[str, ...]
    left: tuple[str, ...]
    of_one: bool

    @property
    def is_sound(self) -> bool:
        """Whether one at least did it, the other too or said why not, and the result is whole and of one of them."""
        refused = sum(status == 2 for status in self.statuses)
        is_said = set(self.statuses) <= {0, 2} and refused < 2 and len(self.refusals) == refused
        return is_said and self.of_one and not self.broken and not self.left


def run_together(subject: Subject, base: Path, work: Path, pairs: int, draw: random.Random) -> Iterator[PairTrial]:
    """Start pairs of a command: in turns the same twice, and it with the one that asks for something else."""
    alone = run_undisturbed(subject, base, work, over_earlier=False)
    others = list(_one_after_the_other(subject, base, work, alone.start)) if subject.earlier else []
    for number in range(pairs):
        is_same = not others or number % 2 == 0
        distance = draw.uniform(0, 0.9) * draw.choice((0, 1))
        folder = fresh(work / "pair", alone.start)
        first = Command(subject.words(base), folder)
        first.pause(distance * alone.ended.seconds)
        second = Command(subject.words(base, earlier=not is_same), folder)
        ends = (first.wait(), second.wait())
        wait_for_orphans()
        found = look(folder)
        allowed = [alone.content, *(others if not is_same else ())]
        yield PairTrial(
            subject=subject.name,
            is_same=is_same,
            distance=distance,
            statuses=(ends[0].status, ends[1].status),
            refusals=tuple("\n".join(one.last_lines) for one in ends if one.is_refusal),
            broken=found.broken,
            left=found.left,
            of_one=not subject.exact or found.content in allowed,
        )


def _one_after_the_other(subject: Subject, base: Path, work: Path, start: Path) -> Iterator[dict[str, str]]:
    """Yield what lies there after one command and then the other, in either order, and after the other alone."""
    after = run_undisturbed(subject, base, work, over_earlier=True)
    yield from (after.content, after.at_start)
    folder = fresh(work / "pair", start)
    for earlier in (False, True):
        require_done(run(subject.words(base, earlier=earlier), folder))
    yield look(folder).content


def pair_rows(trials: tuple[PairTrial, ...]) -> list[tuple[str, ...]]:
    """Rows of a table."""
    head = ("command, twice at once", "pairs", "both did it", "one was refused in two lines", "not whole", "sound")
    rows = [head, ("---",) * len(head)]
    for name in dict.fromkeys(one.subject for one in trials):
        those = [one for one in trials if one.subject == name]
        rows.append(
            (
                name,
                str(len(those)),
                str(sum(one.statuses == (0, 0) for one in those)),
                str(sum(len(one.refusals) == 1 for one in those)),
                str(sum(bool(one.broken) or not one.of_one for one in those)),
                f"{sum(one.is_sound for one in those)} of {len(those)}",
            )
        )
    return rows
