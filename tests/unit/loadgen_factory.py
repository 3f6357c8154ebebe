"""Records of LoadGen's, made from logs that it wrote."""

from pathlib import Path

import msgspec

from resnet_deploy.bench.loadgen_logs import read_detail
from resnet_deploy.bench.loadgen_records import DataFacts, EngineFacts, LoadgenRecord, LoadgenTest
from resnet_deploy.driver import GpuProbe
from resnet_deploy.environment import Cpu, Environment
from resnet_deploy.specs import Preprocess

LOGS = Path(__file__).with_name("loadgen_logs")
ENGINE = "resnet50-int8-onnxruntime"


def logged(name, **changes):
    """What LoadGen said in one of the logs, with changes."""
    return msgspec.structs.replace(read_detail(LOGS / f"{name}.txt"), **changes)


def official(name, **settings):
    """The same, as if LoadGen had used MLPerf's durations, counts and images in memory."""
    result = logged(name)
    rules = {
        "min_duration_ms": 600_000,
        "performance_sample_count": 1024,
        "min_query_count": 662,
        "min_sample_count": 24_576,
    }
    return msgspec.structs.replace(result, settings=result.settings | rules | settings)


def run_of(name, **changes):
    """The record of a performance run."""
    values = {"engine": ENGINE, "purpose": "performance", "batch": 8, "result": logged(name)} | changes
    return LoadgenTest(**values)


def make_record(tests, **changes):
    """A run of these tests."""
    values = {
        "created": "2026-11-26T13:14:15Z",
        "environment": Environment(
            os="Debian",
            kernel="6",
            python="3.11",
            machine="x86_64",
            cpu=Cpu("CPU", 2, ("avx2",)),
            memory_bytes=2**34,
            gpu=GpuProbe(),
            libraries=(),
        ),
        "architecture": "resnet50",
        "weights_sha256": "0" * 64,
        "preprocess": Preprocess(),
        "threads": 1,
        "data": DataFacts(name="val", digest="ab" * 32, images=360, labelled=True),
        "engines": (
            EngineFacts(name=ENGINE, backend="onnxruntime", precision="int8", size_bytes=10**6, sha256="1" * 64),
        ),
        "tests": tuple(tests),
    } | changes
    return LoadgenRecord(**values)
