"""Read what this process holds: memory, file descriptors, threads, Python's objects. Linux only."""

import ctypes
import gc
import sys
from pathlib import Path

from soak_records import Reading

_SELF = Path("/proc/self")
_FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Mallinfo(ctypes.Structure):
    """``struct mallinfo2``."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _FIELDS)


def read() -> Reading:
    """Collect garbage and read."""
    gc.collect()
    rollup = _kibibytes(_SELF / "smaps_rollup")
    status = dict(line.split(":", 1) for line in (_SELF / "status").read_text(encoding="ascii").splitlines())
    return Reading(
        resident=rollup["Rss"],
        proportional=rollup["Pss"],
        private=rollup["Private_Clean"] + rollup["Private_Dirty"],
        heap=heap_in_use(),
        files=sum(1 for _ in (_SELF / "fd").iterdir()) - 1,  # the listing is one
        threads=int(status["Threads"]),
        objects=len(gc.get_objects()),
        blocks=sys.getallocatedblocks(),
    )


def heap_in_use() -> int | None:
    """Bytes that ``malloc`` has given out, mapped ones too; None where the C library does not tell."""
    tell = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if tell is None:
        return None
    tell.restype = _Mallinfo
    info = tell()
    return int(info.uordblks + info.hblkhd)


def _kibibytes(path: Path) -> dict[str, int]:
    """Sizes in a file of the kernel's, in bytes."""
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}
