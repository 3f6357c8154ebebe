"""What calibration costs and what the INT8 model is then worth, beside ONNX Runtime's own tool and NNCF.

    pip install nncf
    python benchmarks/calibration.py MODEL.onnx [--calib DIR] [--data DIR] [--images N] [--rounds N]

Every arm takes the same prepared images to a quantized model, each in a process of its own, in turns. Then all models
answer the images of --data in one run, and are timed in turns. Writes every figure to benchmarks/results/.
"""

import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from calibration_arms import ARMS
from numpy.typing import NDArray

from resnet_deploy import environment
from resnet_deploy.batching import infer
from resnet_deploy.bench.calls import Feeds
from resnet_deploy.bench.measure import measure_in_turns
from resnet_deploy.bench.ways import Entrant
from resnet_deploy.bench_spec import BenchSpec
from resnet_deploy.cli.terminal import TerminalProgress
from resnet_deploy.datasets import BatchReader, find_dataset, find_images
from resnet_deploy.pipeline.source import read_source
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.runners.ort import OrtRunner
from resnet_deploy.specs import BatchRange, ModelCard
from resnet_deploy.verify import best_classes, compare_logits

RESULTS = Path(__file__).parent / "results"
FP32 = "fp32"
EQUAL_DB = 200.0  # what no two networks share but one with itself
NOTHING = "–"  # noqa: RUF001 - the dash that stands for an empty cell
PATH = click.Path(path_type=Path, exists=True)


@click.command()
@click.argument("model", type=PATH)
@click.option("--calib", type=PATH, help="Images to calibrate on.  [default: synthetic ones]")
@click.option("--data", type=PATH, help="Labelled images to measure the accuracy on.")
@click.option("--images", default=32, show_default=True, help="How many to calibrate on.")
@click.option("--rounds", default=3, show_default=True, help="Turns for each arm.")
def main(model: Path, calib: Path | None, data: Path | None, images: int, rounds: int) -> None:
    """Measure, print a table, keep the record."""
    card, progress = read_source(model).card, TerminalProgress()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        np.save(work / "images.npy", calibration_images(card, calib, images))
        turns = [name for number in range(rounds) for name in random.Random(number).sample(list(ARMS), len(ARMS))]
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
        for name in progress.track(turns, "quantizing", len(turns)):
            taken[name].append(run_arm(name, model, work))
        rows = {name: {"runs": runs} for name, runs in taken.items()}
        compare(model, card, data, work, rows)
    record = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": msgspec.to_builtins(environment.collect()),
        "versions": {name: environment.installed_version(name) for name in ("onnxruntime", "nncf", "onnx")},
        "model": {"architecture": card.architecture, "weights": card.weights, "image_size": card.preprocess.image_size},
        "calibration_images": images,
        "data": data.name if data else "",
        "arms": rows,
    }
    stamp = str(record["created"])[:19].replace(":", "").replace("-", "") + "Z"
    path = RESULTS / f"calibration-{card.architecture}-{card.preprocess.image_size}-{stamp}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    click.echo("\n".join(table(rows, images)))
    click.echo(f"record: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def calibration_images(card: ModelCard, folder: Path | None, count: int) -> NDArray[np.generic]:
    """Prepare the images once for all arms."""
    if folder is None:
        return synthetic_images(card.preprocess, count)
    reader = BatchReader(find_images(folder).subset(count), card.preprocess, 32)
    return np.concatenate([batch.images for batch in reader])


def run_arm(name: str, model: Path, work: Path) -> dict[str, float]:
    """Run one arm in a fresh process; return seconds and peak memory."""
    script = Path(__file__).with_name("calibration_arms.py")
    command = [sys.executable, "-W", "ignore", script, name, model, work / "images.npy", work / f"{name}.onnx"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(model: Path, card: ModelCard, data: Path | None, work: Path, rows: dict[str, Any]) -> None:
    """Add to ``rows`` what the quantized models answer and how fast, beside the FP32 model."""
    files = {name: work / f"{name}.onnx" for name in rows if (work / f"{name}.onnx").exists()}
    threads, batch = environment.compute_threads(), BatchRange(1, 1, 32)
    runners = {name: OrtRunner(path, card, batch, threads=threads) for name, path in files.items()}
    rows[FP32] = {"runs": []}
    runners[FP32] = OrtRunner(model, card, batch, threads=threads)
    feed = synthetic_images(card.preprocess, 8, seed=1)
    if data is not None:
        dataset = find_dataset(data, card)
        feed = np.concatenate([batch.images for batch in BatchReader(dataset, card.preprocess, 32)])
        expected = infer(runners[FP32], feed)
        for name, runner in runners.items():
            logits = infer(runner, feed)
            if name != FP32:
                difference = compare_logits(expected, logits)
                rows[name] |= {"agreement": difference.agreement, "sqnr_db": difference.sqnr_db}
            if dataset.labels:
                rows[name]["top1"] = float((best_classes(logits, 1)[:, 0] == np.array(dataset.labels)).mean())
    entrants = [Entrant(name, runner) for name, runner in runners.items()]
    spec = BenchSpec(batches=(1,), seconds=10.0, rounds=10)
    for name, samples in measure_in_turns(entrants, Feeds(feed[:1]), spec, TerminalProgress()).items():
        rows[name]["latency_s"] = samples[0].seconds


def table(rows: dict[str, Any], images: int) -> list[str]:
    """Lines of a Markdown table of medians; columns that no row has are left out."""
    names = ("", "s per image", "of plain inference", "peak memory, MB")
    names += ("top-1 %", "agreement %", "SQNR dB", "ms, batch 1")
    lines = [[name, *cells(row, images, rows["plain inference"]["runs"])] for name, row in rows.items()]
    kept = [index for index in range(len(names)) if any(line[index] != NOTHING for line in lines)]
    marks = [["---"] * len(names), *lines]
    return [f"| {' | '.join(line[index] for index in kept)} |" for line in (names, *marks)]


def median_seconds(row: dict[str, Any]) -> float:
    """Median time of an arm, for all images."""
    return statistics.median(run["seconds"] for run in row["runs"])


def cells(row: dict[str, Any], images: int, plain: list[dict[str, float]]) -> list[str]:
    """One arm's figures, or what stands for those that it has not."""
    runs = row["runs"]
    seconds = median_seconds(row) if runs else math.nan
    bound = statistics.median(run["seconds"] for run in plain)
    peak = max((run["peak_bytes"] for run in runs), default=math.nan)
    latency = statistics.median(row["latency_s"]) if "latency_s" in row else math.nan
    shares = [f"{100 * row.get(key, math.nan):.2f}" for key in ("top1", "agreement")]
    sqnr = f"{row.get('sqnr_db', math.nan):.1f}" if row.get("sqnr_db", 0) < EQUAL_DB else NOTHING
    figures = [f"{seconds / images:.3f}", f"{seconds / bound:.1f}", f"{peak / 1e6:,.0f}"]
    figures += [*shares, sqnr, f"{latency * 1e3:.2f}"]
    return [NOTHING if figure == "nan" else figure for figure in figures]


if __name__ == "__main__":
    main()
