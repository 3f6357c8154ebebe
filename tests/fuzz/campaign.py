"""Fuzz the readers, guided by coverage; see README.md for how to run it.

Each target runs in a process of its own, forked from one that has loaded everything, and is started again where a
reader brings it down. Findings are counted by what happened and where, and do not stop it.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import atheris
import msgspec

INSTRUMENTED = ["resnet_deploy", "PIL", "zipfile", "tomllib", "csv"]  # all of PyTorch would take minutes
with atheris.instrument_imports(include=INSTRUMENTED):
    from fuzz_harness import Target, judge
    from fuzz_mutators import mutate
    from fuzz_targets import TARGETS

    from resnet_deploy.environment import collect
    from resnet_deploy.version import __version__

    for _target in TARGETS:  # what a reader imports when it is called is instrumented here, too
        with tempfile.TemporaryDirectory() as _name:
            _target.prepare(Path(_name))
            for _seed in _target.seeds():
                judge(_target, _target.repair(_seed), Path(_name))

RESULTS = Path(__file__).with_name("campaign.json")
SECONDS_PER_INPUT = 60  # of the clock, where a reader hangs in C and no signal reaches Python
MEBIBYTES = 4096  # beyond which libFuzzer ends the process
MOST_DEATHS = 20
SCHEMA_VERSION = 1  # of a row of the record; the first ones have none, nor the environment
_COUNT_BYTES = 8


def fuzz(target: Target, minutes: float, keep: Path) -> dict[str, object]:
    """Fuzz one target in processes of its own; say what came of it."""
    work = keep / target.name.replace(" ", "-").replace(",", "")
    for folder in (work / "place", work / "corpus"):
        folder.mkdir(parents=True)
    target.prepare(work / "place")
    for number, seed in enumerate(target.seeds()):
        (work / "corpus" / f"seed{number}").write_bytes(target.repair(seed))
    (work / "state.json").write_text(json.dumps({"findings": {}}))
    (work / "inputs").write_bytes(bytes(_COUNT_BYTES))
    end, cpu_s, deaths = time.monotonic() + minutes * 60, 0.0, []
    while time.monotonic() < end - 1 and len(deaths) < MOST_DEATHS:
        child = os.fork()
        if not child:
            _fuzz_in_child(target, end, work)
        _, status, usage = os.wait4(child, 0)
        cpu_s += usage.ru_utime + usage.ru_stime
        if status:
            deaths.append(_cause_of_death(status, work, len(deaths)))
    state = json.loads((work / "state.json").read_text())
    return {
        "target": target.name,
        "minutes": round(minutes, 2),
        "cpu_s": round(cpu_s, 1),
        "inputs": int.from_bytes((work / "inputs").read_bytes(), "little"),
        **state,
        "features": _features(work / "log.txt"),
        "deaths": deaths,
    }


def _fuzz_in_child(target: Target, end: float, work: Path) -> None:
    """Fuzz until ``end``, writing down findings as they are made; ends the process."""
    log = os.open(work / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    file, seeds = work / "state.json", target.seeds()
    state = json.loads(file.read_text())
    counter = os.open(work / "inputs", os.O_RDWR)

    def count_one() -> None:
        """Count before reading: an input that ends the process is one, too."""
        inputs = int.from_bytes(os.pread(counter, _COUNT_BYTES, 0), "little") + 1
        os.pwrite(counter, inputs.to_bytes(_COUNT_BYTES, "little"), 0)

    def read_one(data: bytes) -> None:
        data = target.repair(data)
        (work / "last").write_bytes(data)
        count_one()
        fault = judge(target, data, work / "place")
        if fault:
            if fault not in state["findings"]:
                (work / f"finding{len(state['findings'])}").write_bytes(data)
            state["findings"][fault] = state["findings"].get(fault, 0) + 1
            file.write_text(json.dumps(state))
        if time.monotonic() > end:
            os._exit(0)

    def change(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.2:
            return atheris.Mutate(data, most)
        # Readers in C show no coverage, for which libFuzzer would keep the shortest inputs alone.
        return mutate(rng.choice(seeds) if rng.random() < 0.5 else bytes(data), rng)[:most]

    options = [f"-timeout={SECONDS_PER_INPUT}", f"-rss_limit_mb={MEBIBYTES}", "-max_len=200000", "-len_control=0"]
    options += [f"-artifact_prefix={work}/", "-report_slow_units=100000"]
    atheris.Setup([sys.argv[0], *options, str(work / "corpus")], read_one, custom_mutator=change)
    atheris.Fuzz()
    os._exit(0)


def _cause_of_death(status: int, work: Path, number: int) -> str:
    """Say how a process ended, and keep the input that it ended at."""
    with contextlib.suppress(FileNotFoundError):
        (work / "last").replace(work / f"death{number}")
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    errors = [line for line in _words(work / "log.txt") if "ERROR: libFuzzer" in line]
    return errors[-1].partition("ERROR: ")[2] if errors else f"exit status {os.WEXITSTATUS(status)}"


def _features(log: Path) -> int:
    """Most features of coverage that libFuzzer counted."""
    return max((int(line.split(" ft: ")[1].split()[0]) for line in _words(log) if " ft: " in line), default=0)


def _words(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines() if log.exists() else []


def as_table(runs: list[dict[str, object]]) -> str:
    """Sum runs up by target, as Markdown."""
    lines = ["| target | inputs | minutes | CPU s | features | findings |", "|---|---:|---:|---:|---:|---:|"]
    for name in (*(target.name for target in TARGETS), ""):
        mine = [one for one in runs if name in ("", one["target"])]
        inputs, minutes, cpu_s = (sum(one[key] for one in mine) for key in ("inputs", "minutes", "cpu_s"))
        features = max((one["features"] for one in mine), default=0) if name else ""
        found = {fault for one in mine for fault in (*one["findings"], *one["deaths"])}
        lines.append(
            f"| {name or 'together'} | {inputs:,} | {minutes:.1f} | {cpu_s:.0f} | {features} | {len(found) or ''} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Fuzz the targets that were asked for, one after another, and add what came of it to the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help="parts of their names; all by default")
    parser.add_argument("--minutes", type=float, default=1.0, help="of the clock, for each target")
    parser.add_argument("--keep", type=Path, help="a new folder for corpora and inputs with a finding")
    parser.add_argument("--output", type=Path, default=RESULTS)
    asked = parser.parse_args()
    keep = asked.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    for target in TARGETS:
        if asked.targets and not any(part in target.name for part in asked.targets):
            continue
        begun = datetime.now(timezone.utc).isoformat(timespec="seconds")
        about = {"schema_version": SCHEMA_VERSION, "version": __version__, "begun": begun}
        about["environment"] = msgspec.to_builtins(collect())
        result = about | fuzz(target, asked.minutes, keep)
        print(json.dumps(result), flush=True)
        known = json.loads(asked.output.read_text()) if asked.output.exists() else []
        asked.output.write_text("[\n" + ",\n".join(map(json.dumps, [*known, result])) + "\n]\n")
    print(as_table(json.loads(asked.output.read_text())))
    print(f"inputs with a finding are under {keep}")


if __name__ == "__main__":
    main()
