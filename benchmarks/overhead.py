"""What our own code costs, beside its bound: the command line's start, the harness, and the runner's share of a call.

    python benchmarks/overhead.py ENGINE

ENGINE is an ONNX Runtime bundle; the smaller the network, the larger the share of a call that could be ours. Prints a
table and writes what was measured to benchmarks/results/.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from resnet_deploy import environment
from resnet_deploy.batching import run_once
from resnet_deploy.bench import record_files
from resnet_deploy.bench.calls import host_call
from resnet_deploy.bench.loops import ClosedLoop, PacedLoop, take_turn
from resnet_deploy.bundle import open_bundle
from resnet_deploy.ort_session import open_session
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.runners.null import NullRunner
from resnet_deploy.runners.ort import OrtRunner
from resnet_deploy.specs import BatchRange, ModelCard, Preprocess

RESULTS = Path(__file__).parent / "results"
STARTS = 15
ROUNDS = 7
CALLS = 200
HARNESS_LIMIT_S = 2e-6
START_LIMIT_S = 0.3
RATE = 200.0

Rounds = dict[str, list[float]]


def start_seconds() -> Rounds:
    """Start processes and let them end: an interpreter that does nothing, the bare import, ``--help``."""
    commands = {
        "pass": [sys.executable, "-c", "pass"],
        "import": [sys.executable, "-c", "import resnet_deploy"],
        "help": [sys.executable, "-m", "resnet_deploy", "--help"],
    }
    taken: Rounds = {name: [] for name in commands}
    for _ in range(STARTS):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            taken[name].append(time.perf_counter() - start)
    return taken


def harness_seconds() -> Rounds:
    """Take the null runner, which answers at once, through the harness: what is left is the harness and the runner.

    Told apart by three loops: with a call inside the timer, with nothing inside, and the runner's steps without one.
    Medians per call of each round; where one is not timed by itself, means.
    """
    contract = Preprocess()
    card = ModelCard(architecture="resnet50", num_classes=1000, weights="none", weights_sha256="", preprocess=contract)
    runner, feed = NullRunner(card, BatchRange(1, 1, 1)), synthetic_images(contract, 1)
    call = host_call(runner, feed)
    taken: Rounds = {name: [] for name in ("call", "loop", "timer", "steps", "paced")}
    for _ in range(ROUNDS):
        turn = take_turn([call], ClosedLoop(1.0))
        taken["call"].append(statistics.median(turn.seconds))
        taken["loop"].append(turn.wall_s / len(turn.seconds))
        taken["timer"].append(statistics.median(take_turn([time_nothing], ClosedLoop(1.0)).seconds))
        taken["steps"].append(untimed_s(lambda: run_once(runner, feed)))
        taken["paced"].append(statistics.median(take_turn([call], PacedLoop(1.0, RATE)).seconds))
    return taken


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


def runner_seconds(path: Path) -> Rounds:
    """Call through the runner and a bare session, in turns in one process; medians of each round."""
    bundle = open_bundle(path)
    card = bundle.manifest.card
    feed = synthetic_images(card.preprocess, 1)
    session = open_session(bundle.engine_path, threads=1)
    runner = OrtRunner(bundle.engine_path, card, bundle.manifest.spec.batch, threads=1)
    calls: dict[str, Callable[[], object]] = {
        "session": lambda: session.run(["logits"], {"images": feed}),
        "runner": lambda: run_once(runner, feed),
    }
    taken: Rounds = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            taken[name].append(median_call_s(call))
    runner.close()
    return taken


def median_call_s(call: Callable[[], object]) -> float:
    """Median time of a call."""
    taken = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def table(record: dict[str, Any]) -> list[str]:
    """Lines of a Markdown table; of rounds the fastest and, in brackets, the median."""
    start, harness, runner = record["start"], record["harness"], record["runner"]
    shares = np.array(runner["runner"]) / np.array(runner["session"])
    share = f"{np.median(shares):.3f} times, {shares.min():.3f} to {shares.max():.3f} in {len(shares)} rounds"
    limits = f"the limit is {START_LIMIT_S * 1e3:.0f} ms", f"the limit is {HARNESS_LIMIT_S * 1e6:.0f} µs"
    rows = [
        ("`import resnet_deploy`", ms(start["import"]), f"{ms(start['pass'])}, `python -c pass`"),
        ("`resnet-deploy --help`", ms(start["help"]), limits[0]),
        ("harness and `null` runner, within a call", us(harness["call"]), limits[1]),
        ("· of that, the timer", us(harness["timer"]), "two readings of the clock"),
        ("· and the runner's steps", us(harness["steps"]), "untimed; one function call more"),
        ("harness, from call to call", us(harness["loop"]), "in no latency"),
        (f"at {RATE:.0f} calls/s, from when a call was due", us(harness["paced"]), ""),
        (
            f"a call through `OrtRunner`, {record['engine']}, one thread",
            ms(runner["runner"]),
            f"{ms(runner['session'])}, `session.run`: {share}",
        ),
    ]
    return [f"| {' | '.join(cells)} |" for cells in (("", "measured", "bound"), ("---",) * 3, *rows)]


def ms(seconds: list[float]) -> str:
    """Write milliseconds of rounds."""
    return f"{min(seconds) * 1e3:.3g} ms ({statistics.median(seconds) * 1e3:.3g})"


def us(seconds: list[float]) -> str:
    """Write microseconds of rounds."""
    return f"{min(seconds) * 1e6:.2f} µs ({statistics.median(seconds) * 1e6:.2f})"


def main() -> None:
    """Measure, print a table, keep the record."""
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/overhead.py ENGINE")
    engine = Path(sys.argv[1])
    record = {
        "created": record_files.created_now(),
        "environment": msgspec.to_builtins(environment.collect()),
        "engine": engine.name,
        "start": start_seconds(),
        "harness": harness_seconds(),
        "runner": runner_seconds(engine),
    }
    path = RESULTS / f"overhead-{record_files.file_stamp(str(record['created']))}.json"
    record_files.write(record, path)
    print("\n".join(table(record)))
    print(f"record: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()
