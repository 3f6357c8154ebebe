"""What an NVIDIA GPU does at this moment: its clock, its temperature, and why its clock is held down.

Asked of NVML, the library behind ``nvidia-smi``, through ctypes, so that nothing need be installed for it. Where there
is no such library, or it refuses, nobody tells. This was never run on a GPU: its tests play the library.
"""

import contextlib
import ctypes
from dataclasses import dataclass
from typing import Any, Final

# nvml.h: NVML_CLOCK_SM, NVML_TEMPERATURE_GPU, and the bits of nvmlClocksEventReasons that hold a clock down.
_CLOCK_SM: Final = 1
_TEMPERATURE_GPU: Final = 0
_REASONS: Final = {
    0x04: "the GPU's power limit",
    0x08: "the GPU's hardware slowdown",
    0x20: "the GPU's temperature (driver)",
    0x40: "the GPU's temperature (hardware)",
    0x80: "the GPU's power brake",
}


@dataclass(frozen=True)
class GpuState:
    """A moment of a GPU; a figure is None where the driver does not tell.

    Attributes:
        mhz: Clock of its multiprocessors.
        celsius: Its temperature.
        throttled: Why its clock is held down; empty where it is not, or nobody tells.
    """

    mhz: float | None = None
    celsius: float | None = None
    throttled: str = ""


class GpuWatch:
    """Asks about one GPU, again and again.

    Args:
        uuid: Of the GPU, as the CUDA driver gives it; empty for none.
        library: Where NVML is.
    """

    def __init__(self, uuid: str, library: str = "libnvidia-ml.so.1") -> None:
        self._nvml: Any = None
        self._device = ctypes.c_void_p()
        if not uuid:
            return
        with contextlib.suppress(OSError, AttributeError):  # no driver, or one without these calls
            nvml = ctypes.CDLL(library)
            name = f"GPU-{uuid}".encode()
            if nvml.nvmlInit_v2() == 0 and nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(self._device)) == 0:
                self._nvml = nvml

    def now(self) -> GpuState:
        """Say how the GPU is."""
        if self._nvml is None:
            return GpuState()
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons", ctypes.c_ulonglong)
        if reasons is None:  # drivers before release 535 know it by this name
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong)
        return GpuState(
            mhz=self._ask("nvmlDeviceGetClockInfo", ctypes.c_uint, _CLOCK_SM),
            celsius=self._ask("nvmlDeviceGetTemperature", ctypes.c_uint, _TEMPERATURE_GPU),
            throttled=", ".join(text for bit, text in _REASONS.items() if (reasons or 0) & bit),
        )

    def _ask(self, name: str, kind: Any, *arguments: int) -> int | None:
        """Call a function that writes its answer through a pointer; None where it is missing or fails."""
        answer = kind()
        try:
            status = getattr(self._nvml, name)(self._device, *map(ctypes.c_int, arguments), ctypes.byref(answer))
        except AttributeError:
            return None
        return int(answer.value) if status == 0 else None
