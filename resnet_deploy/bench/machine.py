"""What the machine did while engines were timed: who else used it, and how fast its clocks ran.

Times are those of ``/proc/stat`` (proc(5)), in ticks over all cores that the kernel has; shares are of the cores that
this process may use.
"""

import contextlib
import os
import time
from pathlib import Path
from typing import Final

from resnet_deploy.bench.records import MachineState

_TICKS: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class MachineWatch:
    """Watches the machine from one round to the next.

    Args:
        cores: How many cores this process may use.
        proc, system: Where the kernel tells.
    """

    def __init__(self, cores: int, *, proc: Path = Path("/proc"), system: Path = Path("/sys")) -> None:
        self._cores, self._proc, self._system = cores, proc, system
        self._last = self._now()

    def lap(self, number: int) -> MachineState:
        """Return what happened since the lap before, or since the watch was made, as round ``number``."""
        before, self._last = self._last, self._now()
        seconds = self._last[0] - before[0]
        used, busy, stolen = (
            None if new is None or old is None else max(0.0, (new - old) / (seconds * self._cores))
            for new, old in zip(self._last[1:], before[1:], strict=True)
        )
        elsewhere = None if busy is None or used is None else max(0.0, busy - used)
        return MachineState(
            round=number, seconds=seconds, used=used, elsewhere=elsewhere, stolen=stolen, mhz=self._mhz()
        )

    def _now(self) -> tuple[float, float, float | None, float | None]:
        """Wall clock; processor seconds of this process, of all processes, and stolen."""
        own = os.times()
        busy, stolen = self._busy()
        return time.perf_counter(), own.user + own.system, busy, stolen

    def _busy(self) -> tuple[float | None, float | None]:
        try:
            line = (self._proc / "stat").read_text(encoding="ascii").splitlines()[0]
            user, nice, system, _idle, _wait, irq, soft, stolen = (int(part) for part in line.split()[1:9])
        except (OSError, ValueError, IndexError):
            return None, None
        return (user + nice + system + irq + soft) / _TICKS, stolen / _TICKS

    def _mhz(self) -> float | None:
        try:
            lines = (self._proc / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
            clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
        except (OSError, ValueError):
            return None
        return sum(clocks) / len(clocks) if clocks else None


def governor(system: Path = Path("/sys")) -> str:
    """Name what chooses the clocks of the cores, in the kernel's words; empty where it does not tell.

    Cores may have governors of their own: all of them are named, each once, in alphabetical order.
    """
    found = []
    for path in system.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(encoding="ascii", errors="replace").strip())
    return ", ".join(sorted(set(found)))
