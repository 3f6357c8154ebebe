"""Reading images beside running them: decode alone, engine alone, together, and the bound.

    python benchmarks/decode.py ENGINE... [-o RECORD.json] [--images 512] [--batch 32] [--threads 0] [--workers 0]

The images are synthetic: noise whose amplitude falls as 1/f, as in photographs, 500x375 pixels, JPEG of quality 90 and
about 115 kB, as ImageNet's validation images are. What they show does not matter; what it costs to decode them does.
Without engines, the stages of decoding are timed alone.
"""

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from PIL import Image

from resnet_deploy import environment
from resnet_deploy.bench import record_files
from resnet_deploy.bench.decoding import bound, measure_decoding
from resnet_deploy.bench.records import DecodeTimes
from resnet_deploy.bench.ways import Entrant
from resnet_deploy.bundle import open_bundle
from resnet_deploy.contract import MLPERF_MEAN, MLPERF_STD, Preprocess
from resnet_deploy.datasets import BatchReader, find_images
from resnet_deploy.environment import Environment
from resnet_deploy.images import decode, preprocess_image
from resnet_deploy.protocols import Silent
from resnet_deploy.report.evaluation_table import is_on_gpu
from resnet_deploy.runners import find_runner

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = (500, 375)
QUALITY = 90
DIFFERENT = 64  # images that are drawn; the others are copies of them
ROUNDS = 5
CONTRACTS = {
    "torchvision": Preprocess(),
    "mlperf": Preprocess(interpolation="area", mean=MLPERF_MEAN, std=MLPERF_STD),
}


class Stage(msgspec.Struct, frozen=True):
    """Milliseconds that one step takes for one image on one core: the median of ``ROUNDS``, and all of them."""

    name: str
    median_ms: float
    rounds_ms: tuple[float, ...]


class DecodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What this script measured; rates are images per second.

    Attributes:
        created: UTC time, ISO 8601.
        environment: The machine and its libraries.
        image_bytes: Mean size of a file.
        stages: Where the time of one image goes.
        readers: Rate of decoding alone by input contract and number of threads.
        batch: Images per call.
        threads: Threads given to each engine on the CPU.
        times: Of the engines; absent without one.
        devices: What each engine ran on.
    """

    schema_version: int = 1
    created: str
    environment: Environment
    image_bytes: float
    stages: tuple[Stage, ...]
    readers: dict[str, dict[int, float]]
    batch: int
    threads: int
    times: DecodeTimes | None
    devices: dict[str, str]


def photograph(seed: int) -> bytes:
    """Draw one image and encode it."""
    width, height = SIZE
    draw = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    shared = draw.normal(size=(height, width))  # the channels of a photograph resemble each other
    planes = [0.8 * shared + 0.4 * draw.normal(size=(height, width)) for _ in range(3)]
    smooth = np.stack([np.fft.irfft2(np.fft.rfft2(plane) / frequency, s=(height, width)) for plane in planes], axis=-1)
    pixels = np.clip((smooth - smooth.mean()) / smooth.std() * 50 + 120, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def write_images(folder: Path, count: int) -> float:
    """Fill ``folder``; return the mean size of a file in bytes."""
    drawn = [photograph(seed) for seed in range(min(DIFFERENT, count))]
    for number in range(count):
        (folder / f"{number:06}.JPEG").write_bytes(drawn[number % len(drawn)])
    return sum(map(len, drawn)) / len(drawn)


def time_stages(path: Path) -> tuple[Stage, ...]:
    """Time the steps of one image in one thread, in turns."""
    image, data = decode(path), path.read_bytes()
    steps: dict[str, Callable[[], object]] = {
        "read and decode": lambda: decode(path),
        "decode, from memory": lambda: decode(path, data),
        **{f"preprocess, {name}": lambda spec=spec: preprocess_image(image, spec) for name, spec in CONTRACTS.items()},
    }
    rounds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            step()
            begun = time.perf_counter()
            for _ in range(50):
                step()
            rounds[name].append((time.perf_counter() - begun) * 1e3 / 50)
    return tuple(Stage(name, statistics.median(taken), tuple(taken)) for name, taken in rounds.items())


def time_readers(folder: Path, batch: int) -> dict[str, dict[int, float]]:
    """Time decoding alone, by contract and threads: the median rate of three passes in turns."""
    dataset = find_images(folder)
    counts = sorted({1, 2, environment.compute_threads()})
    readers = {(name, workers): BatchReader(dataset, spec, batch, workers=workers, hashing=True)
               for name, spec in CONTRACTS.items() for workers in counts}  # fmt: skip
    rates: dict[tuple[str, int], list[float]] = {key: [] for key in readers}
    for _ in range(3):
        for key, reader in readers.items():
            begun = time.perf_counter()
            for _ in reader:
                pass
            rates[key].append(len(dataset) / (time.perf_counter() - begun))
    return {name: {workers: statistics.median(rates[name, workers]) for workers in counts} for name in CONTRACTS}


def measure(arguments: argparse.Namespace, folder: Path) -> DecodeRecord:
    """Draw the images and time everything."""
    size = write_images(folder, arguments.images)
    stages, readers = time_stages(folder / "000000.JPEG"), time_readers(folder, arguments.batch)
    threads = arguments.threads or environment.compute_threads()
    bundles = [open_bundle(path) for path in arguments.engines]
    times, entrants = None, []
    if bundles:
        entrants = [Entrant(one.path.name, find_runner(one.manifest.spec.backend)(one, threads)) for one in bundles]
        contract = bundles[0].manifest.card.preprocess
        reader = BatchReader(find_images(folder), contract, arguments.batch, workers=arguments.workers)
        times = measure_decoding(reader, entrants, Silent())
    devices = {entrant.name: entrant.runner.device for entrant in entrants}
    for entrant in entrants:
        entrant.runner.close()
    return DecodeRecord(
        created=record_files.created_now(),
        environment=environment.collect(),
        image_bytes=size,
        stages=stages,
        readers=readers,
        batch=arguments.batch,
        threads=threads,
        times=times,
        devices=devices,
    )


def show(record: DecodeRecord) -> None:
    """Print everything beside its bound."""
    print(f"{SIZE[0]}x{SIZE[1]} pixels, {record.image_bytes / 1e3:.0f} kB")
    for stage in record.stages:
        print(f"  {stage.name:28} {stage.median_ms:6.2f} ms")
    print("decoding alone, images/s     " + "".join(f"{workers:>4} threads" for workers in record.readers["mlperf"]))
    for name, rates in record.readers.items():
        print(f"  {name:27}" + "".join(f"{rate:12.0f}" for rate in rates.values()))
    if record.times is None:
        return
    print(f"batch {record.batch}, images/s               decode  engine  together  bound")
    for name, (alone, together) in record.times.engines.items():
        shared = not is_on_gpu(record.devices[name])
        most = bound(record.times.decode, alone, shared=shared)
        rule = "harmonic: one CPU" if shared else "the slower"
        print(
            f"  {name:32} {record.times.decode:7.1f} {alone:7.1f} {together:8.1f} {most:7.1f}"
            f"   {together / most:.0%} of it ({rule})"
        )


def table(record: DecodeRecord) -> list[str]:
    """Lines of a Markdown table of the engines."""
    lines = [("images/s", "decoding alone", "engine alone", "together", "bound", "of the bound"), ("---",) * 6]
    for name, (alone, together) in record.times.engines.items() if record.times is not None else ():
        most = bound(record.times.decode, alone, shared=not is_on_gpu(record.devices[name]))
        rates = (f"{rate:,.1f}" for rate in (record.times.decode, alone, together, most))
        lines.append((name, *rates, f"{together / most:.0%}"))
    return [f"| {' | '.join(line)} |" for line in lines]


def main() -> None:
    """Measure, print, and write the record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = measure(arguments, Path(folder))
    show(record)
    if arguments.output is not None:
        record_files.write(record, arguments.output)


if __name__ == "__main__":
    main()
