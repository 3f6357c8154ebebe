"""Scoring at scale beside a single process, on the same images in one run: worker processes, and Ray on this machine.

    python benchmarks/scoring.py ENGINE [-o RECORD.json] [--images 384] [--shard-size 32] [--workers 1,2] [--no-ray]

The images are crops of scikit-learn's two photographs, 500x375 pixels, JPEG of quality 90. First come decoding alone
and the engine alone, each on all cores, and the bound that follows for both at once; then one process that scores
shards in a loop, on all cores; then workers, by number, and Ray. Two rates are told of each: from its start, which
includes opening engines, and Ray's own start; and once every worker has done a shard, which is what a long run has.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from resnet_deploy import artifact, environment
from resnet_deploy.bench import record_files
from resnet_deploy.bench.decoding import bound, measure_decoding
from resnet_deploy.bench.ways import Entrant
from resnet_deploy.bundle import open_bundle
from resnet_deploy.datasets import BatchReader, find_images, image_names
from resnet_deploy.environment import Environment
from resnet_deploy.pipeline.scoring_plan import Machines, ScoringSpec, Shards
from resnet_deploy.pipeline.scoring_shard import Outcome, ScoringTask, ShardDone, ShardScorer, part_name
from resnet_deploy.pipeline.scoring_workers import score_in_processes
from resnet_deploy.protocols import Silent
from resnet_deploy.runners import find_runner

SIZE = (500, 375)
QUALITY = 90
DIFFERENT = 256  # images that are cut out; the others are copies of them


class Run(msgspec.Struct, frozen=True):
    """One way through all images.

    Attributes:
        name: Who worked.
        workers, threads: Engines, and CPU threads of each.
        elapsed_s: From the start of it all to the last answer.
        seconds: When the file of each shard was written, after the start; in that order.
        images: How many images each of these had.
    """

    name: str
    workers: int
    threads: int
    elapsed_s: float
    seconds: tuple[float, ...]
    images: tuple[int, ...]

    @property
    def rate(self) -> float:
        """Images per second, from the start."""
        return sum(self.images) / self.elapsed_s

    @property
    def steady_rate(self) -> float:
        """Images per second, once as many shards are done as there are workers."""
        first = self.workers
        return sum(self.images[first:]) / (self.seconds[-1] - self.seconds[first - 1])


class ScoringBenchmark(msgspec.Struct, frozen=True, kw_only=True):
    """What this script measured; rates are images per second.

    Attributes:
        created: UTC time, ISO 8601.
        environment: The machine and its libraries.
        engine: Name of the bundle.
        image_bytes: Mean size of a file.
        images: How many.
        shard_size: Images per shard.
        decode: Rate of decoding alone, on all cores.
        alone: Rate of the engine alone, on all cores.
        bound: The most that both can reach together on the same cores.
        runs: The ways, the single process first.
    """

    schema_version: int = 1
    created: str
    environment: Environment
    engine: str
    image_bytes: float
    images: int
    shard_size: int
    decode: float
    alone: float
    bound: float
    runs: tuple[Run, ...]


def write_images(folder: Path, count: int) -> float:
    """Fill ``folder``; return the mean size of a file in bytes."""
    draw, files = np.random.default_rng(0), []
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for number in range(min(DIFFERENT, count)):
        photograph = photographs[number % len(photographs)]
        left, top = (draw.integers(0, most - side + 1) for most, side in zip(photograph.size, SIZE, strict=True))
        path = folder / f"{number:06}.jpg"
        photograph.crop((left, top, left + SIZE[0], top + SIZE[1])).save(path, quality=QUALITY)
        files.append(path.read_bytes())
    for number in range(DIFFERENT, count):
        (folder / f"{number:06}.jpg").write_bytes(files[number % DIFFERENT])
    return sum(map(len, files)) / len(files)


def timed(name: str, workers: int, task: ScoringTask, outcomes: Iterator[Outcome]) -> Run:
    """Go through the outcomes of one way; its files say when each shard was done, for Ray tells of several at once."""
    begun, begun_ns = time.perf_counter(), time.time_ns()
    images = {}
    for outcome in outcomes:
        assert isinstance(outcome, ShardDone)
        images[outcome.number] = outcome.scored + outcome.bad
    elapsed_s = time.perf_counter() - begun
    written = {number: (Path(task.output) / part_name(number)).stat().st_mtime_ns for number in images}
    order = sorted(images, key=written.__getitem__)
    seconds = tuple((written[number] - begun_ns) / 1e9 for number in order)
    return Run(name, workers, task.threads, elapsed_s, seconds, tuple(images[number] for number in order))


def in_one_process(task: ScoringTask, shards: Shards) -> Iterator[Outcome]:
    """Score shard after shard right here."""
    with ShardScorer(task) as scorer:
        for shard in shards:
            yield scorer.score(shard)


def on_ray(task: ScoringTask, shards: Shards, workers: int) -> Iterator[Outcome]:
    """Score on a cluster that is started here, as ``predict --ray`` does."""
    from resnet_deploy.pipeline.scoring_ray import ray_way

    with ray_way(None) as way:
        yield from way.score(task, shards, workers)


def measure(arguments: argparse.Namespace, folder: Path) -> ScoringBenchmark:
    """Draw the images and go through them in every way."""
    source = folder / "images"
    source.mkdir()
    size, cores = write_images(source, arguments.images), environment.compute_threads()
    bundle = open_bundle(arguments.engine)
    runner = find_runner(bundle.manifest.spec.backend)(bundle, cores)
    reader = BatchReader(find_images(source), bundle.manifest.card.preprocess, 32, workers=cores)
    times = measure_decoding(reader, [Entrant("engine", runner)], Silent(), rounds=1)
    runner.close()
    names, digest = image_names(source), artifact.sha256_file(bundle.manifest_path)
    shards = Shards(names, arguments.shard_size, range(-(-len(names) // arguments.shard_size)))

    def task(name: str, threads: int) -> ScoringTask:
        out = folder / name
        out.mkdir()
        return ScoringTask(
            engine=str(arguments.engine.resolve()),
            engine_sha256=digest,
            source=str(source),
            output=str(out),
            scoring_sha256="",
            top=5,
            logits=False,
            threads=threads,
        )

    single = task("one", cores)
    runs = [timed("one process", 1, single, in_one_process(single, shards))]
    for workers in arguments.workers:
        _, threads = Machines((cores,)).part(ScoringSpec(workers=workers), len(shards), on_gpu=False)
        here = task(f"workers-{workers}", threads)
        runs.append(timed("worker processes", workers, here, score_in_processes(here, shards, workers)))
        if arguments.ray:
            there = task(f"ray-{workers}", threads)
            runs.append(timed("Ray", workers, there, on_ray(there, shards, workers)))
    alone, _ = times.engines["engine"]
    return ScoringBenchmark(
        created=record_files.created_now(),
        environment=environment.collect(),
        engine=bundle.manifest.name,
        image_bytes=size,
        images=len(names),
        shard_size=arguments.shard_size,
        decode=times.decode,
        alone=alone,
        bound=bound(times.decode, alone, shared=True),
        runs=tuple(runs),
    )


def table(record: ScoringBenchmark) -> list[str]:
    """Lines of a Markdown table: every way beside the single process, images per second."""
    head = ("", "workers x threads", "with its start", "steady", "of one process", "of the bound")
    rows = [head, ("---",) * len(head)]
    single = record.runs[0].steady_rate
    for run in record.runs:
        shares = (f"{run.steady_rate / single:.0%}", f"{run.steady_rate / record.bound:.0%}")
        part = f"{run.workers} x {run.threads}"
        rows.append((run.name, part, f"{run.rate:.1f}", f"{run.steady_rate:.1f}", *shares))
    return [f"| {' | '.join(cells)} |" for cells in rows]


def main() -> None:
    """Measure, print, and write the record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path, help="one that runs on the CPU")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--shard-size", type=int, default=32)
    parser.add_argument(
        "--workers", type=lambda text: tuple(map(int, text.split(","))), default=(1, 2), metavar="N,..."
    )
    parser.add_argument("--ray", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = measure(arguments, Path(folder))
    print(f"{record.engine}: {record.images} images of {record.image_bytes / 1e3:.0f} kB, {record.shard_size} a shard")
    print(f"decoding alone {record.decode:.1f} images/s, engine alone {record.alone:.1f}, bound {record.bound:.1f}")
    print("\n".join(table(record)))
    if arguments.output is not None:
        record_files.write(record, arguments.output)


if __name__ == "__main__":
    main()
