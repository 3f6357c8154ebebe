import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType

import msgspec
import pytest

from resnet_deploy import environment
from resnet_deploy.backends import BACKENDS, Backend, find_backend
from resnet_deploy.environment import (
    BackendStatus,
    Capability,
    Cpu,
    Environment,
    Gpu,
    GpuProbe,
    Library,
    backend_status,
    collect,
    compute_threads,
    differences,
    installed_version,
    package_digest,
    probe_cpu,
    probe_gpu,
)
from resnet_deploy.errors import FileError

# A stand-in for the driver's library. It proves that arguments and results cross ctypes as the CUDA driver API
# declares them; it proves nothing about any hardware. Handles differ from ordinals, so that mixing them up shows.
STAND_IN_LIBCUDA = r"""
#include <stdlib.h>
#include <string.h>

static int setting(const char *name) { const char *text = getenv(name); return text ? atoi(text) : 0; }
static int known(int device) { return device >= 40 && device < 40 + setting("STAND_IN_DEVICES"); }

int cuDriverGetVersion(int *version) { *version = 12040; return 0; }
int cuInit(unsigned flags) { return flags ? 1 : setting("STAND_IN_INIT_STATUS"); }
int cuDeviceGetCount(int *count) { *count = setting("STAND_IN_DEVICES"); return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 40 + ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    if (!known(device) || size < 32) return 1;
    strcpy(name, device == 40 ? "Stand-in A" : "Stand-in B");
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (!known(device)) return 101;
    if (attribute == 75) *value = device == 40 ? 9 : 12;
    else if (attribute == 76) *value = device == 40 ? 0 : 1;
    else return 1;
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    if (!known(device)) return 101;
    *bytes = ((size_t)80 << 30) + device;
    return 0;
}
#ifndef STAND_IN_WITHOUT_UUID
int cuDeviceGetUuid_v2(char *uuid, int device) {
    if (!known(device)) return 101;
    for (int i = 0; i < 16; i++) uuid[i] = (char)(i == 0 ? 0 : 240 + i);
    return 0;
}
#endif
"""

ZEN4 = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9354 32-Core Processor
flags\t\t: fpu sse2 avx avx2 avx512f avx512dq avx512_bf16 avx512vbmi avx512_vnni avx512_bitalg
power management:

processor\t: 1
model name\t: AMD EPYC 9354 32-Core Processor
flags\t\t: fpu sse2
"""
MILAN = "model name\t: AMD EPYC 7763 64-Core Processor\nflags\t\t: fpu sse2 avx avx2 vaes vpclmulqdq\n"
ALDER_LAKE = "model name\t: 12th Gen Intel(R) Core(TM) i7-12700\nflags\t\t: fpu avx avx2 avx_vnni gfni\n"
SAPPHIRE_RAPIDS = (
    "model name\t: Intel(R) Xeon(R) Platinum 8480+\n"
    "flags\t\t: avx2 avx512f avx512_bf16 avx512_fp16 avx512_vnni avx_vnni amx_bf16 amx_tile amx_int8\n"
)
NEOVERSE_N1 = (
    "processor\t: 0\nFeatures\t: fp asimd fphp asimdhp asimdrdm asimddp\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0c\n"
)
NEOVERSE_V2 = "processor\t: 0\nFeatures\t: fp asimd fphp asimddp i8mm bf16\nCPU part\t: 0xd4f\n"

HERE = Environment(
    os="Ubuntu 24.04.2 LTS",
    kernel="6.8.0",
    python="3.12.3",
    machine="x86_64",
    cpu=Cpu("AMD EPYC 9354 32-Core Processor", 32, ("avx2", "avx512_vnni")),
    memory_bytes=64 << 30,
    gpu=GpuProbe((Gpu("NVIDIA H100 80GB HBM3", "9.0", 80 << 30, "one"),), "13.0", "", "580.65.06"),
    libraries=(Library("torch", "2.10.0"), Library("plotly", "6.0.0")),
)
HOPPER = HERE.gpu
ADA = GpuProbe((Gpu("NVIDIA GeForce RTX 4090", "8.9", 24 << 30),), "13.0")
NO_GPU = GpuProbe(reason="libcuda.so.1 not found: no NVIDIA driver")


@dataclass(frozen=True)
class CpuCase:
    id: str
    text: str
    model: str
    features: tuple[str, ...]
    has_vnni: bool


CPU_CASES = [
    CpuCase("zen4", ZEN4, "AMD EPYC 9354 32-Core Processor", ("avx2", "avx512f", "avx512_vnni", "avx512_bf16"), True),
    CpuCase("milan", MILAN, "AMD EPYC 7763 64-Core Processor", ("avx2",), False),
    CpuCase("alder-lake", ALDER_LAKE, "12th Gen Intel(R) Core(TM) i7-12700", ("avx2", "avx_vnni"), True),
    CpuCase(
        "sapphire-rapids",
        SAPPHIRE_RAPIDS,
        "Intel(R) Xeon(R) Platinum 8480+",
        ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"),
        True,
    ),
    CpuCase("neoverse-n1", NEOVERSE_N1, "Neoverse N1", ("asimddp", "fphp"), True),
    CpuCase("neoverse-v2", NEOVERSE_V2, "Neoverse V2", ("asimddp", "i8mm", "fphp"), True),
]


@pytest.mark.parametrize("case", CPU_CASES, ids=lambda case: case.id)
def test_cpu_from_cpuinfo(case):
    cpu = probe_cpu(case.text)
    assert (cpu.model, cpu.features, cpu.has_vnni, cpu.reason) == (case.model, case.features, case.has_vnni, "")
    assert cpu.cores >= 1


def test_cpu_of_an_unknown_arm_part_is_named_by_its_number():
    assert probe_cpu("Features\t: fp asimd\nCPU part\t: 0xabc\n").model == "ARM part 0xabc"


def test_cpu_without_features_says_so():
    cpu = probe_cpu("processor\t: 0\nmmu\t: sv48\n")
    assert cpu.reason == "/proc/cpuinfo lists no features"
    assert cpu.model
    assert not cpu.has_vnni


def test_cpu_without_proc_falls_back_with_the_reason(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(environment.Path, "read_text", refuse)
    monkeypatch.setattr(environment.platform, "processor", lambda: "arm")
    cpu = probe_cpu()
    assert (cpu.model, cpu.features, cpu.reason) == ("arm", (), "/proc/cpuinfo: No such file or directory")


@pytest.fixture(scope="module")
def compile_stand_in(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the stand-in for libcuda")

    def compile_to(name, *flags):
        folder = tmp_path_factory.mktemp("stand_in")
        source, library = folder / "stand_in.c", folder / name
        source.write_text(STAND_IN_LIBCUDA)
        subprocess.run([compiler, "-shared", "-fPIC", *flags, "-o", library, source], check=True)
        return str(library)

    return compile_to


@pytest.fixture(scope="module")
def stand_in_libcuda(compile_stand_in):
    return compile_stand_in("libcuda.so.1")


@pytest.fixture(autouse=True)
def _all_devices_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_cross_ctypes_unharmed(stand_in_libcuda, monkeypatch):
    monkeypatch.setenv("STAND_IN_DEVICES", "2")
    probe = probe_gpu(stand_in_libcuda)
    identity = "00f1f2f3-f4f5-f6f7-f8f9-fafbfcfdfeff"
    assert probe.reason == ""
    assert probe.driver == "12.4"
    assert probe.gpus == (
        Gpu("Stand-in A", "9.0", (80 << 30) + 40, identity),
        Gpu("Stand-in B", "12.1", (80 << 30) + 41, identity),
    )


def test_driver_without_uuid_still_lists_its_gpus(compile_stand_in, monkeypatch):
    monkeypatch.setenv("STAND_IN_DEVICES", "1")
    probe = probe_gpu(compile_stand_in("libcuda-old.so.1", "-DSTAND_IN_WITHOUT_UUID"))
    assert probe.gpus == (Gpu("Stand-in A", "9.0", (80 << 30) + 40, ""),)


def test_no_driver():
    assert probe_gpu("libcuda-absent.so.1") == GpuProbe(reason="libcuda-absent.so.1 not found: no NVIDIA driver")


def test_driver_library_that_cannot_be_loaded(tmp_path):
    library = tmp_path / "libcuda.so.1"
    library.write_text("not a shared object")
    probe = probe_gpu(str(library))
    assert probe.gpus == ()
    assert probe.reason.startswith(f"driver unusable: {library}: ")


def test_driver_library_without_the_calls(tmp_path, compile_stand_in):
    probe = probe_gpu(compile_stand_in("libother.so.1", "-DcuInit=somethingElse"))
    assert (probe.gpus, probe.driver, probe.reason) == ((), "12.4", "the driver's library lacks cuInit")


def test_driver_with_no_device(stand_in_libcuda, monkeypatch):
    monkeypatch.setenv("STAND_IN_DEVICES", "0")
    probe = probe_gpu(stand_in_libcuda)
    assert (probe.gpus, probe.driver, probe.reason) == ((), "12.4", "no CUDA device is visible")


@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        (100, "no CUDA device is visible (CUDA_VISIBLE_DEVICES='')"),
        (803, "the driver's kernel module and libcuda are of different versions (CUDA_VISIBLE_DEVICES='')"),
        (999, "unknown error; the kernel module may need a reload (CUDA_VISIBLE_DEVICES='')"),
        (12345, "see CUresult in the CUDA documentation (CUDA_VISIBLE_DEVICES='')"),
    ],
)
def test_failed_call_gives_its_status_and_meaning(stand_in_libcuda, monkeypatch, status, meaning):
    monkeypatch.setenv("STAND_IN_INIT_STATUS", str(status))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    probe = probe_gpu(stand_in_libcuda)
    assert probe.reason == f"cuInit failed with CUDA status {status}: {meaning}"
    assert (probe.gpus, probe.driver) == ((), "12.4")


def test_status_and_attribute_numbers_are_those_of_the_cuda_headers():
    driver = pytest.importorskip("cuda.bindings.driver")
    assert len(environment._CUDA_MEANINGS) > 3
    for number in environment._CUDA_MEANINGS:
        driver.CUresult(number)
    assert driver.CUresult.CUDA_ERROR_NO_DEVICE == 100
    assert driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR == 75
    assert driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR == 76


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 2023\nGCC version 12.3.0",
            "535.104.05",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs)", "570.86.15"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95", "580.95"),
        ("GCC version:  gcc version 12.3.0", ""),
        ("", ""),
    ],
)
def test_kernel_driver_version(text, version):
    assert environment._kernel_driver(text) == version


@pytest.mark.parametrize("suffix", ["", "-cu13", "-cu12"])
def test_installed_version_knows_the_names_that_end_in_a_cuda_version(tmp_path, monkeypatch, suffix):
    assert installed_version("msgspec") == msgspec.__version__
    assert installed_version("synthetic") is None
    metadata = tmp_path / f"synthetic{suffix.replace('-', '_')}-1.2.3.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: synthetic{suffix}\nVersion: 1.2.3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_version("synthetic") == "1.2.3"


@pytest.fixture
def sysfs(tmp_path, monkeypatch):
    """Eight logical processors on four cores, of which this process may use six on three cores."""
    for cpu in range(8):
        topology = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    (tmp_path / "fs/cgroup").mkdir(parents=True)
    monkeypatch.setattr(environment, "_usable_cpus", lambda: {0, 1, 2, 4, 5, 6})
    return tmp_path


@pytest.mark.parametrize(
    ("quota", "threads"),
    [(None, 3), ("max 100000", 3), ("200000 100000", 2), ("50000 100000", 1), ("900000 100000", 3)],
)
def test_compute_threads_counts_cores_within_the_quota(sysfs, quota, threads):
    if quota is not None:
        (sysfs / "fs/cgroup/cpu.max").write_text(f"{quota}\n")
    assert compute_threads(sysfs) == threads


def test_compute_threads_without_topology(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_usable_cpus", lambda: {0, 3})
    assert compute_threads(tmp_path) == 2


def test_compute_threads_of_this_machine():
    assert 1 <= compute_threads() <= (os.cpu_count() or 1)


@pytest.fixture
def package(tmp_path, monkeypatch):
    root = tmp_path / "package"
    (root / "inner").mkdir(parents=True)
    (root / "a.py").write_text("a = 1\n")
    (root / "inner/b.py").write_text("b = 2\n")
    (root / "data.tsv").write_text("not a source\n")
    monkeypatch.setattr(environment, "__file__", str(root / "environment.py"))
    return root


def test_package_digest_follows_names_and_bytes_of_sources_only(package):
    digests = [package_digest()]
    (package / "data.tsv").write_text("still not a source\n")
    assert package_digest() == digests[0]
    (package / "a.py").write_text("a = 2\n")
    digests.append(package_digest())
    (package / "a.py").rename(package / "c.py")
    digests.append(package_digest())
    (package / "inner/b.py").rename(package / "b.py")
    digests.append(package_digest())
    assert len(set(digests)) == 4
    assert all(len(digest) == 64 for digest in digests)


def test_package_digest_refuses_to_hash_nothing(package):
    shutil.rmtree(package)
    with pytest.raises(FileError, match="no Python sources"):
        package_digest()


def test_package_digest_of_this_package_is_stable():
    assert package_digest() == package_digest()


def test_environment_of_this_machine_survives_json():
    here = collect()
    assert msgspec.json.decode(msgspec.json.encode(here), type=Environment) == here
    assert here.memory_bytes > 1 << 20
    assert here.python.startswith("3.")
    assert bool(here.gpu.gpus) != bool(here.gpu.reason)
    assert {library.name for library in here.libraries} >= {"numpy", "pillow"}
    assert differences(here, here) == ()


def test_environment_with_gpus_survives_json():
    text = msgspec.json.encode(HERE)
    assert msgspec.json.decode(text, type=Environment) == HERE
    assert json.loads(text)["gpu"]["gpus"][0]["compute_capability"] == "9.0"


def test_differences_reads_as_a_sentence():
    other = msgspec.structs.replace(HERE, gpu=NO_GPU, kernel="6.9.0")
    assert differences(HERE, other) == (
        "kernel: 6.8.0 against 6.9.0",
        "GPU: NVIDIA H100 80GB HBM3 (9.0, 80 GiB) against none",
        "CUDA driver: 13.0 against none",
        "GPU kernel driver: 580.65.06 against none",
    )


def replaced(**changes):
    return msgspec.structs.replace(HERE, **changes)


def with_gpu(**changes):
    return replaced(gpu=msgspec.structs.replace(HERE.gpu, **changes))


def with_first_gpu(**changes):
    return with_gpu(gpus=(msgspec.structs.replace(HERE.gpu.gpus[0], **changes),))


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("operating system", replaced(os="Debian")),
        ("kernel", replaced(kernel="6.9.0")),
        ("Python", replaced(python="3.13.0")),
        ("machine", replaced(machine="aarch64")),
        ("CPU", replaced(cpu=msgspec.structs.replace(HERE.cpu, model="Xeon"))),
        ("usable cores", replaced(cpu=msgspec.structs.replace(HERE.cpu, cores=2))),
        ("CPU features", replaced(cpu=msgspec.structs.replace(HERE.cpu, features=("avx2",)))),
        ("CPU features", replaced(cpu=msgspec.structs.replace(HERE.cpu, features=(), reason="unread"))),
        ("memory", replaced(memory_bytes=32 << 30)),
        ("memory", replaced(memory_bytes=0)),
        ("GPU", with_first_gpu(name="NVIDIA H200")),
        ("GPU", with_first_gpu(compute_capability="10.0")),
        ("GPU", with_first_gpu(memory_bytes=40 << 30)),
        ("GPU", with_gpu(gpus=HERE.gpu.gpus * 2)),
        ("CUDA driver", with_gpu(driver="12.8")),
        ("GPU kernel driver", with_gpu(kernel_driver="575.0")),
        ("torch", replaced(libraries=(Library("torch", "2.9.1"),))),
        ("torch", replaced(libraries=())),
        ("onnxruntime", replaced(libraries=(*HERE.libraries, Library("onnxruntime", "1.27.0")))),
    ],
)
def test_differences_finds(name, other):
    for left, right in ((HERE, other), (other, HERE)):
        found = differences(left, right)
        assert [line.partition(":")[0] for line in found] == [name]
        assert " against " in found[0]


@pytest.mark.parametrize(
    "other",
    [
        with_first_gpu(uuid="another of the same model"),
        replaced(memory_bytes=(64 << 30) - 4096),
        replaced(libraries=(Library("torch", "2.10.0"), Library("plotly", "7.0.0"))),
    ],
    ids=["uuid", "a page of memory", "plotly"],
)
def test_differences_leaves_out_what_does_not_matter(other):
    assert other != HERE
    assert differences(HERE, other) == ()


MODULES = ("torch", "onnx", "onnx_ir", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")


@pytest.fixture
def install(monkeypatch):
    """Return a function that makes exactly the given modules look installed, and nothing import."""

    def pretend(*names):
        for name in MODULES:
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None, origin="pretended")
            monkeypatch.setitem(sys.modules, name, module if name in names else None)

    return pretend


def complete(name: str) -> Backend:
    """Take a row of the table as it will be when its builder and runner are written."""
    backend = find_backend(name)
    builder = backend.builder or ("" if name in ("torch", "null") else "some.module:build")
    return dataclasses.replace(backend, builder=builder, runner=backend.runner or "some.module:Runner")


def on(gpu: GpuProbe) -> Environment:
    return replaced(gpu=gpu)


YES = Capability(True)
NOTHING_FOR_TORCH = Capability(False, "nothing to build: PyTorch runs the model as it is")
NOTHING_FOR_NULL = Capability(False, "nothing to build: this backend only measures the harness")
GPU_FIX = "use a machine with an NVIDIA GPU and its driver; in a container: docker run --gpus all"
GPU_MISSING = Capability(False, "no NVIDIA GPU: libcuda.so.1 not found: no NVIDIA driver", GPU_FIX)
HOPPER_REFUSED = Capability(
    False, "TensorRT-RTX does not support compute capability 9.0 (Hopper)", "use --backend tensorrt"
)


@dataclass(frozen=True)
class BackendCase:
    backend: str
    gpu: str
    build: Capability
    run: Capability


BACKEND_CASES = [
    BackendCase("torch", "none", NOTHING_FOR_TORCH, YES),
    BackendCase("onnxruntime", "none", YES, YES),
    BackendCase("openvino", "none", YES, YES),
    BackendCase("tensorrt-rtx", "none", YES, GPU_MISSING),
    BackendCase("tensorrt-rtx", "hopper", YES, HOPPER_REFUSED),
    BackendCase("tensorrt-rtx", "ada", YES, YES),
    BackendCase("tensorrt", "none", GPU_MISSING, GPU_MISSING),
    BackendCase("tensorrt", "hopper", YES, YES),
    BackendCase("tensorrt", "ada", YES, YES),
    BackendCase("null", "none", NOTHING_FOR_NULL, YES),
]
GPUS = {"none": NO_GPU, "hopper": HOPPER, "ada": ADA}


def test_the_cases_cover_the_table():
    assert {case.backend for case in BACKEND_CASES} == {backend.name for backend in BACKENDS}


@pytest.mark.parametrize("case", BACKEND_CASES, ids=lambda case: f"{case.backend}-{case.gpu}")
def test_backend_with_everything_installed(case, install):
    install(*MODULES)
    status = backend_status(complete(case.backend), on(GPUS[case.gpu]))
    assert status == BackendStatus(case.backend, case.build, case.run)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_every_row_as_it_is_says_why_not(backend):
    status = backend_status(backend, on(NO_GPU))
    assert status.backend == backend.name
    for able in (status.build, status.run):
        assert able.ok != bool(able.reason)
        assert not (able.ok and able.fix)


@pytest.mark.parametrize("name", [backend.name for backend in BACKENDS if backend.module])
def test_backend_not_installed_names_the_command(name, install):
    backend = complete(name)
    install(*{"onnx", "onnx_ir", "onnxruntime"} - {backend.module})
    status = backend_status(backend, on(ADA))
    missing = Capability(False, f"{name} is not installed", f'pip install "resnet-deploy[{backend.extra}]"')
    assert status.run == missing
    assert status.build == (missing if backend.builder else NOTHING_FOR_TORCH)


def test_building_needs_the_graph_libraries_too(install):
    install()
    assert backend_status(complete("tensorrt-rtx"), on(ADA)).build == Capability(
        False,
        "onnx and onnx-ir and onnxruntime and tensorrt-rtx are not installed",
        'pip install "resnet-deploy[export,cpu,rtx]"',
    )


def test_backend_without_builder_or_runner_says_not_yet(install):
    install(*MODULES)
    backend = dataclasses.replace(find_backend("openvino"), builder="", runner="")
    status = backend_status(backend, on(NO_GPU))
    assert status.build.reason == "this version of resnet-deploy does not build with openvino yet"
    assert status.run.reason == "this version of resnet-deploy does not run openvino engines yet"


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"])
def test_rtx_runs_on(install, capability):
    install(*MODULES)
    gpu = GpuProbe((Gpu("some GPU", capability, 1 << 30),), "13.0")
    assert backend_status(complete("tensorrt-rtx"), on(gpu)).run == YES


@pytest.mark.parametrize("capability", ["7.0", "8.7", "9.0", "10.0", "10.3", "13.7"])
def test_rtx_does_not_run_on(install, capability):
    install(*MODULES)
    gpu = GpuProbe((Gpu("some GPU", capability, 1 << 30),), "13.0")
    able = backend_status(complete("tensorrt-rtx"), on(gpu)).run
    assert not able.ok
    assert f"compute capability {capability}" in able.reason


def test_rtx_runs_where_one_of_two_gpus_will_do(install):
    install(*MODULES)
    assert backend_status(complete("tensorrt-rtx"), on(GpuProbe(HOPPER.gpus + ADA.gpus, "13.0"))).run == YES


def test_libraries_are_imported_only_where_asked(install):
    install(*MODULES)
    asked = []

    def import_failure(module):
        asked.append(module)
        return "importing tensorrt_rtx failed: libfoo.so: no such file" if module == "tensorrt_rtx" else ""

    status = backend_status(complete("tensorrt-rtx"), on(ADA), import_failure=import_failure)
    broken = Capability(
        False,
        "importing tensorrt_rtx failed: libfoo.so: no such file",
        'pip install --force-reinstall "resnet-deploy[rtx]"',
    )
    assert (status.build, status.run) == (broken, broken)
    assert asked == ["onnx", "onnx_ir", "onnxruntime", "tensorrt_rtx", "tensorrt_rtx"]


def test_a_folder_of_the_same_name_is_not_a_library(tmp_path, monkeypatch):
    (tmp_path / "tensorrt_lookalike").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("tensorrt_lookalike") is not None
    backend = dataclasses.replace(complete("tensorrt"), module="tensorrt_lookalike")
    assert backend_status(backend, on(ADA)).run.reason == "tensorrt-lookalike is not installed"


def test_backend_status_probes_this_machine_by_default():
    assert backend_status(find_backend("null")).run == YES


def test_probing_loads_no_heavy_library():
    code = """
import json, sys
from resnet_deploy.backends import BACKENDS
from resnet_deploy.environment import backend_status, collect
here = collect()
for backend in BACKENDS:
    backend_status(backend, here)
print(json.dumps(sorted(sys.modules)))
"""
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=paths, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert "resnet_deploy.environment" in loaded
    assert not loaded & {*MODULES, "numpy", "cuda", "pycuda", "plotly", "PIL", "rich", "click"}
