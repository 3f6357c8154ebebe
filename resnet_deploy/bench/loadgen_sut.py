"""A runner as the system under test of MLCommons' LoadGen.

SingleStream, MultiStream and Offline are answered within LoadGen's own call: handing a query to another thread would
cost a wake-up, which is longer than all else that lies between LoadGen and the engine, and LoadGen has nothing to do
meanwhile. Server must never hold up LoadGen, which keeps to a schedule: queries are queued, and a thread takes
what is waiting, up to a batch.

Images lie in memory, decoded, before the clock starts, as in MLPerf; putting a batch of them together is timed.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import mlperf_loadgen as loadgen

from resnet_deploy.batching import filled_up, run_each, run_once
from resnet_deploy.bench.loadgen_spec import LOADGEN_NAMES, MULTISTREAM_SAMPLES, OFFICIAL_SAMPLES, LoadgenPlan
from resnet_deploy.collector import no_garbage_collection
from resnet_deploy.errors import LoadgenError
from resnet_deploy.verify import best_class

if TYPE_CHECKING:
    from resnet_deploy.protocols import Array, Runner

_ANSWER_BYTES: Final = 8  # int64, as accuracy-imagenet.py reads with --dtype int64
_WARMUP_SECONDS: Final = 1.0
_WARMUP_CALLS: Final = 3
_GROUP: Final = 4  # calls that are timed together, so that loading ahead counts
# LoadGen makes up its queries beforehand, for the duration at the speed that it is told to expect, and a test that runs
# out of them is invalid; so it is told of a faster engine than was seen.
_FASTER: Final = 1.25
# No query and no image is dealt with in less by LoadGen's code and ours: without these, a runner that does nothing
# would have it make up tens of millions of queries.
_LEAST_PER_QUERY_S: Final = 4e-6
_LEAST_PER_IMAGE_S: Final = 1e-6


class SampleLibrary:
    """The images that LoadGen has asked for, in memory.

    Args:
        read: Makes contract tensors, (N, ...), of the images at these positions of the data set.
        total: Images in the data set.
    """

    def __init__(self, read: "Callable[[Sequence[int]], Array]", total: int) -> None:
        self._read = read
        self.total = total
        self.performance = min(total, OFFICIAL_SAMPLES)
        self._images: Array | None = None
        self._rows: dict[int, int] = {}

    def load(self, indices: Sequence[int]) -> None:
        """Decode some images; MultiStream lists the first ones twice, so that queries may go over the end."""
        distinct = list(dict.fromkeys(indices))
        self._images = self._read(distinct)
        self._rows = {index: row for row, index in enumerate(distinct)}

    def unload(self, indices: Sequence[int]) -> None:
        """Let go of all."""
        del indices
        self._images, self._rows = None, {}

    def gather(self, indices: Sequence[int]) -> "Array":
        """Return loaded images as one array, without a copy where they lie side by side."""
        assert self._images is not None
        rows = [self._rows[index] for index in indices]
        first, count = rows[0], len(rows)
        if rows == list(range(first, first + count)):
            return self._images[first : first + count]
        return self._images[rows]


class SystemUnderTest:
    """Answers LoadGen's queries with a runner.

    Args:
        runner: Used by one thread at a time: LoadGen's, or the one that serves.
        library: Where the images are.
        batch: Most images in one call of the runner.
        abandon: Called with what went wrong; must not return. An exception would end the process without a word, and a
            query that is never answered would keep LoadGen waiting for ever.
    """

    def __init__(
        self, runner: "Runner", library: SampleLibrary, batch: int, abandon: Callable[[BaseException], None]
    ) -> None:
        self._runner, self._library, self._batch, self._abandon = runner, library, batch, abandon
        self._waiting: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self.answered = 0

    def answer(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        """Answer a query before returning, a batch at a time."""
        with self._guarded():
            size = self._batch
            chunks = [ids[start : start + size] for start in range(0, len(ids), size)]
            batches = (self._gather(indices[start : start + size]) for start in range(0, len(ids), size))
            for chunk, logits in zip(chunks, run_each(self._runner, batches), strict=True):
                self._complete(chunk, logits)

    def accept(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        """Queue a query for ``serve`` and return at once."""
        for one in zip(ids, indices, strict=True):
            self._waiting.put(one)

    def serve(self) -> None:
        """Answer queries as they come, those that wait together, until ``stop``."""
        with self._guarded():
            while (first := self._waiting.get()) is not None:
                taken = [first, *self._others()]
                ids, indices = zip(*taken, strict=True)
                self._complete(ids, run_once(self._runner, self._gather(indices)))

    def stop(self) -> None:
        """End ``serve`` once nothing is waiting."""
        self._waiting.put(None)

    def load(self, indices: Sequence[int]) -> None:
        """Load images for LoadGen."""
        with self._guarded():
            self._library.load(indices)

    def _others(self) -> Iterator[tuple[int, int]]:
        """Take what else is waiting, without waiting for it, up to a batch."""
        for _ in range(self._batch - 1):
            try:
                another = self._waiting.get_nowait()
            except queue.Empty:
                return
            if another is None:
                self.stop()
                return
            yield another

    def _gather(self, indices: Sequence[int]) -> "Array":
        return filled_up(self._library.gather(indices), self._runner.batch.min)

    def _complete(self, ids: Sequence[int], logits: "Array") -> None:
        classes = best_class(logits[: len(ids)])  # must live until LoadGen has copied it
        start = classes.ctypes.data
        responses = [
            loadgen.QuerySampleResponse(one, start + position * _ANSWER_BYTES, _ANSWER_BYTES)
            for position, one in enumerate(ids)
        ]
        loadgen.QuerySamplesComplete(responses)
        self.answered += len(ids)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # noqa: BLE001 - LoadGen's frames above would not survive any
            self._abandon(error)


def run_test(plan: LoadgenPlan, system: SystemUnderTest, library: SampleLibrary, seconds: float, folder: Path) -> None:
    """Let LoadGen make one test; its logs appear in ``folder``.

    To be called once in a process: LoadGen reads its own configuration the first time only.

    Args:
        plan: What to do.
        system: What is tested.
        library: Its images.
        seconds: What ``warm_up`` returned for ``images_of(plan)`` images.
        folder: Must exist.

    Raises:
        LoadgenError: If LoadGen does not take its own configuration.
    """
    is_server = plan.scenario == "server"
    settings = _settings(plan, library, seconds, folder)
    logs = loadgen.LogSettings()
    logs.enable_trace = False
    logs.log_output.outdir = str(folder)
    sut = loadgen.ConstructFastSUT(system.accept if is_server else system.answer, _nothing)
    qsl = loadgen.ConstructQSL(library.total, library.performance, system.load, library.unload)
    server = threading.Thread(target=system.serve, name="serve")
    if is_server:
        server.start()
    try:
        with no_garbage_collection():
            loadgen.StartTestWithLogSettings(sut, qsl, settings, logs)
    finally:
        if is_server:
            system.stop()
            server.join()
    loadgen.DestroyQSL(qsl)
    loadgen.DestroyFastSUT(sut)


def images_of(plan: LoadgenPlan) -> int:
    """Say how many images are answered together, where nothing lacks: in a query, or in a batch of ours."""
    return {"singlestream": 1, "multistream": MULTISTREAM_SAMPLES}.get(plan.scenario, plan.batch)


def warm_up(runner: "Runner", images: "Array", *, most: int, all_sizes: bool) -> float:
    """Warm a runner up; return the time that it takes for ``images`` at its fastest, in seconds.

    Args:
        runner: Which.
        images: What is answered together in the test to come.
        most: Most images in one call.
        all_sizes: Whether smaller batches will come too: an engine may prepare itself at the first of each size.
    """
    size = min(most, len(images))
    while all_sizes and (size := size // 2):
        _time_calls(runner, [filled_up(images[:size], runner.batch.min)] * _WARMUP_CALLS)
    feeds = [filled_up(images[start : start + most], runner.batch.min) for start in range(0, len(images), most)]
    _time_calls(runner, feeds * _WARMUP_CALLS)
    best, end = float("inf"), time.perf_counter() + _WARMUP_SECONDS
    while best == float("inf") or time.perf_counter() < end:
        best = min(best, _time_calls(runner, feeds * _GROUP) / _GROUP)
    return best


def _time_calls(runner: "Runner", feeds: "Sequence[Array]") -> float:
    start = time.perf_counter()
    for _ in run_each(runner, feeds):
        pass
    return time.perf_counter() - start


def _settings(plan: LoadgenPlan, library: SampleLibrary, seconds: float, folder: Path) -> Any:
    """Read LoadGen's own configuration for ResNet-50, seeds included, then change what the plan asks for."""
    settings = loadgen.TestSettings()
    users = folder / "user.conf"
    users.touch()  # LoadGen wants one beside its own; nothing in it is needed
    name = LOADGEN_NAMES[plan.scenario]
    if status := settings.FromConfig(str(users), "resnet50", name):
        raise LoadgenError(f"LoadGen does not take its own configuration: status {status}")
    users.unlink()
    settings.scenario = getattr(loadgen.TestScenario, name)
    settings.mode = loadgen.TestMode.AccuracyOnly if plan.accuracy else loadgen.TestMode.PerformanceOnly
    settings.performance_sample_count_override = library.performance
    expected = max(seconds / _FASTER, _LEAST_PER_QUERY_S, _LEAST_PER_IMAGE_S * images_of(plan))
    settings.single_stream_expected_latency_ns = int(expected * 1e9)
    settings.multi_stream_expected_latency_ns = int(expected * 1e9)
    settings.offline_expected_qps = plan.batch / expected
    settings.server_target_qps = plan.qps
    if not plan.official:
        settings.min_duration_ms = round(plan.seconds * 1000)
        settings.min_query_count = plan.queries
        settings.server_target_latency_ns = round(plan.latency_s * 1e9)
    settings.server_max_async_queries = plan.most_waiting
    return settings


def _nothing() -> None:
    """LoadGen's last word: nothing is held back that could be flushed."""
