"""Long mixed load on one engine: wrong answers, memory that grows, handles that are left, latency that drifts.

    python benchmarks/soak.py ENGINE... [--minutes 30] [--window 5] [--workers 6] [--library FILE] [-o FILE]

A process for each engine, one after the other, loads it once. Threads then make requests of all kinds, in random order:
direct calls with arrays of any number of images, with `out`, with tensors of PyTorch, with files; `submit`, some of it
cancelled, with deadlines that pass, with more images than may wait, from event loops; what has to be refused; and a
second engine of the same bundle that is loaded, called and closed meanwhile. With `--library libresnet_deploy_c.so`
(see examples/ctypes), OpenVINO bundles are called through the C library too.

Every answer is held against that of the image alone. After each window of load the threads rest, and what the process
holds is read. What is called growth, and what drift, is said in `soak_verdicts.py`. The exit code is 1 if there was
any, or an answer was wrong, or the process died or hung.

Writes all windows to benchmarks/results/ unless told otherwise; after each window, so that what ends early is kept.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from soak_records import Load, Opening, Soak, SoakRecord, Window
from soak_verdicts import FEWEST, Finding, Findings, after_warm_up, judge, thirds, words

from resnet_deploy import engine, environment
from resnet_deploy.bench import record_files
from resnet_deploy.bundle import open_bundle
from resnet_deploy.errors import ResnetDeployError

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MIB = 1 << 20


def soak(load: Load) -> Iterator[Soak]:
    """Load one engine in a process of its own, and yield what it has told so far: after each window, and at its end."""
    manifest = open_bundle(Path(load.engine)).manifest
    command = [sys.executable, str(HERE / "soak_child.py"), msgspec.json.encode(load).decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            opening = _opening(child.stdout, load)
            so_far = Soak(
                name=manifest.name,
                backend=manifest.spec.backend,
                precision=manifest.spec.precision,
                load=msgspec.structs.replace(load, engine=manifest.name, library=Path(load.library).name),
                opening=opening,
                windows=(),
            )
            for window in _windows(child.stdout):
                windows = (*so_far.windows, window)
                so_far = msgspec.structs.replace(so_far, windows=windows, end=_end("cut off", load, len(windows)))
                yield so_far
        except BaseException:
            child.kill()
            raise
        code = child.wait()
    is_whole = code == 0 and len(so_far.windows) == load.windows
    end = "" if is_whole else _end(f"exit code {code}", load, len(so_far.windows))
    yield msgspec.structs.replace(so_far, end=end)


def _opening(lines: Iterator[str], load: Load) -> Opening:
    first = next(lines, "")
    if not first:
        raise SystemExit(f"{load.engine} could not be opened")
    return msgspec.json.decode(first, type=Opening)


def _end(how: str, load: Load, windows: int) -> str:
    return f"{how} after {windows} of {load.windows} windows"


def _windows(lines: Iterator[str]) -> Iterator[Window]:
    for line in lines:
        try:
            window = msgspec.json.decode(line, type=Window)
        except msgspec.DecodeError:  # a process that dies may do so in the midst of one
            print(f"not a window: {line.strip()[:200]}", file=sys.stderr)
            continue
        private = window.reading.private / MIB
        print(f"{window.start + window.seconds:.0f} s, {private:.0f} MiB", end="\r", file=sys.stderr, flush=True)
        for text in window.wrong:
            print(f"in the {window.seconds:.0f} s from {window.start:.0f} s on: {text}", file=sys.stderr)
        yield window


def table(record: SoakRecord) -> list[str]:
    """Lines of a Markdown table: a column for each engine."""
    columns = [column(one, judge(one)) for one in record.soaks]
    lines = [("", *(one.name for one in record.soaks)), ("---",) * (len(columns) + 1)]
    lines += [(name, *(one.get(name, "") for one in columns)) for name in dict.fromkeys(k for c in columns for k in c)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def column(one: Soak, findings: Findings) -> dict[str, str]:
    """What is told of one engine, by row."""
    windows = after_warm_up(one.windows)
    minutes = sum(window.seconds for window in one.windows) / 60
    requests = sum(times.count for window in one.windows for times in window.times.values())
    images = sum(times.images for window in one.windows for times in window.times.values())
    told = {
        "minutes of load": f"{minutes:.1f}",
        "requests, images": f"{requests:,}, {images:,}",
        "wrong answers": f"{findings.wrong}",
        "largest difference of a logit, allowed": (
            f"{max((window.worst for window in one.windows), default=0):.2g}, {one.opening.tolerance:.2g}"
        ),
    }
    share = sum(times.count for window in windows for times in window.times.values())
    told |= {_NAMES[found.what]: _amount(found, share) for found in findings.amounts}
    told |= {f"{found.what}, first and last third": _handles(found) for found in findings.handles}
    told |= {f"{found.what}, last third against first": _slowing(found) for found in findings.latency}
    told |= {f"p99 of {kind}, first and last third": _p99(windows, kind) for kind in ("call", "submit")}
    told["verdict"] = "; ".join(words(findings))
    return told


_NAMES = {
    "private": "private memory, growth",
    "heap": "heap in use, growth",
    "objects": "Python's objects, growth",
    "blocks": "Python's blocks, growth",
}


def _amount(found: Finding, requests: int) -> str:
    change = found.change
    if found.what in {"objects", "blocks"}:
        return f"{change.value:+,.0f} ({change.low:+,.0f} to {change.high:+,.0f}) of {found.level:,.0f}"
    value, low, high, level = (size / MIB for size in (change.value, change.low, change.high, found.level))
    bound = f"at most {max(change.high, 0) / requests:,.0f} bytes a request"
    return f"{value:+.2f} MiB ({low:+.2f} to {high:+.2f}) of {level:.0f}; {bound}"


def _handles(found: Finding) -> str:
    return f"{found.level:g}, {found.level + found.change.value:g}"


def _slowing(found: Finding) -> str:
    change = found.change
    return f"{change.value:+.1%} ({change.low:+.1%} to {change.high:+.1%}) of {found.level * 1e3:.3g} ms"


def _p99(windows: "tuple[Window, ...]", kind: str) -> str:
    found = np.array([window.times[kind].p99 for window in windows if kind in window.times])
    if len(found) < FEWEST:
        return ""
    first, last = (float(np.median(part)) * 1e3 for part in thirds(found))
    return f"{first:.3g} ms, {last:.3g} ms"


def main() -> None:
    """Soak, print a table, keep the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("engines", nargs="+", type=Path, metavar="ENGINE")
    parser.add_argument("--minutes", type=float, default=30.0, help="of load on each engine")
    parser.add_argument("--window", type=float, default=5.0, help="seconds between readings")
    parser.add_argument("--workers", type=int, default=6, help="threads that make requests")
    parser.add_argument("--requests", type=int, default=1, help="batches to run side by side (openvino)")
    parser.add_argument("--library", type=Path, help="the C library, for openvino bundles")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    loads = [load_of(path, options) for path in options.engines]
    record = SoakRecord(created=record_files.created_now(), environment=environment.collect(), soaks=())
    path = options.out or RESULTS / f"soak-{record_files.file_stamp(record.created)}.json"
    record_files.write(record, path)  # fails now if it has to
    print(f"record: {path}", flush=True)
    for asked in loads:
        whole = record.soaks
        for so_far in soak(asked):
            record = msgspec.structs.replace(record, soaks=(*whole, so_far))
            record_files.write(record, path)
    print("\n".join(table(record)))
    sys.exit(any(judge(one).is_bad for one in record.soaks))


def load_of(path: Path, options: argparse.Namespace) -> Load:
    """Say what is asked of one engine, once it is known to open.

    Raises:
        SystemExit: If it does not, or if so few windows would tell nothing of growth.
    """
    windows = round(60 * options.minutes / options.window)
    if len(after_warm_up(range(windows))) < FEWEST:
        raise SystemExit(f"{windows} windows are too few to tell growth: soak for longer, or in shorter windows")
    try:
        with engine.load(path) as opened:
            is_openvino = opened.manifest.spec.backend == "openvino"
    except ResnetDeployError as error:
        raise SystemExit(f"{path} cannot be opened: {error}") from error
    return Load(
        engine=str(path),
        window_s=options.window,
        windows=windows,
        workers=options.workers,
        requests=options.requests if is_openvino else 1,
        library=str(options.library) if options.library and is_openvino else "",
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
