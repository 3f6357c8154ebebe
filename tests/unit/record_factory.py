"""Synthetic benchmark records for tests: every figure here is drawn from a random generator, none was measured."""

from dataclasses import dataclass

import numpy as np

from resnet_deploy.bench.records import BenchRecord, DatasetRecord, EngineRecord, NotRun, Outputs, Samples
from resnet_deploy.driver import GpuProbe
from resnet_deploy.environment import Cpu, Environment, Library
from resnet_deploy.specs import Preprocess

CLASSES = 10
# What a user's folder may be called.
HOSTILE = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>[red]\x1b[31m\u202e&amp;{{ 7*7 }}"

SYNTHETIC_ENVIRONMENT = Environment(
    os="Synthetic Linux 1",
    kernel="0.0.0-synthetic",
    python="3.12.0",
    machine="x86_64",
    cpu=Cpu("Synthetic CPU 9000", 8, ("avx2", "avx512_vnni")),
    memory_bytes=32 * 2**30,
    gpu=GpuProbe(reason="libcuda.so.1 not found: no NVIDIA driver"),
    libraries=(Library("torch", "0.0.1"), Library("onnxruntime", "0.0.2")),
)


@dataclass(frozen=True)
class SyntheticEngine:
    """How one engine of a synthetic record is drawn: fixed cost per call, cost per image, and how it errs."""

    name: str
    backend: str = "onnxruntime"
    precision: str = "fp32"
    size_bytes: int = 102_000_000
    call_s: float = 0.002
    image_s: float = 0.020
    flips: float = 0.0  # share of images answered otherwise than the reference does
    noise: float = 0.0  # sum of squared differences of the logits, per image, of a signal of 100


REFERENCE = SyntheticEngine("pytorch", "torch", "fp32", 102_400_000, 0.004, 0.024)
ENGINES = (
    REFERENCE,
    SyntheticEngine("resnet50-onnxruntime-fp32", "onnxruntime", "fp32", 102_100_000, 0.001, 0.018, 0.0, 1e-9),
    SyntheticEngine("resnet50-onnxruntime-int8", "onnxruntime", "int8", 26_100_000, 0.001, 0.009, 0.03, 0.07),
    SyntheticEngine("resnet50-openvino-int8", "openvino", "int8", 25_900_000, 0.0015, 0.008, 0.05, 0.09),
)
NOT_RUN = (
    NotRun(
        name="resnet50-tensorrt-rtx-fp16",
        backend="tensorrt-rtx",
        precision="fp16",
        size_bytes=51_300_000,
        reason="no NVIDIA GPU: libcuda.so.1 not found: no NVIDIA driver",
    ),
)


def make_samples(batch=1, seconds=None, rounds=None, scope="host"):
    seconds = (0.010, 0.011, 0.012) if seconds is None else tuple(seconds)
    rounds = (0,) * len(seconds) if rounds is None else tuple(rounds)
    return Samples(batch=batch, scope=scope, seconds=seconds, rounds=rounds)


def draw_samples(rng, engine, batch, *, rounds=10, calls=20):
    centre = engine.call_s + engine.image_s * batch
    seconds = centre * (1 + rng.gamma(1.2, 0.02, size=rounds * calls))
    seconds[rng.random(len(seconds)) < 0.01] *= 1.6
    return make_samples(batch, map(float, seconds), [number // calls for number in range(rounds * calls)])


def draw_outputs(rng, engine, truth, *, is_reference):
    """Answer like the reference, except on ``flips`` of the images.

    The reference is right on three images of four; on one of eight the label is its second answer, on one of eight
    none of its five.
    """
    luck = np.random.default_rng(7).random(len(truth))
    reference = (truth + np.select([luck < 0.75, luck < 0.875], [0, 1], 5)) % CLASSES
    best = np.where(rng.random(len(truth)) < engine.flips, (reference + 2) % CLASSES, reference)
    top5 = tuple(tuple(int((first - step) % CLASSES) for step in range(5)) for first in best)
    if is_reference:
        return Outputs(top5=top5)
    count = len(truth)
    return Outputs(
        top5=top5, noise=(engine.noise,) * count, signal=(100.0,) * count, max_difference=(engine.noise**0.5,) * count
    )


def make_record(
    engines=ENGINES,
    *,
    reference="pytorch",
    images=400,
    labelled=True,
    batches=(1, 8, 32),
    rounds=10,
    calls=20,
    dataset_name="synthetic-set",
    skipped=(),
    not_run=NOT_RUN,
):
    """Draw a record; no images with ``images=0``, no reference with ``reference=""``."""
    rng = np.random.default_rng(0)
    truth = np.random.default_rng(1).integers(0, CLASSES, size=images)
    dataset = None
    if images:
        labels = tuple(map(int, truth)) if labelled else ()
        dataset = DatasetRecord(name=dataset_name, digest="d" * 64, images=images, labels=labels, skipped=skipped)
    drawn = []
    for engine in engines:
        outputs = draw_outputs(rng, engine, truth, is_reference=engine.name == reference) if images else None
        if outputs is not None and not reference:
            outputs = Outputs(top5=outputs.top5)
        drawn.append(
            EngineRecord(
                name=engine.name,
                backend=engine.backend,
                precision=engine.precision,
                size_bytes=engine.size_bytes,
                sha256="e" * 64,
                device="CPU",
                latency=tuple(draw_samples(rng, engine, batch, rounds=rounds, calls=calls) for batch in batches),
                outputs=outputs,
            )
        )
    null = SyntheticEngine("null", "null", call_s=3e-6, image_s=1e-7)
    return BenchRecord(
        created="2026-01-02T03:04:05.678901+00:00",
        environment=SYNTHETIC_ENVIRONMENT,
        architecture="resnet50",
        weights_sha256="a" * 64,
        preprocess=Preprocess(),
        threads=2,
        warmup_calls=10,
        seed=3,
        dataset=dataset,
        harness=tuple(draw_samples(rng, null, batch) for batch in batches),
        engines=tuple(drawn),
        reference=reference,
        not_run=not_run,
    )
