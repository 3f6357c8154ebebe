"""The probe of the NVIDIA driver: the GPUs that CUDA shows to this process, through ctypes and the driver's library."""

import contextlib
import ctypes
import os
import re
import uuid
from pathlib import Path
from typing import Final

import msgspec

_CUDA_MEANINGS: Final = {
    34: "the toolkit's stub was loaded instead of the driver's library",
    46: "the device is busy or unavailable",
    100: "no CUDA device is visible",
    802: "the system is not ready; on NVSwitch machines the fabric manager must run",
    803: "the driver's kernel module and libcuda are of different versions",
    804: "the CUDA compatibility package does not support this GPU",
    999: "unknown error; the kernel module may need a reload",
}


class Gpu(msgspec.Struct, frozen=True):
    """One NVIDIA GPU, or one MIG slice, that CUDA shows to this process."""

    name: str
    compute_capability: str
    memory_bytes: int
    uuid: str = ""


class GpuProbe(msgspec.Struct, frozen=True):
    """What the NVIDIA driver says.

    Attributes:
        gpus: The visible GPUs, in CUDA's order.
        driver: CUDA version that the driver supports, such as ``13.0``; empty if there is no driver.
        reason: Why there is no GPU; empty if there is one.
        kernel_driver: Version of the kernel module, such as ``580.65.06``; empty where /proc does not tell.
    """

    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    reason: str = ""
    kernel_driver: str = ""


def probe_gpu(library: str = "libcuda.so.1") -> GpuProbe:
    """Ask the NVIDIA driver, through its library, for the GPUs it shows to this process."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        missing = str(error).startswith(f"{library}: cannot open shared object file")
        return GpuProbe(reason=f"{library} not found: no NVIDIA driver" if missing else f"driver unusable: {error}")
    gpus: tuple[Gpu, ...] = ()
    driver = reason = ""
    version, count = ctypes.c_int(), ctypes.c_int()
    try:
        # Answers without cuInit, so the version is known even where cuInit fails.
        _call(cuda, "cuDriverGetVersion", ctypes.byref(version))
        driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
        _call(cuda, "cuInit", ctypes.c_uint(0))
        _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
        gpus = tuple(_gpu(cuda, ordinal) for ordinal in range(count.value))
        reason = "" if gpus else _CUDA_MEANINGS[100]
    except _CudaError as error:
        reason = str(error)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if reason and visible is not None:  # the usual cause of a GPU that cannot be seen
        reason += f" (CUDA_VISIBLE_DEVICES={visible!r})"
    return GpuProbe(gpus, driver, reason, _kernel_driver(Path("/proc/driver/nvidia/version")))


class _CudaError(Exception):
    """A call into the driver failed; the message names it."""


def _call(library: ctypes.CDLL, name: str, *arguments: object) -> None:
    """Call a function of the driver and raise unless it returns 0."""
    try:
        function = getattr(library, name)
    except AttributeError:
        raise _CudaError(f"the driver's library lacks {name}") from None
    if status := function(*arguments):
        meaning = _CUDA_MEANINGS.get(status, "see CUresult in the CUDA documentation")
        raise _CudaError(f"{name} failed with CUDA status {status}: {meaning}")


def _gpu(cuda: ctypes.CDLL, ordinal: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    _call(cuda, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(ordinal))
    _call(cuda, "cuDeviceGetName", name, ctypes.c_int(len(name)), device)
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(major), ctypes.c_int(75), device)
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(minor), ctypes.c_int(76), device)
    _call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    identity, text = ctypes.create_string_buffer(16), ""
    with contextlib.suppress(_CudaError):  # drivers before CUDA 11.4 lack the call
        _call(cuda, "cuDeviceGetUuid_v2", identity, device)
        text = str(uuid.UUID(bytes=identity.raw))
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", memory.value, text)


def _kernel_driver(path: Path) -> str:
    """Find the version of the NVIDIA kernel module in what it says of itself; empty where it says nothing."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)(?!\S)", text)
    return found[1] if found else ""
