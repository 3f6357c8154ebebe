"""What our own code costs, beside its bound: the command line's start, the harness's and the runner's share of a call.

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
from resnet_deploy.bench.calls import host_call
from resnet_deploy.bench.loops import ClosedLoop, PacedLoop, Turn, take_turn
from resnet_deploy.bundle import open_bundle
from resnet_deploy.ort_session import open_session
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.runners.null import NullRunner
from resnet_deploy.runners.ort import OrtRunner
from resnet_deploy.specs import BatchRange, ModelCard, Preprocess

STARTS = 15
ROUNDS = 7
CALLS = 200
HARNESS_LIMIT_S = 2e-6
RATE = 200.0


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


def print_harness() -> None:
    """Take the null runner, which answers at once, through the harness: what is left is the harness and the runner.

    Told apart by three loops: with a call inside the timer, with nothing inside, and the runner's steps without one.
    """
    contract = Preprocess()
    card = ModelCard(architecture="resnet50", num_classes=1000, weights="none", weights_sha256="", preprocess=contract)
    runner, feed = NullRunner(card, BatchRange(1, 1, 1)), synthetic_images(contract, 1)
    call = host_call(runner, feed)
    turns = [take_turn([call], ClosedLoop(1.0)) for _ in range(ROUNDS)]
    empty = [take_turn([time_nothing], ClosedLoop(1.0)) for _ in range(ROUNDS)]
    paced = [take_turn([call], PacedLoop(1.0, RATE)) for _ in range(ROUNDS)]
    steps = [untimed_s(lambda: run_once(runner, feed)) for _ in range(ROUNDS)]
    limit = f"the limit is {HARNESS_LIMIT_S * 1e6:.0f} us"
    print(f"null runner                  {in_timer(turns)} a call, which is in every latency; {limit}")
    print(f"  of that, the timer         {in_timer(empty)} between two readings of the clock")
    print(f"  and the runner's steps     {best(steps)} without a timer, and one function call more")
    print(f"null runner, with the loop   {best([one.wall_s / len(one.seconds) for one in turns])} from call to call")
    print(f"null runner, {RATE:.0f} calls/s     {in_timer(paced)} from when a call was due to its answer")


def time_nothing() -> float:
    """Read the clock twice."""
    start = time.perf_counter_ns()
    return (time.perf_counter_ns() - start) * 1e-9


def untimed_s(call: Callable[[], object]) -> float:
    """Mean time of a call that is not timed by itself."""
    start = time.perf_counter()
    for _ in range(10 * CALLS):
        call()
    return (time.perf_counter() - start) / (10 * CALLS)


def in_timer(turns: list[Turn]) -> str:
    """Write the medians of turns."""
    return best([statistics.median(turn.seconds) for turn in turns])


def best(seconds: list[float]) -> str:
    """Write the least and the median of the rounds."""
    return f"{min(seconds) * 1e6:6.2f} us (median of {len(seconds)} rounds {statistics.median(seconds) * 1e6:.2f})"


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
    print_harness()
    if len(sys.argv) > 1:
        print_runner(Path(sys.argv[1]))
