"""From decoded pixels to the network's input: C++ in one thread beside Pillow's path, on the same pixels, in turns.

    python benchmarks/cpp_preprocess.py [-o RECORD.json] [--compiler g++] [--flags="-O3"] [--rounds 15]

Both get decoded 8-bit RGB and deliver the same tensor, which is checked first. C++ is timed twice: on images of one
size, whose tables it keeps, and on sizes that alternate, so that it makes its tables anew for each image.

Pillow resizes whole images; C++ computes what the crop needs of them. How much less that is, counted in products of a
pixel and a weight, is the part of the gain that is no matter of code, and stands beside it. The other bound is the
rate of those products: three for each pixel, in four lanes of which one is idle.
"""

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image
from preprocess_driver import Driver, compile_driver

from resnet_deploy import environment
from resnet_deploy.bench import record_files
from resnet_deploy.contract import MLPERF_MEAN, MLPERF_STD, Preprocess
from resnet_deploy.environment import Environment
from resnet_deploy.images import preprocess_image, resized_size

SIZES = ((500, 375), (1920, 1080))
ROUND_S = 0.05  # that each way is repeated for within a round
CONTRACTS = {
    "nearest": Preprocess(interpolation="nearest"),
    "bilinear": Preprocess(),
    "bilinear, float32": Preprocess(dtype="float32", layout="NCHW"),
    "bicubic": Preprocess(interpolation="bicubic"),
    "area": Preprocess(interpolation="area", mean=MLPERF_MEAN, std=MLPERF_STD),
}
SUPPORT = {"bilinear": 1, "bicubic": 2}  # pixels on each side of the centre, times the scale


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One contract on images of one size.

    Attributes:
        contract: Which.
        size: Width and height of the decoded image.
        rates: Images per second of each way, one for each round.
        products: Of a pixel and a weight, for one channel of one image: all, and those that the crop needs; Pillow's
            two filters only.
    """

    contract: str
    size: tuple[int, int]
    rates: dict[str, tuple[float, ...]]
    products: tuple[int, int] | None

    def ratio(self, way: str) -> float:
        """How many times faster than Pillow: the median over the rounds."""
        return statistics.median(
            ours / theirs for ours, theirs in zip(self.rates[way], self.rates["pillow"], strict=True)
        )


class PreprocessRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What this script measured.

    Attributes:
        created: UTC time, ISO 8601.
        environment: The machine and its libraries.
        compiler: Its version, in its own words.
        flags: It was given.
        cases: In the order of ``SIZES`` and ``CONTRACTS``.
    """

    schema_version: int = 1
    created: str
    environment: Environment
    compiler: str
    flags: tuple[str, ...]
    cases: tuple[Case, ...]


def products(size: tuple[int, int], spec: Preprocess) -> tuple[int, int] | None:
    """Count the products of a whole resize and of what its crop needs, about: edges have fewer taps."""
    if spec.interpolation not in SUPPORT:
        return None
    width, height = resized_size(size, spec.resize)
    taps_x, taps_y = (
        2 * SUPPORT[spec.interpolation] * max(a / b, 1) for a, b in zip(size, (width, height), strict=True)
    )
    side = spec.image_size
    whole = width * size[1] * taps_x + width * height * taps_y
    rows = min(size[1], side * size[1] / height + taps_y)
    return round(whole), round(side * rows * taps_x + side * side * taps_y)


def rate(call: Callable[[], object], images: int) -> float:
    """Repeat ``call``, which preprocesses so many images, for a while; images per second."""
    calls, begun = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < ROUND_S:
        call()
        calls += 1
    return calls * images / elapsed


def measure(driver: Driver, name: str, size: tuple[int, int], rounds: int) -> Case:
    """Check that the ways agree, and time them in turns."""
    spec = CONTRACTS[name]
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image, narrower = Image.fromarray(pixels), pixels[:, 1:]
    np.testing.assert_array_equal(driver.preprocess(pixels, spec), preprocess_image(image, spec))
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "pillow": (lambda: preprocess_image(image, spec), 1),
        "cpp": (lambda: driver.preprocess_many([pixels] * 4, spec), 4),
        "cpp, other sizes": (lambda: driver.preprocess_many([pixels, narrower] * 2, spec), 4),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, (call, images) in ways.items():
            rates[way].append(rate(call, images))
    return Case(
        contract=name,
        size=size,
        rates={way: tuple(values) for way, values in rates.items()},
        products=products(size, spec),
    )


def table(record: PreprocessRecord) -> list[str]:
    """Lines of a Markdown table, images per second."""
    head = ("size", "contract", "Pillow", "C++", "ratio", "C++, other sizes", "ratio", "of that: crop", "products/s")
    rows = [head, ("---",) * len(head)]
    for case in record.cases:
        pillow, kept, fresh = (statistics.median(values) for values in case.rates.values())
        part = rate = ""
        if case.products is not None:
            whole, needed = case.products
            part, rate = f"{whole / needed:.2f}", f"{3 * needed * kept / 1e9:.2f} G"
        figures = (f"{kept:.0f}", f"{case.ratio('cpp'):.2f}", f"{fresh:.0f}", f"{case.ratio('cpp, other sizes'):.2f}")
        size = f"{case.size[0]}x{case.size[1]}"
        rows.append((size, case.contract, f"{pillow:.0f}", *figures, part, rate))
    return [f"| {' | '.join(cells)} |" for cells in rows]


def main() -> None:
    """Compile, measure, print, and write the record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--flags", default="-O3")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    flags = tuple(arguments.flags.split())
    version = subprocess.run([arguments.compiler, "--version"], capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        driver = Driver(compile_driver(Path(folder), arguments.compiler, flags))
        cases = tuple(measure(driver, name, size, arguments.rounds) for size in SIZES for name in CONTRACTS)
    record = PreprocessRecord(
        created=record_files.created_now(),
        environment=environment.collect(),
        compiler=version.splitlines()[0],
        flags=flags,
        cases=cases,
    )
    print(f"{record.compiler}, {' '.join(record.flags)}; one thread, images/s")
    print("\n".join(table(record)))
    if arguments.output is not None:
        record_files.write(record, arguments.output)


if __name__ == "__main__":
    main()
