import json
import os
import shutil
from dataclasses import dataclass

import msgspec
import pytest

from resnet_deploy import environment
from resnet_deploy.driver import Gpu, GpuProbe
from resnet_deploy.environment import (
    Cpu,
    Environment,
    Library,
    collect,
    compute_threads,
    differences,
    installed_version,
    package_digest,
    probe_cpu,
)
from resnet_deploy.errors import FileError

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
    monkeypatch.setattr(environment, "usable_cpus", lambda: {0, 1, 2, 4, 5, 6})
    return tmp_path


@pytest.mark.parametrize(
    ("quota", "threads"),
    [(None, 3), ("max 100000", 3), ("200000 100000", 2), ("50000 100000", 1), ("900000 100000", 3)],
)
def test_compute_threads_counts_cores_within_the_quota(sysfs, quota, threads):
    if quota is not None:
        (sysfs / "fs/cgroup/cpu.max").write_text(f"{quota}\n")
    assert compute_threads(sysfs) == threads


@pytest.mark.parametrize(("quota", "threads"), [("-1", 3), ("200000", 2), ("50000", 1)])
def test_compute_threads_within_the_quota_of_older_control_groups(sysfs, quota, threads):
    (sysfs / "fs/cgroup/cpu").mkdir()
    (sysfs / "fs/cgroup/cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
    (sysfs / "fs/cgroup/cpu/cpu.cfs_period_us").write_text("100000\n")
    assert compute_threads(sysfs) == threads


def test_compute_threads_without_topology(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "usable_cpus", lambda: {0, 3})
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
    other = msgspec.structs.replace(
        HERE, gpu=GpuProbe(reason="libcuda.so.1 not found: no NVIDIA driver"), kernel="6.9.0"
    )
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
