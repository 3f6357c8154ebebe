"""Probes: what this machine is, and which backends can build and run on it.

A probe that fails is a value with its reason, never an exception and never a silent ``None``: a report must be able to
say why there is no GPU, and a record made without one must not look like one that never asked.

Nothing here imports a heavy library. Versions come from package metadata, the GPU from the driver's own library through
ctypes, the CPU from the kernel.
"""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from resnet_deploy.backends import Backend
from resnet_deploy.errors import FileError

Importer = Callable[[str], str]

# The two ONNX Runtimes are kept apart: they run on different things, and installed together they overwrite each other.
LIBRARIES: Final = (
    *("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"),
    *("cuda-bindings", "pycuda", "numpy", "pillow", "plotly"),
)
# What the builder of TensorRT-RTX 1.7.1 accepts as a target; it refuses 8.7, 9.0, 10.0 and 10.3. The support matrix has
# all of these but 8.0, which NVIDIA's guide to building ahead of time adds:
# https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix-1/1.5.html
RTX_COMPUTE_CAPABILITIES: Final = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")

_INT8_DOT_PRODUCTS: Final = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")
_CPU_FEATURES: Final = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "fphp"),
)
_ARM_PARTS: Final = {"0xd0c": "Neoverse N1", "0xd40": "Neoverse V1", "0xd49": "Neoverse N2", "0xd4f": "Neoverse V2"}
_ARCHITECTURES: Final = {"7.0": "Volta", "8.7": "Orin", "9.0": "Hopper", "10.0": "Blackwell", "10.3": "Blackwell Ultra"}
_CUDA_MEANINGS: Final = {
    34: "the toolkit's stub was loaded instead of the driver's library",
    46: "the device is busy or unavailable",
    100: "no CUDA device is visible",
    802: "the system is not ready; on NVSwitch machines the fabric manager must run",
    803: "the driver's kernel module and libcuda are of different versions",
    804: "the CUDA compatibility package does not support this GPU",
    999: "unknown error; the kernel module may need a reload",
}


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


class Capability(msgspec.Struct, frozen=True):
    """Whether something can be done here; if not, why, and the command or step that helps (empty if none does)."""

    ok: bool
    reason: str = ""
    fix: str = ""


class BackendStatus(msgspec.Struct, frozen=True):
    """What the backend of that name can do here."""

    backend: str
    build: Capability
    run: Capability


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
    cores = len(_usable_cpus())
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
    return GpuProbe(gpus, driver, reason, _kernel_driver(_text(Path("/proc/driver/nvidia/version"))))


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
    cores = len({_text(system / topology.format(cpu)) or str(cpu) for cpu in _usable_cpus()})
    quota, _, period = _text(system / "fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, int(quota) // int(period))
    return max(1, cores)


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


def backend_status(
    backend: Backend, environment: Environment | None = None, *, import_failure: Importer | None = None
) -> BackendStatus:
    """Say whether ``backend`` can build and run in ``environment``, by default this machine, probed now.

    Libraries are only looked for, not imported, unless ``import_failure`` is given: it is handed each module found and
    returns why that cannot be imported, or an empty string.
    """
    gpu = (environment or collect()).gpu
    try_import = import_failure or (lambda module: "")
    return BackendStatus(backend.name, _can_build(backend, gpu, try_import), _can_run(backend, gpu, try_import))


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


def _can_build(backend: Backend, gpu: GpuProbe, try_import: Importer) -> Capability:
    """Say whether engines can be built: builder, libraries, and the device if the builder needs it."""
    if not backend.builder:
        nothing = {"torch": "PyTorch runs the model as it is", "null": "this backend only measures the harness"}
        if backend.name in nothing:
            return Capability(False, f"nothing to build: {nothing[backend.name]}")
        return Capability(False, f"this version of resnet-deploy does not build with {backend.name} yet")
    # Whatever the backend: building lowers the exported graph, and ONNX Runtime calibrates and checks it.
    extras = {"onnx": "export", "onnx_ir": "export", "onnxruntime": "cpu", backend.module: backend.extra}
    libraries = have_modules(extras, try_import)
    return _has_device(backend, gpu) if libraries.ok and backend.builds_on_device else libraries


def _can_run(backend: Backend, gpu: GpuProbe, try_import: Importer) -> Capability:
    """Say whether engines can be run: runner, library and device."""
    if not backend.runner:
        return Capability(False, f"this version of resnet-deploy does not run {backend.name} engines yet")
    libraries = have_modules({backend.module: backend.extra}, try_import)
    return _has_device(backend, gpu) if libraries.ok else libraries


def have_modules(extras: Mapping[str, str], try_import: Importer = lambda module: "") -> Capability:
    """Say whether the modules, given with the extras that install them, are here and can be imported."""
    missing = [module for module in extras if module and not _is_installed(module)]
    if missing:
        names = " and ".join(module.replace("_", "-") for module in missing)
        wanted = ",".join(dict.fromkeys(extras[module] for module in missing))
        verb = "is" if len(missing) == 1 else "are"
        return Capability(False, f"{names} {verb} not installed", f'pip install "resnet-deploy[{wanted}]"')
    for module in filter(None, extras):
        if reason := try_import(module):
            return Capability(False, reason, f'pip install --force-reinstall "resnet-deploy[{extras[module]}]"')
    return Capability(True)


def _is_installed(module: str) -> bool:
    """Look for a top-level module without importing it; a bare folder of that name on the path is not it."""
    spec = importlib.util.find_spec(module)
    return spec is not None and not (spec.origin is None and spec.submodule_search_locations is not None)


def _has_device(backend: Backend, gpu: GpuProbe) -> Capability:
    """Say whether the device that the backend runs on is here."""
    if backend.device in ("any", "cpu"):
        return Capability(True)
    if not gpu.gpus:
        fix = "use a machine with an NVIDIA GPU and its driver; in a container: docker run --gpus all"
        return Capability(False, f"no NVIDIA GPU: {gpu.reason}", fix)
    found = dict.fromkeys(one.compute_capability for one in gpu.gpus)
    if backend.device == "nvidia" or any(one in RTX_COMPUTE_CAPABILITIES for one in found):
        return Capability(True)
    named = " or ".join(f"{one} ({_ARCHITECTURES[one]})" if one in _ARCHITECTURES else one for one in found)
    return Capability(False, f"TensorRT-RTX does not support compute capability {named}", "use --backend tensorrt")


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


def _kernel_driver(text: str) -> str:
    """Find the version of the NVIDIA kernel module in what it says of itself; empty where it says nothing."""
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)(?!\S)", text)
    return found[1] if found else ""


def _usable_cpus() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _text(path: Path) -> str:
    """Read a small file of the kernel's; empty where the kernel does not have it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
