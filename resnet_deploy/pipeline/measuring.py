"""What a lineup answers, how long it takes, and what the machine did meanwhile."""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from resnet_deploy import artifact, environment
from resnet_deploy.bench.calls import Feeds
from resnet_deploy.bench.decoding import measure_decoding
from resnet_deploy.bench.end_to_end import EncodedImages
from resnet_deploy.bench.layer_times import layer_times
from resnet_deploy.bench.machine import MachineWatch
from resnet_deploy.bench.measure import measure_in_turns
from resnet_deploy.bench.outputs import collect_outputs
from resnet_deploy.bench.records import DecodeTimes, LayerTimes, MachineState, Outputs, Samples
from resnet_deploy.bench.ways import Entrant
from resnet_deploy.bench_spec import BenchSpec
from resnet_deploy.datasets import BatchReader
from resnet_deploy.errors import DataError
from resnet_deploy.pipeline.entrants import open_entrant
from resnet_deploy.pipeline.lineup import Lineup
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.runners.null import NULL, NullRunner
from resnet_deploy.specs import BatchRange

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resnet_deploy.protocols import Array, Progress

_DECODED_IMAGES: Final = 64  # that decoding is timed on, alone and beside each engine
_ENCODED_FILES: Final = 128  # read ahead and kept in memory; the largest batch, where that is more


@dataclass(frozen=True)
class Measurements:
    """What a run found out, by the names of the engines, and the state of the machine meanwhile."""

    outputs: dict[str, Outputs]
    latency: dict[str, tuple[Samples, ...]]
    layers: dict[str, LayerTimes | None]
    machine: tuple[MachineState, ...]
    decoding: DecodeTimes | None


def measure(
    lineup: Lineup, reader: BatchReader | None, spec: BenchSpec, layers: bool, progress: "Progress"
) -> Measurements:
    """Collect answers, time in turns, then decoding beside engines and layers, where asked for."""
    outputs: dict[str, Outputs] = {}
    if reader is None:
        images = synthetic_images(lineup.card.preprocess, max(spec.batches))
    else:
        evaluation = _Evaluation(reader)
        outputs = collect_outputs(lineup.entrants, evaluation.batches(progress), lineup.reference)
        images = evaluation.first
    null = _null_entrant(lineup, spec)
    states: list[MachineState] = []
    with contextlib.ExitStack() as stack:
        encoded = None
        if reader is not None and "end_to_end" in spec.scopes:
            files = [artifact.read_bytes(path) for path in _sound_paths(reader, max(_ENCODED_FILES, *spec.batches))]
            encoded = stack.enter_context(EncodedImages(files, lineup.card.preprocess, lineup.threads))
        here = environment.collect()
        watch = MachineWatch(here.cpu.cores, here.gpu.gpus[0].uuid if here.gpu.gpus else "")
        latency = measure_in_turns(
            [*lineup.entrants, null],
            Feeds(images, encoded),
            spec,
            progress,
            after_round=lambda number: states.append(watch.lap(number)),
        )
    decoding = None
    if encoded is not None and reader is not None:
        few = replace(reader, dataset=reader.dataset.subset(_DECODED_IMAGES))
        decoding = measure_decoding(few, lineup.entrants, progress)
    profiled = progress.track(lineup.entrants, "profiling layers", len(lineup.entrants)) if layers else ()
    times = {one.name: layer_times(one.runner, images, latency[one.name][0].batch) for one in profiled}
    return Measurements(outputs, latency, times, tuple(states), decoding)


def _null_entrant(lineup: Lineup, spec: BenchSpec) -> Entrant:
    """What the harness itself costs; end to end it would be what decoding costs."""
    batch = BatchRange(1, 1, max(spec.batches))

    def opener(threads: int, count: int, **options: bool) -> list[NullRunner]:
        del threads, options
        return [NullRunner(lineup.card, batch) for _ in range(count)]

    return replace(open_entrant(NULL, opener, spec, lineup.threads), scopes=("host",))


def _sound_paths(reader: BatchReader, count: int) -> list[Path]:
    """Take at most ``count`` of the images that could be read, spread evenly over the data set."""
    skipped = set(reader.skipped)
    kept = [path for path in reader.dataset.paths if path not in skipped]
    count = min(count, len(kept))
    return [kept[index * len(kept) // count] for index in range(count)]


class _Evaluation:
    """Hands batches on and keeps the first, to time the engines on real images."""

    def __init__(self, reader: BatchReader) -> None:
        self.reader = reader
        self._first: Array | None = None

    def batches(self, progress: "Progress") -> "Iterator[Array]":
        for batch in progress.track(self.reader, "evaluating", len(self.reader)):
            if self._first is None:
                self._first = batch.images
            yield batch.images

    @property
    def first(self) -> "Array":
        if self._first is None:
            raise DataError(f"{self.reader.dataset.root}: every image is damaged", hint="give --data sound images")
        return self._first
