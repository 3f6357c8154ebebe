"""The C++ runtime beside Python's, on the same engine with the same threads, in turns.

    python benchmarks/cpp_throughput.py ENGINE... [-o RECORD.json] [--batches 1,8] [--threads 0] [--rounds 20]

ENGINE is an OpenVINO bundle whose input is uint8. Each side is a process of its own that opens the engine once; they
take turns in every round, and the one that begins changes from round to round. Both call their engine on prepared
images in host memory. Builds the C++ side with CMake, in release mode, in a temporary folder.
"""

import argparse
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from resnet_deploy import environment
from resnet_deploy.bench import record_files
from resnet_deploy.bench.intervals import Interval
from resnet_deploy.bench.pairs import speedup_interval
from resnet_deploy.bench.records import Samples
from resnet_deploy.bench.verdicts import LEVEL
from resnet_deploy.engine import load
from resnet_deploy.environment import Environment

SOURCES = Path(__file__).with_suffix("")
CMAKE_PACKAGE = Path(sys.modules["resnet_deploy"].__file__ or "").parent / "cpp" / "cmake"
TURN_S = 0.5

Turn = Callable[[int], list[float]]  # batch -> seconds of each call


class EngineTimes(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one engine at one batch size.

    Attributes:
        engine: Name of the bundle.
        cpp, python: Every call, by round.
    """

    engine: str
    cpp: Samples
    python: Samples

    @property
    def ratio(self) -> Interval:
        """Throughput in C++ over that in Python, of rounds taken in pairs, with a 95 % interval."""
        found = speedup_interval(self.python, self.cpp, LEVEL)
        assert found is not None
        return found


class CppRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What this script measured.

    Attributes:
        created: UTC time, ISO 8601.
        environment: The machine and its libraries.
        compiler: Of the C++ side.
        threads: CPU threads given to each side.
        times: By engine and batch size.
    """

    schema_version: int = 1
    created: str
    environment: Environment
    compiler: str
    threads: int
    times: tuple[EngineTimes, ...]


def build_program(folder: Path) -> Path:
    """Compile the C++ side."""
    tools = Path(sysconfig.get_path("scripts"))
    cmake = str(tools / "cmake") if (tools / "cmake").exists() else "cmake"
    options = (f"-Dresnet-deploy_DIR={CMAKE_PACKAGE}", f"-DRESNET_DEPLOY_SITE_PACKAGES={sysconfig.get_path('purelib')}")
    subprocess.run([cmake, "-S", SOURCES, "-B", folder, *options], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([cmake, "--build", folder], check=True, stdout=subprocess.DEVNULL)
    return folder / "turns"


def python_turn(engine: Path, threads: int) -> Turn:
    """Open an engine in this process; calls are timed as the C++ side times its own."""
    opened = load(engine, threads=threads)
    shape = opened.manifest.card.preprocess.shape

    def turn(batch: int) -> list[float]:
        images = np.random.default_rng(0).integers(0, 256, (batch, *shape), dtype=np.uint8)
        for _ in range(2):
            opened(images)
        taken = []
        begun = time.perf_counter()
        while time.perf_counter() - begun < TURN_S:
            start = time.perf_counter()
            opened(images)
            taken.append(time.perf_counter() - start)
        return taken

    return turn


def cpp_turn(process: "subprocess.Popen[str]") -> Turn:
    """Ask the C++ side for turns."""

    def turn(batch: int) -> list[float]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{batch} {TURN_S}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            sys.exit("the C++ side has ended; what it said is above")
        return msgspec.json.decode(line, type=list[float])

    return turn


def take_turns(turns: dict[str, Turn], batch: int, rounds: int) -> dict[str, Samples]:
    """Let both sides call, one after the other, so many times."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    numbers: dict[str, list[int]] = {name: [] for name in turns}
    for number in range(rounds):
        for name in sorted(turns, reverse=number % 2 == 1):
            taken = turns[name](batch)
            seconds[name] += taken
            numbers[name] += [number] * len(taken)
    return {
        name: Samples(batch=batch, scope="host", seconds=tuple(seconds[name]), rounds=tuple(numbers[name]))
        for name in turns
    }


def measure(arguments: argparse.Namespace, program: Path) -> CppRecord:
    """Time every engine at every batch size."""
    threads = arguments.threads or environment.compute_threads()
    times = []
    for engine in arguments.engines:
        command = [program, engine, str(threads)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            turns = {"cpp": cpp_turn(process), "python": python_turn(engine, threads)}
            for batch in arguments.batches:
                samples = take_turns(turns, batch, arguments.rounds)
                times.append(EngineTimes(engine=engine.name, **samples))
            process.stdin.close()
    compiler = subprocess.run(["c++", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return CppRecord(
        created=record_files.created_now(),
        environment=environment.collect(),
        compiler=compiler,
        threads=threads,
        times=tuple(times),
    )


def table(record: CppRecord) -> list[str]:
    """Lines of a Markdown table."""
    lines = [("engine", "batch", "Python, ms/call", "C++, ms/call", "C++ over Python"), ("---",) * 5]
    for one in record.times:
        ratio = f"{one.ratio.value:.3f} ({one.ratio.low:.3f} to {one.ratio.high:.3f})"
        medians = (f"{np.median(samples.seconds) * 1e3:.2f}" for samples in (one.python, one.cpp))
        lines.append((one.engine, str(one.cpp.batch), *medians, ratio))
    return [f"| {' | '.join(line)} |" for line in lines]


def main() -> None:
    """Measure, print, and write the record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--batches", type=lambda text: [int(one) for one in text.split(",")], default=[1, 8])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = measure(arguments, build_program(Path(folder)))
    print("\n".join(table(record)))
    if arguments.output is not None:
        record_files.write(record, arguments.output)


if __name__ == "__main__":
    main()
