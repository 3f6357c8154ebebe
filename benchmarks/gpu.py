"""Throughput on this machine's GPU: PyTorch in six ways, and every engine that can be built, in turns.

    python benchmarks/gpu.py [--model MODEL.onnx] [--batches 1,8,32,128] [--seconds N] [--rounds N]

Each batch goes from host memory to logits in host memory. What cannot be built or run stands in the record with the
reason. Every figure stands beside the arithmetic bound, where the peak of the GPU is known.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from safetensors.torch import load_file

from resnet_deploy import artifact, environment
from resnet_deploy.backends import BACKENDS
from resnet_deploy.batching import infer
from resnet_deploy.bench import record_files
from resnet_deploy.bench.calls import Feeds
from resnet_deploy.bench.measure import measure_in_turns
from resnet_deploy.bench.ways import Entrant
from resnet_deploy.bench_spec import BenchSpec
from resnet_deploy.cli.terminal import TerminalProgress
from resnet_deploy.errors import ResnetDeployError
from resnet_deploy.models import create_model
from resnet_deploy.pipeline.building import RANDOM, BuildInputs, build
from resnet_deploy.pipeline.exporting import export
from resnet_deploy.pipeline.source import read_source
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.protocols import Silent
from resnet_deploy.runners import find_runner
from resnet_deploy.runners.torch_peer import Setup, TorchPeer
from resnet_deploy.specs import BatchRange, BuildSpec, CalibrationSpec, ExportSpec, ModelCard, Precision
from resnet_deploy.verify import compare_logits

RESULTS = Path(__file__).parent / "results"
FLOP_PER_IMAGE = 8.2e9  # of a ResNet-50 at 224 pixels: 4.09 billion multiply-adds
# Dense peaks of the tensor cores in FP16, from NVIDIA's data sheets, operations per second; INT8 has twice that.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12, "T4": 65e12}
# What is published of one H200: ResNet-50 Offline, INT8, NVIDIA, closed division of MLPerf Inference v4.1 (eight GPUs).
MLPERF_H200 = 94_600  # images/s
MODEL_OF_BOUND = {"architecture": "resnet50", "image_size": 224}
IMAGES = 64
ENQUEUES = 1000
MOST_DECIBELS = 200.0
NOTHING = "–"  # noqa: RUF001 - the dash that stands for an empty cell
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
WAYS = {
    "torch FP32 eager": Setup(device="cuda"),
    "torch FP32 channels-last": Setup(channels_last=True, device="cuda"),
    "torch FP16 eager": Setup("float16", device="cuda"),
    "torch FP16 channels-last": Setup("float16", channels_last=True, device="cuda"),
    "torch FP16 compiled": Setup("float16", channels_last=True, compiled=True, device="cuda"),
    "torch FP16 graphs": Setup("float16", channels_last=True, graphs=True, device="cuda"),
}


@dataclass(frozen=True)
class Lineup:
    """What takes part, and why the others do not."""

    entrants: list[Entrant]
    failures: dict[str, str]


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="[default: an untrained ResNet-50]")
@click.option("--batches", default="1,8,32,128", show_default=True)
@click.option("--seconds", default=5.0, show_default=True, help="For each entrant and batch size.")
@click.option("--rounds", default=5, show_default=True)
def main(model: Path | None, batches: str, seconds: float, rounds: int) -> None:
    """Build, measure, print a table, keep the record."""
    here = environment.collect()
    if not here.gpu.gpus:
        click.echo(f"error: no NVIDIA GPU: {here.gpu.reason}", err=True)
        sys.exit(2)
    spec = BenchSpec(batches=tuple(map(int, batches.split(","))), seconds=seconds, rounds=rounds)
    progress = TerminalProgress()
    with tempfile.TemporaryDirectory() as folder:
        path = model or Path(folder) / "resnet50.onnx"
        if model is None:
            export(ExportSpec(weights="none"), path, progress)
        card = read_source(path).card
        images = synthetic_images(card.preprocess, IMAGES)
        lineup = line_up(path, card, Path(folder), spec.batches)
        samples = measure_in_turns(lineup.entrants, Feeds(images), spec, progress)
        parity, overhead = agreement(lineup, images), enqueue_seconds(lineup, images)
    record = {
        "created": record_files.created_now(),
        "environment": msgspec.to_builtins(here),
        "model": {"architecture": card.architecture, "image_size": card.preprocess.image_size},
        "weights": card.weights,
        "flop_per_image": FLOP_PER_IMAGE,
        "samples": {name: msgspec.to_builtins(found) for name, found in samples.items()},
        "parity": parity,
        "enqueue_seconds": overhead,
        "failures": lineup.failures,
    }
    name = here.gpu.gpus[0].name.replace(" ", "-").lower()
    kept = RESULTS / f"gpu-{name}-{record_files.file_stamp(str(record['created']))}.json"
    artifact.write_bytes(kept, json.dumps(record, indent=1).encode() + b"\n")
    click.echo("\n".join(table(record)))
    click.echo(f"record: {kept.relative_to(Path.cwd()) if kept.is_relative_to(Path.cwd()) else kept}")


def line_up(model: Path, card: ModelCard, folder: Path, batches: Sequence[int]) -> Lineup:
    """Make every entrant that this machine allows."""
    entrants, failures = [], {}
    batch = BatchRange(1, max(batches), max(batches))
    weights = load_file(model.with_suffix(".safetensors"))  # which `export` writes beside it
    for name, way in WAYS.items():
        network = create_model(card.architecture, card.num_classes)
        network.load_state_dict(weights)
        peer = TorchPeer(network, card, batch, way)
        if way.compiled:
            peer.prepare(batches)
        entrants.append(Entrant(name, peer))
    for backend in BACKENDS:
        if backend.device not in ("nvidia", "rtx") or not backend.builder:
            continue
        for precision in PRECISIONS:
            name = f"{backend.name} {precision}"
            calibration = CalibrationSpec() if precision == "int8" else None
            spec = BuildSpec(backend=backend.name, precision=precision, batch=batch, calibration=calibration)
            inputs = BuildInputs(model, folder / name, calib=RANDOM if precision == "int8" else None)
            try:
                bundle = build(inputs, spec, Silent()).bundle
                entrants.append(Entrant(name, find_runner(backend.name)(bundle, 0)))
            except ResnetDeployError as error:
                failures[name] = error.message
    return Lineup(entrants, failures)


def agreement(lineup: Lineup, images: Any) -> dict[str, dict[str, float]]:
    """Hold every entrant's answers against those of the first, PyTorch in FP32."""
    first, *others = lineup.entrants
    expected, found = infer(first.runner, images), {}
    for entrant in others:
        difference = compare_logits(expected, infer(entrant.runner, images))
        sqnr_db = float(np.clip(difference.sqnr_db, -MOST_DECIBELS, MOST_DECIBELS))
        found[entrant.name] = {"agreement": difference.agreement, "sqnr_db": sqnr_db}
    return found


def enqueue_seconds(lineup: Lineup, images: Any) -> dict[str, float]:
    """Median time that ``enqueue`` keeps the host at batch 1, nothing under way; the library's own share included."""
    found = {}
    for entrant in lineup.entrants:
        runner, taken = entrant.runner, []
        for _ in range(ENQUEUES):
            runner.load(images[:1])
            runner.synchronize()
            start = time.perf_counter()
            runner.enqueue()
            taken.append(time.perf_counter() - start)
            runner.synchronize()
            runner.fetch()
        found[entrant.name] = statistics.median(taken)
    return found


def peak_of(gpu: str) -> float | None:
    """Operations per second of a GPU in FP16, by its name; None where it is not known."""
    words = gpu.upper().replace("-", " ").split()
    if "PCIE" in words or "NVL" in words:  # other clocks and power than the data sheet's SXM modules
        return None
    return next((rate for name, rate in PEAKS.items() if name in words), None)


def table(record: dict[str, Any]) -> list[str]:
    """Lines of a Markdown table: images per second at each batch size, and the share of the bound at the largest."""
    gpu = record["environment"]["gpu"]["gpus"][0]["name"]
    batches = sorted({one["batch"] for found in record["samples"].values() for one in found})
    peak = peak_of(gpu) if record["model"] == MODEL_OF_BOUND else None
    heads = ("", *(f"images/s, batch {batch}" for batch in batches), "of the bound", "enqueue, µs")
    lines = [heads, ("---",) * len(heads)]
    for name, found in record["samples"].items():
        rates = {one["batch"]: one["batch"] * len(one["seconds"]) / sum(one["seconds"]) for one in found}
        bound = None if peak is None else peak * (2 if name.endswith("int8") else 1) / record["flop_per_image"]
        share = f"{max(rates.values()) / bound:.1%}" if bound is not None and "fp32" not in name.lower() else NOTHING
        lines.append(
            (
                name,
                *(f"{rates[batch]:,.0f}" if batch in rates else NOTHING for batch in batches),
                share,
                f"{record['enqueue_seconds'][name] * 1e6:.1f}",
            )
        )
    lines += [(name, *[NOTHING] * len(batches), reason, NOTHING) for name, reason in record["failures"].items()]
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return [*rows, "", f"MLPerf's published figure for one H200, INT8, offline: {MLPERF_H200:,} images/s"]


if __name__ == "__main__":
    main()
