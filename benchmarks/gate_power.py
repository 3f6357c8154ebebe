"""How often `resnet-deploy compare` calls a slowdown, and how often it calls one where there is none.

    python benchmarks/gate_power.py RECORD.json [RECORD.json ...]
    python benchmarks/gate_power.py --live ENGINE [ENGINE ...] [--pairs 3]

On recorded noise: two runs are drawn from the rounds of records of `bench`, whole rounds at a time, the same for all
engines, and none twice: a few rounds drawn again and again would look steadier than they are. From one record, the
two runs share no round; from two, each has the rounds of its own, so that what differs between real runs is in it too.
A repetition compares the runs as they are, and once more with every call of one engine, each in turn, made longer.
Caught: the engine that was slowed is called a regression. False alarm: an engine of the unchanged run is.

Live: `bench` runs ENGINE (ONNX Runtime bundles) and PyTorch for real, again and again: as a baseline, unchanged, and
with a runner that spins for a share of what each call took.

Prints a table and writes it with its samples' origin into benchmarks/results/.
"""

import argparse
import itertools
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np

from resnet_deploy import environment
from resnet_deploy.bench import record_files
from resnet_deploy.bench.compare import CompareSpec, compare
from resnet_deploy.bench.comparison import Comparison
from resnet_deploy.bench.records import BenchRecord, EngineRecord, Samples, read_record
from resnet_deploy.pipeline.benchmarking import BenchInputs, BenchSpec, bench
from resnet_deploy.protocols import Silent
from resnet_deploy.runners.ort import OrtRunner

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """How one pair of noises fared.

    Attributes:
        old, new: Where the rounds of each run came from.
        rounds: Of each run.
        repetitions: Comparisons of either kind.
        caught: Slowdowns that were called.
        false_alarms: Unchanged runs that were called slower.
    """

    old: str
    new: str
    rounds: int
    repetitions: int
    caught: int
    false_alarms: int


def on_recorded_noise(paths: list[Path], rounds: int, repetitions: int, slowdown: float) -> list[Row]:
    """Resample every record against itself, and every two of one kind against each other."""
    records = {path.name: read_record(path) for path in paths}
    rows = []
    for old, new in itertools.product(records, repeat=2):
        rng = np.random.default_rng(0)
        caught = alarms = 0
        for number in range(repetitions):
            before, after = _two_runs((records[old], records[new]), rounds, rng)
            unchanged = _compare(before, after)
            victim = unchanged.engines[number % len(unchanged.engines)].new
            alarms += bool(_slower(unchanged))
            caught += victim in _slower(_compare(before, slowed(after, victim, slowdown)))
        rows.append(Row(old, new, rounds, repetitions, caught, alarms))
    return rows


def _two_runs(records: tuple[BenchRecord, BenchRecord], rounds: int, rng: np.random.Generator) -> list[BenchRecord]:
    """Draw two runs of so many rounds, which share no round that was measured."""
    pools = [rng.permutation(_rounds_of_all(record)) for record in records]
    if records[0] is records[1]:
        pools = [pools[0][:rounds], pools[0][rounds:]]
    if min(map(len, pools)) < rounds:
        raise SystemExit(f"too few rounds in the records for runs of {rounds}: run `bench` with --rounds {2 * rounds}")
    return [_drawn(record, pool[:rounds]) for record, pool in zip(records, pools, strict=True)]


def _rounds_of_all(record: BenchRecord) -> np.ndarray:
    """Rounds that every engine has in every way of calling it."""
    found = [set(samples.rounds) for engine in record.engines for samples in engine.latency]
    return np.array(sorted(set.intersection(*found)))


def _drawn(record: BenchRecord, picks: np.ndarray) -> BenchRecord:
    """Make a run of the rounds that were picked, numbered anew."""

    def of_engine(engine: EngineRecord) -> EngineRecord:
        return msgspec.structs.replace(engine, latency=tuple(_drawn_samples(one, picks) for one in engine.latency))

    return msgspec.structs.replace(record, engines=tuple(map(of_engine, record.engines)))


def _drawn_samples(samples: Samples, picks: np.ndarray) -> Samples:
    seconds, rounds = np.asarray(samples.seconds), np.asarray(samples.rounds)
    parts = [seconds[rounds == pick] for pick in picks]
    walls = dict(zip(np.unique(rounds), samples.wall, strict=False))
    return msgspec.structs.replace(
        samples,
        seconds=tuple(np.concatenate(parts).tolist()),
        rounds=tuple(number for number, part in enumerate(parts) for _ in part),
        wall=tuple(walls[pick] for pick in picks) if walls else (),
    )


def slowed(record: BenchRecord, name: str, slowdown: float) -> BenchRecord:
    """Make every call of one engine longer by a share."""

    def longer(samples: Samples) -> Samples:
        seconds, wall = (tuple(value * (1 + slowdown) for value in times) for times in (samples.seconds, samples.wall))
        return msgspec.structs.replace(samples, seconds=seconds, wall=wall)

    engines = (
        msgspec.structs.replace(one, latency=tuple(map(longer, one.latency))) if one.name == name else one
        for one in record.engines
    )
    return msgspec.structs.replace(record, engines=tuple(engines))


def live(engines: list[Path], spec: BenchSpec, pairs: int, slowdown: float) -> list[Row]:
    """Measure baseline, unchanged and slowed in turn; compare the later two with the first."""
    caught = alarms = 0
    for number in range(pairs):
        baseline, unchanged = _measure(engines, spec), _measure(engines, spec)
        with mock.patch.object(OrtRunner, "enqueue", spinning(slowdown)):
            later = _measure(engines, spec)
        found = [_compare(baseline, unchanged), _compare(baseline, later)]
        alarms += bool(found[0].regressions)
        caught += len(found[1].regressions) == len(engines)
        for what, one in zip(("unchanged", "slowed"), found, strict=True):
            ratios = [f"{way.p50.value:.3f}" for engine in one.engines for way in engine.ways]
            control = "" if one.control.moved is None else f"{one.control.name} {one.control.moved.value:.3f}; "
            called = "; ".join(one.regressions) or "no regression"
            print(f"pair {number + 1}, {what}: {control}relative p50 {', '.join(ratios)}; {called}")
    return [Row("live", "live", spec.rounds, pairs, caught, alarms)]


def spinning(slowdown: float):  # noqa: ANN201 - a method for OrtRunner
    """Make an ``enqueue`` that keeps the processor for a share longer than the real one took."""
    original = OrtRunner.enqueue

    def enqueue(self: OrtRunner) -> None:
        start = time.perf_counter()
        original(self)
        end = start + (time.perf_counter() - start) * (1 + slowdown)
        while time.perf_counter() < end:
            pass

    return enqueue


def _measure(engines: list[Path], spec: BenchSpec) -> BenchRecord:
    return bench(BenchInputs(engines=tuple(engines)), spec, threads=0, progress=Silent())


def _compare(old: BenchRecord, new: BenchRecord) -> Comparison:
    # Records of different commits may differ in libraries that were installed and not used.
    return compare(old, new, CompareSpec(anyway=True))


def _slower(comparison: Comparison) -> list[str]:
    return [engine.new for engine in comparison.engines if any(way.regression for way in engine.ways)]


def table(record: dict[str, Any]) -> list[str]:
    """Lines of a Markdown table."""
    slowdown = f"caught at {record['asked']['slowdown']:g} %"
    lines = [("run 1 of", "run 2 of", "rounds", slowdown, "false alarms"), ("---",) * 5]
    for row in record["rows"]:
        counts = (f"{row[what]} of {row['repetitions']}" for what in ("caught", "false_alarms"))
        lines.append((row["old"], row["new"], str(row["rounds"]), *counts))
    return [f"| {' | '.join(line)} |" for line in lines]


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = BenchSpec()
    parser.add_argument("paths", nargs="+", type=Path, metavar="RECORD|ENGINE")
    parser.add_argument("--live", action="store_true", help="measure ENGINEs instead of resampling RECORDs")
    parser.add_argument("--slowdown", type=float, default=5.0, help="percent")
    parser.add_argument("--rounds", type=int, default=defaults.rounds)
    parser.add_argument("--repetitions", type=int, default=100, help="on recorded noise")
    parser.add_argument("--pairs", type=int, default=3, help="live")
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="live")
    parser.add_argument("--batches", default="1,8", help="live")
    arguments = parser.parse_args()
    slowdown = arguments.slowdown / 100
    if arguments.live:
        batches = tuple(map(int, arguments.batches.split(",")))
        spec = BenchSpec(batches=batches, seconds=arguments.seconds, rounds=arguments.rounds)
        rows = live(arguments.paths, spec, arguments.pairs, slowdown)
    else:
        rows = on_recorded_noise(arguments.paths, arguments.rounds, arguments.repetitions, slowdown)
    asked = {name: value for name, value in vars(arguments).items() if name != "paths"}
    record = {
        "created": record_files.created_now(),
        "asked": asked | {"paths": [path.name for path in arguments.paths]},
        "environment": msgspec.to_builtins(environment.collect()),
        "rows": [asdict(row) for row in rows],
    }
    path = RESULTS / f"gate-power-{record_files.file_stamp(str(record['created']))}.json"
    record_files.write(record, path)
    print("\n".join(table(record)))
    print(f"record: {path}")


if __name__ == "__main__":
    main()
