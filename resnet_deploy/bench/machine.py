"""What the machine did while engines were timed: who else used it, how fast its clocks ran, what held them down.

Times are those of ``/proc/stat`` (proc(5)), in ticks, of the cores that this process may use. Whatever the system does
not tell is None or empty.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from resnet_deploy.bench.nvml import GpuWatch
from resnet_deploy.bench.records import MachineState
from resnet_deploy.environment import usable_cpus

_TICKS: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True)
class _Moment:
    """Clocks and counters: seconds of wall clock and of processor time, and events of heat since the machine began."""

    wall: float
    own: float
    busy: float | None
    stolen: float | None
    heat: int


class MachineWatch:
    """Watches the machine from one round to the next.

    Args:
        cores: How many cores this process may use.
        gpu_uuid: Of the GPU that engines run on, as the CUDA driver gives it; empty for none.
        proc, system: Where the kernel tells.
    """

    def __init__(
        self, cores: int, gpu_uuid: str = "", *, proc: Path = Path("/proc"), system: Path = Path("/sys")
    ) -> None:
        self._cores, self._proc, self._system = cores, proc, system
        self._gpu = GpuWatch(gpu_uuid)
        self._last = self._now()

    def lap(self, number: int) -> MachineState:
        """Return what happened since the lap before, or since the watch was made, as round ``number``."""
        before, now = self._last, self._now()
        self._last = now
        seconds = now.wall - before.wall

        def share(new: float | None, old: float | None) -> float | None:
            return None if new is None or old is None else max(0.0, (new - old) / (seconds * self._cores))

        used, busy = share(now.own, before.own), share(now.busy, before.busy)
        gpu = self._gpu.now()
        reasons = [*(["the CPU's temperature"] if now.heat > before.heat else []), gpu.throttled]
        return MachineState(
            round=number,
            seconds=seconds,
            used=used,
            elsewhere=None if busy is None or used is None else max(0.0, busy - used),
            stolen=share(now.stolen, before.stolen),
            mhz=self._mhz(),
            throttled=", ".join(filter(None, reasons)),
            gpu_mhz=gpu.mhz,
            gpu_celsius=gpu.celsius,
        )

    def _now(self) -> _Moment:
        own = os.times()
        busy, stolen = self._busy()
        return _Moment(time.perf_counter(), own.user + own.system, busy, stolen, self._heat())

    def _busy(self) -> tuple[float | None, float | None]:
        """Seconds that the usable cores have worked, and that the host has given to others."""
        usable = {f"cpu{number}" for number in usable_cpus()}
        busy = lost = 0
        try:
            for line in (self._proc / "stat").read_text(encoding="ascii").splitlines():
                name, *counts = line.split()
                if name in usable:
                    user, nice, system, _idle, _wait, irq, soft, stolen = (int(count) for count in counts[:8])
                    busy, lost = busy + user + nice + system + irq + soft, lost + stolen
        except (OSError, ValueError):
            return None, None
        return (busy / _TICKS, lost / _TICKS) if busy else (None, None)

    def _mhz(self) -> float | None:
        try:
            lines = (self._proc / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
            clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
        except (OSError, ValueError):
            return None
        return sum(clocks) / len(clocks) if clocks else None

    def _heat(self) -> int:
        """Count what the cores and packages have counted of heat; 0 where they do not count."""
        counts = _texts(self._system, "cpu[0-9]*/thermal_throttle/*_throttle_count")
        return sum(int(count) for count in counts if count.isdigit())


def governor(system: Path = Path("/sys")) -> str:
    """Say what chooses the clocks of the cores, such as ``performance``; empty where the kernel does not tell."""
    return ", ".join(sorted({*_texts(system, "cpu[0-9]*/cpufreq/scaling_governor")}))


def _texts(system: Path, pattern: str) -> list[str]:
    """Read the small files of the kernel's that match, leaving out what cannot be read."""
    found = []
    for path in (system / "devices/system/cpu").glob(pattern):
        with contextlib.suppress(OSError, ValueError):
            found.append(path.read_text(encoding="ascii").strip())
    return found
