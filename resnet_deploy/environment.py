"""Probes: what this machine is.

A probe that fails is a value with its reason, never an exception and never a silent ``None``: a report must be able to
say why there is no GPU, and a record made without one must not look like one that never asked.

Nothing here imports a heavy library. Versions come from package metadata, the GPU from the driver, the CPU from the
kernel.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Final

import msgspec

from resnet_deploy.driver import GpuProbe, probe_gpu
from resnet_deploy.errors import FileError

# The two ONNX Runtimes are kept apart: they run on different things, and installed together they overwrite each other.
LIBRARIES: Final = (
    *("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "nncf", "tensorrt", "tensorrt-rtx"),
    *("cuda-bindings", "pycuda", "numpy", "pillow", "plotly"),
)
_INT8_DOT_PRODUCTS: Final = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")
_CPU_FEATURES: Final = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "fphp"),
)
_ARM_PARTS: Final = {"0xd0c": "Neoverse N1", "0xd40": "Neoverse V1", "0xd49": "Neoverse N2", "0xd4f": "Neoverse V2"}


class Cpu(msgspec.Struct, frozen=True):
    """The processor.

    Attributes:
        model: Its marketing name.
        cores: Logical processors that this process may use.
        features: Those of its instruction sets that matter to inference, as the kernel spells them.
        reason: Why the features could not be read; empty if they were.
    """

    model: str
    cores: int
    features: tuple[str, ...] = ()
    reason: str = ""

    @property
    def has_vnni(self) -> bool:
        """Whether there is an INT8 dot product, so that full-range weights are safe."""
        return any(feature in self.features for feature in _INT8_DOT_PRODUCTS)


class Library(msgspec.Struct, frozen=True):
    """An installed library; ``name`` is one of ``LIBRARIES``."""

    name: str
    version: str


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Where a figure was measured or an engine was built.

    ``memory_bytes`` is 0 where the system does not tell; ``libraries`` are those of ``LIBRARIES`` that are installed.
    """

    os: str
    kernel: str
    python: str
    machine: str
    cpu: Cpu
    memory_bytes: int
    gpu: GpuProbe
    libraries: tuple[Library, ...]


def cache_folder() -> Path:
    """Where what can be made again is kept: ``$XDG_CACHE_HOME/resnet-deploy``, or ~/.cache in its place."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet-deploy"


def collect() -> Environment:
    """Probe this machine.

    The GPU probe initialises the CUDA driver: from then on this process ignores changes to CUDA_VISIBLE_DEVICES, and
    children that it forks, rather than spawns, cannot use CUDA.
    """
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        system = platform.system()
    try:
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        memory_bytes = 0
    versions = {name: installed_version(name) for name in LIBRARIES}
    return Environment(
        os=system,
        kernel=platform.release(),
        python=platform.python_version(),
        machine=platform.machine(),
        cpu=probe_cpu(),
        memory_bytes=memory_bytes,
        gpu=probe_gpu(),
        libraries=tuple(Library(name, version) for name, version in versions.items() if version is not None),
    )


def differences(a: Environment, b: Environment) -> tuple[str, ...]:
    """Name each difference between two environments that matters when their benchmark figures are compared."""
    left, right = _facts(a), _facts(b)
    return tuple(
        f"{name}: {left.get(name, 'none')} against {right.get(name, 'none')}"
        for name in dict.fromkeys([*left, *right])
        if left.get(name) != right.get(name)
    )


def probe_cpu(cpuinfo: str | None = None) -> Cpu:
    """Read the processor from the text of ``/proc/cpuinfo``, by default of this machine."""
    cores = len(usable_cpus())
    fallback = platform.processor() or platform.machine()
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            return Cpu(fallback, cores, reason=f"/proc/cpuinfo: {error.strerror}")
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    part = fields.get("CPU part", "")
    arm = _ARM_PARTS.get(part, f"ARM part {part}") if part else ""
    flags = fields.get("flags", fields.get("Features", "")).split()
    features = tuple(feature for feature in _CPU_FEATURES if feature in flags)
    reason = "" if flags else "/proc/cpuinfo lists no features"
    return Cpu(fields.get("model name") or arm or fallback, cores, features, reason)


def installed_version(library: str) -> str | None:
    """Read the version of an installed library, without importing it."""
    # NVIDIA also publishes its libraries under names that end in the CUDA version.
    for name in (library, f"{library}-cu13", f"{library}-cu12"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def compute_threads(system: Path = Path("/sys")) -> int:
    """Count the threads worth starting: one per physical core this process may use, within a container's CPU quota."""
    topology = "devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = len({_text(system / topology.format(cpu)) or str(cpu) for cpu in usable_cpus()})
    quota, _, period = _text(system / "fs/cgroup/cpu.max").partition(" ")
    if not period:  # control groups of version 1; no quota is -1 there
        quota, period = (_text(system / f"fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
    if quota.isdigit() and period.isdigit():
        cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def usable_cpus() -> set[int]:
    """Return the numbers of the logical processors that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def package_digest() -> str:
    """Hash this package's own Python sources, for cache keys: SHA-256 over names and bytes, as lower-case hex.

    Raises:
        FileError: If there are no sources to read, as in a frozen application; a digest of nothing would match all.
    """
    root = Path(__file__).parent
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    if not names:
        raise FileError(f"no Python sources in {root}", hint="install resnet-deploy with pip, unpacked")
    parts = (part for name in names for part in (name.encode(), (root / name).read_bytes()))
    # Digests have one length, so that no two lists of parts run together alike.
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _facts(environment: Environment) -> dict[str, str]:
    """Put into words whatever moves benchmark figures.

    Not the GPU's UUID, which another of the same model may have, nor plotly, which only draws; memory in whole GiB,
    because kernels on equal machines reserve slightly different amounts.
    """
    cpu, gpu = environment.cpu, environment.gpu
    gpus = (f"{one.name} ({one.compute_capability}, {one.memory_bytes / 2**30:.0f} GiB)" for one in gpu.gpus)
    facts = {
        "operating system": environment.os,
        "kernel": environment.kernel,
        "Python": environment.python,
        "machine": environment.machine,
        "CPU": cpu.model,
        "usable cores": str(cpu.cores),
        "CPU features": ", ".join(cpu.features) or cpu.reason,
        "memory": f"{environment.memory_bytes / 2**30:.0f} GiB" if environment.memory_bytes else "unknown",
        "GPU": " + ".join(gpus),
        "CUDA driver": gpu.driver,
        "GPU kernel driver": gpu.kernel_driver,
    }
    facts |= {library.name: library.version for library in environment.libraries if library.name != "plotly"}
    return {name: value for name, value in facts.items() if value}


def _text(path: Path) -> str:
    """Read a small file of the kernel's; empty where the kernel does not have it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
