"""One process of a soak: an engine loaded once, threads that make requests, readings while they rest.

    python benchmarks/soak_child.py '{"engine": "engines/resnet50-int8-onnxruntime"}'

Started by `soak.py`, which keeps what this one prints, a line of JSON for each window: a process that is watched for
growth must not grow by what it has seen.
"""

import contextlib
import faulthandler
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import soak_reading
from soak_records import Load, Opening, Times, Window
from soak_requests import BATCHING, C_KINDS, KINDS, MOST_AT_ONCE, Request, Subject, c_infer, make_golden, open_c_engine

from resnet_deploy.bench.intervals import percentile
from resnet_deploy.bench.machine import MachineWatch
from resnet_deploy.engine import load
from resnet_deploy.environment import compute_threads

HANGS_AFTER_S = 120.0  # beyond a window: longer than any request may take
WORDS = 5  # how many of what was wrong in a window are told


class Gate:
    """Lets threads make requests, or has them rest."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open, self._under_way, self.ended = False, 0, False

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Wait until requests may be made, and make one."""
        with self._changed:
            self._changed.wait_for(lambda: self._open)
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def open(self) -> None:
        """Let requests be made."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def shut(self) -> None:
        """Let none be made, and wait for the end of those under way."""
        with self._changed:
            self._open = False
            self._changed.wait_for(lambda: not self._under_way)


class Worker(threading.Thread):
    """Makes one request after the other, of random kinds.

    Args:
        subject: The engine.
        kinds: To choose from, with weights.
        gate: To pass before each request.
        seed: Of the choice and of the requests.
    """

    def __init__(self, subject: Subject, kinds: dict[str, tuple[Request, float]], gate: Gate, seed: int) -> None:
        super().__init__(daemon=True)
        self._subject, self._kinds, self._gate = subject, kinds, gate
        self._rng = np.random.default_rng([subject.load.seed, seed])
        self.done: list[tuple[str, int, float]] = []  # kind, images, seconds
        self.wrong: list[str] = []

    def run(self) -> None:
        """Go on until the gate has ended."""
        names = list(self._kinds)
        weights = np.array([weight for _, weight in self._kinds.values()])
        while True:
            name = names[self._rng.choice(len(names), p=weights / weights.sum())]
            with self._gate.request():
                if self._gate.ended:
                    return
                self._make(name)

    def _make(self, name: str) -> None:
        start = time.perf_counter()
        try:
            images = self._kinds[name][0](self._subject, self._rng)
        except Exception as error:  # noqa: BLE001 - whatever it is, it was not asked for
            self.wrong.append(f"{name}: {type(error).__name__}: {error}")
        else:
            self.done.append((name, images, time.perf_counter() - start))


def soak(subject: Subject, kinds: dict[str, tuple[Request, float]]) -> Iterator[Window]:
    """Yield what is seen in each window."""
    asked, gate = subject.load, Gate()
    workers = [Worker(subject, kinds, gate, number) for number in range(asked.workers)]
    for worker in workers:
        worker.start()
    watch, begun = MachineWatch(compute_threads()), time.perf_counter()
    for number in range(asked.windows):
        faulthandler.dump_traceback_later(asked.window_s + HANGS_AFTER_S, exit=True)
        start, processor = time.perf_counter(), time.process_time()
        gate.open()
        time.sleep(asked.window_s)
        gate.shut()
        seconds, processor_s = time.perf_counter() - start, time.process_time() - processor
        machine = watch.lap(number)
        wrong = [words for worker in workers for words in worker.wrong]
        yield Window(
            start=round(start - begun, 3),
            seconds=round(seconds, 6),
            processor_s=round(processor_s, 6),
            times=times_of([one for worker in workers for one in worker.done]),
            outcomes=dict(sorted(subject.outcomes.items())),
            worst=subject.golden.worst,
            wrong=tuple(wrong[:WORDS]),
            wrong_count=len(wrong),
            reading=_rest(subject, workers),
            machine=machine,
        )
    gate.ended = True
    gate.open()
    for worker in workers:
        worker.join()
    faulthandler.cancel_dump_traceback_later()


def _rest(subject: Subject, workers: list[Worker]) -> Any:
    """Forget what the window has told, and read what is left."""
    for worker in workers:
        worker.done, worker.wrong = [], []
    subject.outcomes.clear()
    subject.golden.worst = 0.0
    return soak_reading.read()


def times_of(done: list[tuple[str, int, float]]) -> dict[str, Times]:
    """Sum up requests by kind."""
    counts: Counter[str] = Counter(name for name, _, _ in done)
    found = {}
    for name in sorted(counts):
        seconds = [taken for kind, _, taken in done if kind == name]
        images = sum(many for kind, many, _ in done if kind == name)
        p50, p99 = (round(percentile(seconds, percent), 6) for percent in (50, 99))
        found[name] = Times(counts[name], images, p50, p99)
    return found


def main() -> None:
    """Open the engine and print, first what answers are held against, then each window."""
    asked = msgspec.json.decode(sys.argv[1], type=Load)
    engine = load(asked.engine, requests=asked.requests, batching=BATCHING)
    with tempfile.TemporaryDirectory() as folder, engine:
        golden = make_golden(engine, Path(folder), asked.seed)
        see_every_size(engine, golden.images)
        tell(golden.opening)
        subject, kinds = Subject(engine, golden, asked), dict(KINDS)
        with contextlib.ExitStack() as opened:
            if asked.library:
                subject.c_engine = opened.enter_context(open_c_engine(Path(asked.library), Path(asked.engine)))
                see_every_size(partial(c_infer, subject.c_engine), golden.images)
                kinds |= C_KINDS
            for window in soak(subject, kinds):
                tell(window)


def see_every_size(run: Callable[[Any], object], images: Any) -> None:
    """Run a batch of every size there will be: OpenVINO keeps what it has made for a size, 5 MB of a ResNet-50."""
    for size in range(1, MOST_AT_ONCE + 1):
        run(np.resize(images, (size, *images.shape[1:])))


def tell(what: Opening | Window) -> None:
    """Print a line."""
    print(msgspec.json.encode(what).decode(), flush=True)


if __name__ == "__main__":
    main()
