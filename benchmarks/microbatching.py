"""Many callers of one image each beside explicit batches: throughput, what a caller waits, and what a request costs.

    python benchmarks/microbatching.py ENGINE... [--callers 64] [--delay 0.002] [--seconds 5] [--rounds 5] [-o FILE]

Explicit batches in a loop are the bound, and take turns with callers in a closed loop: each submits one prepared image,
waits for its answer, and submits the next. Requests are gathered into batches of as many images as there are callers,
or as the engine takes. Two limits are looked at: 90 % of the throughput of explicit batches, and a caller's 99th
percentile within the delay and one batch, which is the 99th percentile of the explicit batches of the same run. What
a request costs by itself is measured with a runner that answers at once, beside callers and one thread that hand each
other bare futures: threads that wake each other, and nothing of ours.

Writes all samples to benchmarks/results/ unless told otherwise.
"""

import argparse
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from resnet_deploy import environment
from resnet_deploy.bench import record_files
from resnet_deploy.bundle import Bundle, open_bundle
from resnet_deploy.engine import Engine
from resnet_deploy.environment import Environment
from resnet_deploy.microbatching import Batching
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.runners import find_runner
from resnet_deploy.runners.null import NullRunner

RESULTS = Path(__file__).parent / "results"
SHARE = 0.9  # of the throughput of explicit batches


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What one arm did in its turn.

    Attributes:
        images: How many were answered.
        wall_s: From the common start to the last answer.
        cpu_s: Of the whole process, its backend's threads included.
        seconds: Of each call, to the microsecond: a batch, or a caller's wait for one image; empty with the `null`
            runner, where there are some hundred thousand, and no percentile is told.
        batches: How many batches there were of each size, as strings; empty where nobody counted.
    """

    images: int
    wall_s: float
    cpu_s: float
    seconds: tuple[float, ...]
    batches: dict[str, int] = {}


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One engine: turns of explicit batches and of callers, round by round."""

    engine: str
    batch: int
    explicit: tuple[Turn, ...]
    callers: tuple[Turn, ...]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What this script measured."""

    created: str
    environment: Environment
    callers: int
    max_delay_s: float
    engines: tuple[Comparison, ...]
    null: Comparison  # explicit: bare futures
    limit_share: float = SHARE


@contextmanager
def opened(bundle: Bundle, runner: Any, batching: Batching) -> Iterator[tuple[Engine, Counter[str]]]:
    """Open an engine on a runner of which the batches are counted."""
    sizes: Counter[str] = Counter()
    load = runner.load

    def counted(feed: Any) -> None:
        sizes[str(len(feed))] += 1
        load(feed)

    runner.load = counted
    with Engine(bundle, runner, batching=batching) as engine:
        yield engine, sizes


def explicit_turn(engine: Engine, images: Any, seconds: float) -> Turn:
    """Call with one batch after the other."""
    taken, cpu, start = [], time.process_time(), time.perf_counter()
    now = start
    while now - start < seconds:
        engine(images)
        before, now = now, time.perf_counter()
        taken.append(now - before)
    used = time.process_time() - cpu
    return Turn(images=len(images) * len(taken), wall_s=now - start, cpu_s=used, seconds=rounded(taken))


def rounded(seconds: Iterable[float]) -> tuple[float, ...]:
    """Round to the microsecond."""
    return tuple(round(second, 6) for second in seconds)


def callers_turn(ask: Callable[[int], object], count: int, seconds: float) -> Turn:
    """Let threads call ``ask(caller)`` one time after the other, from a common start."""
    taken: list[list[float]] = [[] for _ in range(count)]
    starts: list[float] = []
    barrier = threading.Barrier(count, action=lambda: starts.extend((time.process_time(), time.perf_counter())))

    def call(caller: int) -> None:
        barrier.wait()
        now, end = time.perf_counter(), starts[1] + seconds
        while now < end:
            ask(caller)
            before, now = now, time.perf_counter()
            taken[caller].append(now - before)

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall, cpu = time.perf_counter() - starts[1], time.process_time() - starts[0]
    seconds_each = rounded(second for one in taken for second in one)
    return Turn(images=len(seconds_each), wall_s=wall, cpu_s=cpu, seconds=seconds_each)


def submitted_turn(engine: Engine, sizes: "Counter[str]", images: Any, seconds: float) -> Turn:
    """Let as many callers as there are images submit one each."""
    sizes.clear()
    turn = callers_turn(lambda caller: engine.submit(images[caller]).result(), len(images), seconds)
    return msgspec.structs.replace(turn, batches=dict(sizes))


def bare_turn(count: int, seconds: float) -> Turn:
    """Let callers hand bare futures to one thread, which answers as many as there are callers at a time."""
    waiting: list[Future[None] | None] = []
    lock, full = threading.Lock(), threading.Semaphore(0)

    def ask(_: int) -> None:
        future: Future[None] = Future()
        with lock:
            waiting.append(future)
            if len(waiting) == count:
                full.release()
        future.result()

    def serve() -> None:
        while True:
            full.acquire(timeout=0.002)  # towards the end there are fewer
            with lock:
                batch = list(waiting)
                waiting.clear()
            for future in batch:
                if future is None:
                    return
                future.set_result(None)

    thread = threading.Thread(target=serve)
    thread.start()
    turn = callers_turn(ask, count, seconds)
    with lock:
        waiting.append(None)
    thread.join()
    return turn


def compare(path: Path, options: argparse.Namespace) -> Comparison:
    """Measure one engine, after two batches of each arm that are not counted."""
    bundle = open_bundle(path)
    spec, card = bundle.manifest.spec, bundle.manifest.card
    size = min(options.callers, spec.batch.max)
    images = synthetic_images(card.preprocess, options.callers)
    runner = find_runner(spec.backend)(bundle, options.threads or environment.compute_threads())
    explicit, callers = [], []
    batching = Batching(max_batch=size, max_delay_s=options.delay)
    with opened(bundle, runner, batching) as (engine, sizes):
        for seconds in (0.01, *[options.seconds] * options.rounds):
            explicit.append(explicit_turn(engine, images[:size], seconds))
            callers.append(submitted_turn(engine, sizes, images, seconds))
    return Comparison(engine=path.name, batch=size, explicit=tuple(explicit[1:]), callers=tuple(callers[1:]))


def compare_null(path: Path, options: argparse.Namespace) -> Comparison:
    """Measure what is ours: the same engine with a runner that answers zeros at once, beside bare futures."""
    bundle = open_bundle(path)
    spec, card = bundle.manifest.spec, bundle.manifest.card
    size = min(options.callers, spec.batch.max)
    images = synthetic_images(card.preprocess, options.callers)
    bare, callers = [], []
    batching = Batching(max_batch=size, max_delay_s=options.delay)
    with opened(bundle, NullRunner(card, spec.batch), batching) as (engine, sizes):
        for seconds in (0.1, *[min(options.seconds, 2.0)] * options.rounds):
            bare.append(bare_turn(options.callers, seconds))
            callers.append(submitted_turn(engine, sizes, images, seconds))
    kept = [[msgspec.structs.replace(turn, seconds=()) for turn in turns[1:]] for turns in (bare, callers)]
    return Comparison(engine="null", batch=size, explicit=tuple(kept[0]), callers=tuple(kept[1]))


def rate(turn: Turn) -> float:
    """Images per second."""
    return turn.images / turn.wall_s


def percentile_ms(turns: tuple[Turn, ...], percent: float) -> float:
    """Percentile of all calls, by nearest rank, in milliseconds."""
    return float(np.percentile(np.concatenate([turn.seconds for turn in turns]), percent, method="inverted_cdf")) * 1e3


def mean_batch(turns: tuple[Turn, ...]) -> float:
    """Images in a batch, on average."""
    batches = sum(count for turn in turns for count in turn.batches.values())
    return sum(int(size) * count for turn in turns for size, count in turn.batches.items()) / batches


def table(record: Record) -> list[str]:
    """Lines of a Markdown table."""
    rows = [
        ("", "measured", "bound"),
        ("---",) * 3,
        *(row for one in record.engines for row in engine_rows(one, record)),
    ]
    arms = record.null.callers, record.null.explicit
    wall, cpu = ([microseconds(arm, field) for arm in arms] for field in ("wall_s", "cpu_s"))
    what = f"a request to the `null` runner, {record.callers} callers"
    rows += [(what, wall[0], f"{wall[1]}, bare futures"), ("· of the processors' time", *cpu)]
    return [f"| {' | '.join(cells)} |" for cells in rows]


def engine_rows(one: Comparison, record: Record) -> list[tuple[str, ...]]:
    """Rows of one engine; throughput by the median of rounds, percentiles of the calls of all."""
    delay = record.max_delay_s * 1e3
    shares = [rate(callers) / rate(explicit) for explicit, callers in zip(one.explicit, one.callers, strict=True)]
    explicit_rate, callers_rate = (np.median([rate(turn) for turn in arm]) for arm in (one.explicit, one.callers))
    share = f"{np.median(shares):.1%}, {min(shares):.1%} to {max(shares):.1%} in {len(shares)} rounds"
    batch_p50, batch_p99 = (percentile_ms(one.explicit, percent) for percent in (50, 99))
    p50, p99 = (percentile_ms(one.callers, percent) for percent in (50, 99))
    verdict = "within" if p99 <= delay + batch_p99 else "beyond"
    name = f"{one.engine}, {record.callers} callers, images/s"
    return [
        (name, f"{callers_rate:.1f}", f"{explicit_rate:.1f}, explicit batches of {one.batch}"),
        ("· share of explicit batches", share, f"the limit is {record.limit_share:.0%}"),
        ("· images in a batch, on average", f"{mean_batch(one.callers):.1f}", f"{one.batch}"),
        ("· a caller's wait, p50", f"{p50:.2f} ms", f"{delay:g} + {batch_p50:.2f} ms, delay and one batch, p50"),
        ("· a caller's wait, p99", f"{p99:.2f} ms", f"{delay:g} + {batch_p99:.2f} ms, one batch, p99: {verdict}"),
    ]


def microseconds(turns: tuple[Turn, ...], field: str) -> str:
    """Write the microseconds of a request; of rounds the fastest and, in brackets, the median."""
    each = [getattr(turn, field) / turn.images * 1e6 for turn in turns]
    return f"{min(each):.1f} µs ({np.median(each):.1f})"


def main() -> None:
    """Measure, print a table, keep the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("engines", nargs="+", type=Path, metavar="ENGINE")
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--delay", type=float, default=Batching().max_delay_s, help="seconds")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn; the last batch is finished")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of the backend; 0 for every core")
    parser.add_argument("-o", dest="output", type=Path)
    options = parser.parse_args()
    created = record_files.created_now()
    record = Record(
        created=created,
        environment=environment.collect(),
        callers=options.callers,
        max_delay_s=options.delay,
        engines=tuple(compare(path, options) for path in options.engines),
        null=compare_null(options.engines[0], options),
    )
    path = options.output or RESULTS / f"microbatching-{record_files.file_stamp(created)}.json"
    record_files.write(msgspec.to_builtins(record), path)
    print("\n".join(table(record)))
    print(f"record: {path}")


if __name__ == "__main__":
    main()
