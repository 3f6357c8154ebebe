"""Commands killed at random moments (SIGKILL), what they leave, and whether the same command then comes to its end."""

import functools
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from faults_children import Ended, Kill, ask, run
from faults_subjects import Findings, Subject, examine


class KillTrial(msgspec.Struct, frozen=True, kw_only=True):
    """A command that was killed, and run again.

    Attributes:
        subject: Its name.
        over_earlier: Whether a result of another request was there.
        aimed: Whether it was killed before a change to a file, and not after a time.
        moment: When, as a share of the undisturbed run: of its time, or of its changes to files.
        status: How it ended: -9 unless it was done before.
        broken: Half-written things that bear the name of whole ones, afterwards.
        lost: Names of what was there before and is not any more.
        left: Temporaries and notes that it left behind.
        rerun_status: Of the same command, run again.
        rerun_said: What that wrote on standard error, if it failed.
        rerun_broken, rerun_left: As above, after it.
        differing: Names whose content is not that of the undisturbed run, after it.
    """

    subject: str
    over_earlier: bool
    aimed: bool
    moment: float
    status: int
    broken: tuple[str, ...]
    lost: tuple[str, ...]
    left: tuple[str, ...]
    rerun_status: int
    rerun_said: str
    rerun_broken: tuple[str, ...]
    rerun_left: tuple[str, ...]
    differing: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing half-written was taken for whole, nothing was lost, and the same command made up for it."""
        wrong = (*self.broken, *self.lost, *self.rerun_broken, *self.rerun_left, *self.differing)
        return self.rerun_status == 0 and not wrong


@dataclass(frozen=True)
class Undisturbed:
    """The run that others are held against.

    Attributes:
        ended: How it ended.
        content: What lay there then, as ``Findings`` has it.
        size_bytes: Of all files then.
        start: A folder as it began with.
        at_start: What that holds.
    """

    ended: Ended
    content: dict[str, str]
    size_bytes: int
    start: Path
    at_start: dict[str, str]


def kill_at_random(subject: Subject, base: Path, work: Path, kills: int, draw: random.Random) -> Iterator[KillTrial]:
    """Kill a command so many times, in turns after a time and before a change to a file, half over earlier results."""
    runs = [
        run_undisturbed(subject, base, work, over_earlier=over)
        for over in ((False, True) if subject.earlier else (False,))
    ]
    for number in range(kills):
        undisturbed = runs[number // 2 % len(runs)]
        aimed = number % 2 == 1
        if aimed:
            change = draw.randint(1, undisturbed.ended.changes)
            moment, kill = change / undisturbed.ended.changes, Kill(before_change=change)
        else:
            moment = draw.random()
            kill = Kill(after_s=moment * undisturbed.ended.seconds)
        yield _try(subject, base, work, undisturbed, (kill, moment))


@functools.cache
def run_undisturbed(subject: Subject, base: Path, work: Path, *, over_earlier: bool) -> Undisturbed:
    """Run a command to its end, twice: the first run of a kind may warm a disk's cache, and has the longer time."""
    start = work / "start" / subject.name / ("earlier" if over_earlier else "empty")
    start.mkdir(parents=True)
    if over_earlier:
        require_done(run(subject.words(base, earlier=True), start))
    for _ in range(2):
        folder = fresh(work / "undisturbed", start)
        ended = require_done(run(subject.words(base), folder))
    found = look(folder)
    if found.broken or found.left:
        raise RuntimeError(f"{subject.name}, undisturbed: {found}")
    size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Undisturbed(ended, found.content, size_bytes, start, look(start).content)


def _try(subject: Subject, base: Path, work: Path, undisturbed: Undisturbed, when: tuple[Kill, float]) -> KillTrial:
    kill, moment = when
    folder = fresh(work / "trial", undisturbed.start)
    words = subject.words(base)
    ended = run(words, folder, kill=kill)
    killed = look(folder)
    again = run(words, folder)
    after = look(folder)
    return KillTrial(
        subject=subject.name,
        over_earlier=undisturbed.start.name == "earlier",
        aimed=kill.before_change is not None,
        moment=moment,
        status=ended.status,
        broken=killed.broken,
        lost=tuple(sorted(_names(undisturbed.at_start) - _names(killed.content) - _blamed(killed))),
        left=killed.left,
        rerun_status=again.status,
        rerun_said=again.said if again.status else "",
        rerun_broken=after.broken,
        rerun_left=after.left,
        differing=_differing(undisturbed.content, after.content) if subject.exact else (),
    )


def look(folder: Path) -> Findings:
    """Examine a folder in a child."""
    found = ask(lambda: examine(folder))
    return Findings(tuple(found["broken"]), tuple(found["left"]), found["content"])


def fresh(folder: Path, start: Path) -> Path:
    """Make a folder that is as another one."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(start, folder, symlinks=True)
    return folder


def require_done(ended: Ended) -> Ended:
    """Raise unless a command came to its end."""
    if ended.status:
        raise RuntimeError(f"an undisturbed command ended with status {ended.status}: {ended.said}")
    return ended


def _names(content: dict[str, str]) -> set[str]:
    """What lies directly in the folder."""
    return {name.partition("/")[0] for name in content}


def _blamed(found: Findings) -> set[str]:
    return {one.partition(":")[0].partition("/")[0] for one in found.broken}


def _differing(expected: dict[str, str], found: dict[str, str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)))


def kill_rows(trials: tuple[KillTrial, ...]) -> list[tuple[str, ...]]:
    """Rows of a table: a line for each command, and one for all."""
    head = (
        "command",
        "kills",
        "at a time / a change",
        "moments",
        "half-written",
        "lost",
        "left something",
        "sound after a rerun",
    )
    names = dict.fromkeys(one.subject for one in trials)
    rows = [_kill_row(name, [one for one in trials if one.subject == name]) for name in names]
    return [head, ("---",) * len(head), *rows, _kill_row("all", list(trials))]


def _kill_row(name: str, trials: list[KillTrial]) -> tuple[str, ...]:
    killed = [one for one in trials if one.status == -9]
    moments = [one.moment for one in killed] or [0.0]
    aimed = sum(one.aimed for one in killed)
    return (
        name,
        str(len(killed)),
        f"{len(killed) - aimed} / {aimed}",
        f"{min(moments):.0%} to {max(moments):.0%}",
        str(sum(bool(one.broken or one.rerun_broken) for one in trials)),
        str(sum(bool(one.lost) for one in trials)),
        str(sum(bool(one.left) for one in trials)),
        f"{sum(one.is_sound for one in trials)} of {len(trials)}",
    )
