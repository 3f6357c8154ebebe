"""Commands where there is no room, no writing, or no memory: they work, or say in one line what is wrong."""

import os
import resource
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from faults_children import Ended, run
from faults_kills import fresh, look, run_undisturbed
from faults_subjects import Subject

MIB = 1 << 20


class PlaceTrial(msgspec.Struct, frozen=True, kw_only=True):
    """A command in a bad place.

    Attributes:
        subject: Its name.
        place: What is bad about it, such as ``full`` or ``read-only``.
        what: How much room there was in bytes, or what was read-only.
        status: How it ended.
        said: Its last two lines on standard error, where it did not succeed; all of them where it was no refusal.
        is_told: Whether it succeeded, or said in one line what was wrong and in one what to do.
        broken: Half-written things that bear the name of whole ones, afterwards.
        again: Status of the same command once there was room; 0 where that was not tried.
        left: What it left behind that has no place there, then and after that.
    """

    subject: str
    place: str
    what: str
    status: int
    said: str
    is_told: bool
    broken: tuple[str, ...] = ()
    again: int = 0
    left: tuple[str, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether it worked or was refused, and left nothing half-written, nor in its own way."""
        return self.is_told and not self.broken and not self.left and self.again == 0


def fill_disks(subject: Subject, base: Path, work: Path, sizes: int) -> Iterator[PlaceTrial]:
    """Run a command on a disk that is too small, in even steps up to what it writes, then with room."""
    undisturbed = run_undisturbed(subject, base, work, over_earlier=False)
    whole = undisturbed.size_bytes
    for step in range(sizes):
        size = max(resource.getpagesize(), whole * (step + 1) // (sizes + 1))
        disk = mounted(work / "disk", f"size={size}")
        try:
            ended = run(subject.words(base), disk)
            found = look(disk)
            remount(disk, f"size={4 * whole + 64 * MIB}")
            again = run(subject.words(base), disk)
            after = look(disk)
        finally:
            unmount(disk)
        same = not subject.exact or after.content == undisturbed.content
        yield _trial(
            subject,
            ("full", f"{size} bytes of {whole}"),
            ended,
            broken=found.broken + after.broken + (() if same else ("another content",)),
            again=again.status,
            left=_out_of_place(found.left) + after.left,
        )


def forbid_writing(subject: Subject, base: Path, work: Path) -> Iterator[PlaceTrial]:
    """Run a command where its inputs, HOME, the folder for temporary files, or its own folder are read-only."""
    free = run_undisturbed(subject, base, work, over_earlier=False).start
    locked = mounted(work / "locked", "size=1m,ro")
    sealed = work / "sealed"
    sealed.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", base, sealed], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", sealed], check=True)

    def homeless() -> None:
        os.environ |= {"HOME": str(locked), "XDG_CACHE_HOME": str(locked / "cache"), "TORCH_HOME": str(locked)}

    def without_temporaries() -> None:
        import tempfile

        tempfile.tempdir = str(locked)
        os.environ["TMPDIR"] = str(locked)

    try:
        cases: tuple[tuple[str, Path, Path, Callable[[], None] | None], ...] = (
            ("inputs", sealed, fresh(work / "trial", free), None),
            ("HOME and caches", base, fresh(work / "home", free), homeless),
            ("TMPDIR", base, fresh(work / "temporaries", free), without_temporaries),
            ("output", base, locked, None),
        )
        for what, inputs, folder, prepare in cases:
            ended = run(subject.words(inputs), folder, prepare)
            found = look(folder)
            yield _trial(subject, ("read-only", what), ended, broken=found.broken, left=found.left)
    finally:
        unmount(sealed)
        unmount(locked)


def limit_memory(subject: Subject, base: Path, work: Path, limits: Sequence[int]) -> Iterator[PlaceTrial]:
    """Run a command that may take so many bytes more than this process has in its address space (RLIMIT_AS)."""
    free = run_undisturbed(subject, base, work, over_earlier=False).start
    for limit in limits:
        folder = fresh(work / "trial", free)

        def prepare(more: int = limit) -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + more
            resource.setrlimit(resource.RLIMIT_AS, (most, most))

        ended = run(subject.words(base), folder, prepare)
        found = look(folder)
        again = run(subject.words(base), folder)
        after = look(folder)
        yield _trial(
            subject,
            ("memory", f"{limit // MIB} MiB more"),
            ended,
            broken=found.broken + after.broken,
            again=again.status,
            left=_out_of_place(found.left) + after.left,
        )


def _out_of_place(left: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out notes of work under way, which are there for the same command to go on from."""
    return tuple(name for name in left if not name.endswith((".journal", ".search")))


def _trial(subject: Subject, where: tuple[str, str], ended: Ended, **found: Any) -> PlaceTrial:
    place, what = where
    is_told = ended.status == 0 or ended.is_refusal
    said = "" if ended.status == 0 else "\n".join(ended.last_lines) if is_told else ended.said[-2000:]
    return PlaceTrial(
        subject=subject.name, place=place, what=what, status=ended.status, said=said, is_told=is_told, **found
    )


def mounted(folder: Path, options: str) -> Path:
    """Mount a tmpfs, which stops root, too."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    return folder


def remount(folder: Path, options: str) -> None:
    """Give a mounted tmpfs other options."""
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def unmount(folder: Path) -> None:
    """Take it away again."""
    subprocess.run(["umount", folder], check=True)


def place_rows(trials: tuple[PlaceTrial, ...]) -> list[tuple[str, ...]]:
    """Rows of a table."""
    head = ("command", "place", "trials", "worked", "refused in two lines", "half-written", "sound")
    rows = [head, ("---",) * len(head)]
    for name, place in dict.fromkeys((one.subject, one.place) for one in trials):
        those = [one for one in trials if (one.subject, one.place) == (name, place)]
        rows.append(
            (
                name,
                place,
                str(len(those)),
                str(sum(one.status == 0 for one in those)),
                str(sum(one.status != 0 and one.is_told for one in those)),
                str(sum(bool(one.broken) for one in those)),
                f"{sum(one.is_sound for one in those)} of {len(those)}",
            )
        )
    return rows
