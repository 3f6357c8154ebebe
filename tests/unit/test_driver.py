"""The probe of the NVIDIA driver, against a stand-in for its library."""

import shutil
import subprocess

import pytest

from resnet_deploy import driver
from resnet_deploy.driver import Gpu, GpuProbe, probe_gpu

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
    cuda = pytest.importorskip("cuda.bindings.driver")
    assert len(driver._CUDA_MEANINGS) > 3
    for number in driver._CUDA_MEANINGS:
        cuda.CUresult(number)  # raises where there is no such status
    assert cuda.CUresult.CUDA_ERROR_NO_DEVICE == 100
    attribute = cuda.CUdevice_attribute
    assert attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR == 75
    assert attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR == 76


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
def test_kernel_driver_version(tmp_path, text, version):
    path = tmp_path / "version"
    path.write_text(text)
    assert driver._kernel_driver(path) == version


def test_kernel_driver_where_the_kernel_does_not_tell(tmp_path):
    assert driver._kernel_driver(tmp_path / "version") == ""
