"""What our own code costs, beside its bound: the command line's start, and the runner's share of a call.

    python benchmarks/overhead.py [ENGINE]

ENGINE is an ONNX Runtime bundle; the smaller the network, the larger the share of a call that could be ours.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resnet_deploy.batching import run_once
from resnet_deploy.bundle import open_bundle
from resnet_deploy.ort_session import open_session
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.runners.ort import OrtRunner

STARTS = 15
ROUNDS = 7
CALLS = 200


def median_start_s(arguments: list[str]) -> float:
    """Median wall time of starting a process and letting it end."""
    taken = []
    for _ in range(STARTS):
        start = time.perf_counter()
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def print_start() -> None:
    """Compare ``--help`` and the bare import with an interpreter that does nothing."""
    bare = median_start_s([sys.executable, "-c", "pass"])
    imported = median_start_s([sys.executable, "-c", "import resnet_deploy"])
    helped = median_start_s([sys.executable, "-m", "resnet_deploy", "--help"])
    print(f"python -c pass               {bare * 1e3:6.1f} ms   the bound")
    print(f"import resnet_deploy         {imported * 1e3:6.1f} ms   {imported / bare:.2f} x the bound")
    print(f"resnet-deploy --help         {helped * 1e3:6.1f} ms   {helped / bare:.2f} x the bound; the limit is 300 ms")


def print_runner(path: Path) -> None:
    """Compare a call through the runner with a bare session's, alternating in one process."""
    bundle = open_bundle(path)
    card = bundle.manifest.card
    feed = synthetic_images(card.preprocess, 1)
    session = open_session(bundle.engine_path, threads=1)
    runner = OrtRunner(bundle.engine_path, card, bundle.manifest.spec.batch, threads=1)
    calls: dict[str, Callable[[], object]] = {
        "session.run": lambda: session.run(["logits"], {"images": feed}),
        "runner": lambda: run_once(runner, feed),
    }
    medians: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            medians[name].append(median_call_s(call))
    ratios = np.array(medians["runner"]) / np.array(medians["session.run"])
    print(f"session.run, batch 1         {min(medians['session.run']) * 1e3:6.3f} ms   the bound")
    print(
        f"OrtRunner, batch 1           {min(medians['runner']) * 1e3:6.3f} ms   {np.median(ratios):.3f} x the bound "
        f"({ratios.min():.3f} to {ratios.max():.3f} in {ROUNDS} rounds)"
    )
    runner.close()


def median_call_s(call: Callable[[], object]) -> float:
    """Median time of a call."""
    taken = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    print_start()
    if len(sys.argv) > 1:
        print_runner(Path(sys.argv[1]))
