"""Synthetic benchmark records for tests: every figure here is drawn from a random generator, none was measured."""

from dataclasses import dataclass

import msgspec
import numpy as np

from resnet_deploy.bench.records import (
    BenchRecord,
    DatasetRecord,
    DecodeTimes,
    EngineRecord,
    LayerTime,
    LayerTimes,
    MachineState,
    NotRun,
    Outputs,
    Samples,
    SearchStep,
    TensorHistogram,
    Way,
)
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
    role: str = "engine"
    settings: str = ""


REFERENCE = SyntheticEngine("pytorch", "torch", "fp32", 102_400_000, 0.004, 0.024)
ENGINES = (
    REFERENCE,
    SyntheticEngine("resnet50-onnxruntime-fp32", "onnxruntime", "fp32", 102_100_000, 0.001, 0.018, 0.0, 1e-9),
    SyntheticEngine("resnet50-onnxruntime-int8", "onnxruntime", "int8", 26_100_000, 0.001, 0.009, 0.03, 0.07),
    SyntheticEngine("resnet50-openvino-int8", "openvino", "int8", 25_900_000, 0.0015, 0.008, 0.05, 0.09),
)
PEERS = (
    SyntheticEngine(
        *("onnxruntime-plain", "onnxruntime", "fp32", 102_100_000, 0.001, 0.0185, 0.0, 1e-9),
        role="peer",
        settings="InferenceSession with default options, run() on the exported model",
    ),
    SyntheticEngine(
        *("openvino-nncf", "openvino", "int8", 25_800_000, 0.0014, 0.0083, 0.04, 0.08),
        role="peer",
        settings="nncf.quantize with its defaults, PERFORMANCE_HINT LATENCY",
    ),
)
# Every scope that a CPU has, and callers at once on the host.
WAYS = (
    *(Way(batch, scope) for scope in ("host", "device", "end_to_end") for batch in (1, 8, 32)),
    *(Way(batch, "host", callers) for batch in (1, 8) for callers in (2, 4)),
)
_SCOPE_COST = {"host": (1.0, 0.0), "device": (0.97, 0.0), "end_to_end": (1.0, 0.004)}  # factor, seconds per image
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


def draw_samples(rng, engine, way, *, rounds=10, calls=20):
    """Draw the calls of one way; ``calls`` per round and caller. Two cores: more callers than that wait."""
    way = Way(way) if isinstance(way, int) else way
    factor, image_s = _SCOPE_COST[way.scope]
    centre = factor * (engine.call_s + engine.image_s * way.batch) + image_s * way.batch
    centre *= max(1, 0.7 * way.concurrency)
    of_round = calls * way.concurrency
    seconds = centre * (1 + rng.gamma(1.2, 0.02, size=rounds * of_round))
    seconds[rng.random(len(seconds)) < 0.01] *= 1.6
    wall = () if way.concurrency == 1 else tuple(map(float, seconds.reshape(rounds, -1).sum(1) / way.concurrency))
    return Samples(
        batch=way.batch,
        scope=way.scope,
        seconds=tuple(map(float, seconds)),
        rounds=tuple(number // of_round for number in range(rounds * of_round)),
        concurrency=way.concurrency,
        graphs=way.graphs,
        wall=wall,
    )


def draw_layers(rng, engine, *, blocks=16):
    """Draw the profile of a ResNet-50 with the names that ONNX Runtime gives fused layers."""
    int8 = engine.precision == "int8"
    kind, suffix = ("QLinearConv", "_token_1") if int8 else ("Conv", "_nchwc")
    convolutions = [f"layer{1 + block // 4}.{block % 4}.conv{conv}" for block in range(blocks) for conv in (1, 2, 3)]
    layers = [LayerTime(name="images.cast", kind="Cast", seconds=1e-4)]
    for name in ["conv1", *convolutions]:
        seconds = (engine.call_s + engine.image_s) / len(convolutions) * float(rng.uniform(0.5, 1.5))
        layers.append(LayerTime(name=f"{name}{suffix}", kind=kind, seconds=seconds))
        if int8 and name.endswith("conv3"):
            layers.append(LayerTime(name=name.replace("conv3", "add"), kind="QLinearAdd", seconds=seconds / 5))
    layers.append(LayerTime(name="fc", kind="QGemm" if int8 else "Gemm", seconds=2e-4))
    return LayerTimes(batch=1, calls=50, profiler="ONNX Runtime", layers=tuple(layers))


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
    ways=None,
    rounds=10,
    calls=20,
    dataset_name="synthetic-set",
    skipped=(),
    not_run=NOT_RUN,
):
    """Draw a record; no images with ``images=0``, no reference with ``reference=""``; ``ways`` in place of batches."""
    ways = tuple(map(Way, batches)) if ways is None else ways
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
                latency=tuple(draw_samples(rng, engine, way, rounds=rounds, calls=calls) for way in ways),
                outputs=outputs,
                role="reference" if engine.name == reference else engine.role,
                settings=engine.settings,
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


def make_full_record(**options):
    """Draw a record with all that there can be: peers, ways, layers, histograms, a search, the machine's state."""
    rng = np.random.default_rng(5)
    record = make_record(**({"engines": (*ENGINES, *PEERS), "ways": WAYS} | options))
    engines = list(record.engines)
    for number in (1, 2):
        engines[number] = msgspec.structs.replace(engines[number], layers=draw_layers(rng, ENGINES[number]))
    counts = tuple(int(1e6 * np.exp(-abs(index - 64) / 6)) for index in range(128))
    engines[2] = msgspec.structs.replace(
        engines[2],
        notes=("4 layers in floating point",),
        histograms=tuple(
            TensorHistogram(
                tensor=f"layer3.{n}.conv3", first=-4, width=1 / 16, counts=counts, low=-1.5, high=1.5, sqnr_db=26.0 + n
            )
            for n in range(6)
        ),
        search=tuple(SearchStep(layers=n, drop=1.2 / (n + 1), cost=1 + n / 20) for n in range(6)),
    )
    machine = tuple(
        MachineState(
            round=number,
            seconds=12.0 + number / 10,
            used=0.9,
            elsewhere=float(rng.gamma(1, 0.02)),
            stolen=float(rng.gamma(1, 0.01)),
            mhz=2450.0 - 40 * (number > 6),
        )
        for number in range(1 + max(record.engines[0].latency[0].rounds))
    )
    decoding = DecodeTimes(
        workers=2,
        images=400,
        decode=310.0,
        engines={engine.name: (60.0 + n, 45.0 + n) for n, engine in enumerate(engines)},
    )
    return msgspec.structs.replace(
        record, engines=tuple(engines), machine=machine, governor="performance", decoding=decoding
    )
