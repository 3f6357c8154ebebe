"""Bundles of the smallest kind for the C++ runtime, and its compiler."""

import shutil
import subprocess
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from resnet_deploy import artifact
from resnet_deploy.bundle import MANIFEST, seal

ROOT = Path(__file__).parents[2]
CPP = ROOT / "resnet_deploy" / "cpp"
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror")
SANITIZED = ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SIDE, CLASSES, IMAGES = 4, 3, 2


def nlohmann_include():
    """The folder of nlohmann-json's headers: the PyPI package's, or the system's."""
    package = Path(sysconfig.get_path("purelib")) / "nlohmann_json" / "include"
    for folder in (package, Path("/usr/include")):
        if (folder / "nlohmann" / "json.hpp").exists():
            return folder
    pytest.skip("nlohmann-json is not installed")
    return None


def compile_cpp(target, *sources, includes=(), flags=()):
    """Compile and link ``sources`` with every warning an error; skip without a compiler that has sanitizers."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    if not has_sanitizers(compiler):
        pytest.skip("g++ has no sanitizers")
    folders = [f"-I{folder}" for folder in (*includes, CPP / "include")] + ["-isystem", nlohmann_include()]
    command = [compiler, "-std=c++17", *SANITIZED, *WARNINGS, *flags, *folders, *sources, "-pthread", "-o", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@cache
def has_sanitizers(compiler):
    """Whether a program with them is linked."""
    with tempfile.TemporaryDirectory() as folder:
        probe = [compiler, "-fsanitize=address,undefined", "-x", "c++", "-", "-o", f"{folder}/probe"]
        return subprocess.run(probe, input=b"int main() {}", capture_output=True, check=False).returncode == 0


def manifest_fields():
    """A manifest in which no field that can be left out is, as builtins."""
    return {
        "schema_version": 1,
        "name": "net-int8",
        "card": {
            "architecture": "resnet18",
            "num_classes": CLASSES,
            "weights": "mine.pth",
            "weights_sha256": "a" * 64,
            "initializers_sha256": "b" * 64,
            "labels": ["cat", "Hund 🐕", 'a "quoted" one\n\x7f'],
            "folders": ["n01", "n02", "n03"],
            "preprocess": {
                "image_size": SIDE,
                "resize": 5,
                "interpolation": "bicubic",
                "mean": [0.1, 0.2, 0.3],
                "std": [1.0, 0.225, 1e-7],
                "color": "RGB",
                "dtype": "uint8",
                "layout": "NHWC",
            },
        },
        "spec": {
            "backend": "tensorrt",
            "precision": "int8",
            "batch": {"min": 1, "opt": 4, "max": 16},
            "profiles": [{"min": 1, "opt": 4, "max": 4}, {"min": 5, "opt": 8, "max": 16}],
            "trt": {
                "targets": [],
                "workspace_bytes": 1 << 30,
                "optimization_level": 5,
                "timing_cache": "cache",
                "hardware_compatibility": "same-cc",
                "version_compatible": True,
                "strip_weights": True,
                "refittable": False,
            },
            "calibration": {
                "method": "entropy",
                "percentile": 99.9,
                "max_images": 7,
                "equalize": True,
                "correct_biases": False,
            },
            "max_drop": 0.5,
        },
        "engine": "model.plan",
        "files": {"model.plan": "0" * 64, "golden.npz": "1" * 64},
        "chain": {"weights": "a", "onnx": "b", "images": "i", "calibration": "c", "lowered": "d", "engine": "e"},
        "cache_key": "f" * 64,
        "requires": {
            "library": "tensorrt",
            "version": "10.1.2",
            "later_versions": True,
            "compute_capabilities": ["8.9"],
            "least_compute_capability": "8.0",
            "int8_dot_product": False,
        },
        "toolchain": {"onnx": "1.2.3"},
        "environment": {
            "os": "Synthetic Linux 1",
            "kernel": "0.0.0",
            "python": "3.12.0",
            "machine": "x86_64",
            "cpu": {"model": "Synthetic CPU", "cores": 8, "features": ["avx2"], "reason": ""},
            "memory_bytes": 32 << 30,
            "gpu": {
                "gpus": [{"name": "Synthetic GPU", "compute_capability": "8.9", "memory_bytes": 24 << 30, "uuid": "0"}],
                "driver": "13.0",
                "reason": "",
                "kernel_driver": "1.2",
            },
            "libraries": [{"name": "tensorrt", "version": "10.1.2"}],
        },
        "measured": {
            "by": "engine",
            "inputs": "images",
            "images": 8,
            "agreement": 0.875,
            "sqnr_db": 30.5,
            "max_difference": 1e-20,
            "latency_s": 0.001,
            "speedup": 1.5e300,
        },
        "notes": ["a note"],
    }


def sums(images):
    """The logits of the stub engine: sums of the bytes of each image that belong to a class."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    return np.stack([flat[:, start::CLASSES].sum(1) for start in range(CLASSES)], axis=1)


def make_bundle(folder, *, change=lambda fields: None, golden=None, files=()):
    """Write a bundle that the stub engine runs.

    Args:
        folder: Where; made here.
        change: Changes the manifest's fields before they are digested.
        golden: Arrays in place of the golden vectors.
        files: Names and contents of files in place of those that a bundle has.
    """
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    np.savez(folder / "golden.npz", **(golden or {"images": images, "logits": sums(images)}))
    (folder / "model.plan").write_bytes(b"an engine")
    for name, data in dict(files).items():
        (folder / name).write_bytes(data)
    fields = manifest_fields()
    fields["files"] = {path.name: artifact.sha256_file(path) for path in sorted(folder.iterdir())}
    change(fields)
    (folder / MANIFEST).write_bytes(seal(fields))
    return folder
