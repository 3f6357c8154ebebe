"""One way to calibrate and quantize a model, timed, in a process of its own: `calibration.py` starts one for each turn.

    python benchmarks/calibration_arms.py ARM MODEL.onnx IMAGES.npy OUT.onnx

Prints seconds, and the peak of resident memory, as JSON. Every arm gets the same file of prepared images, read one at a
time from the disk, and may use as many threads as the others.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnet_deploy import environment
from resnet_deploy.ort_session import open_session

Images = NDArray[np.generic]
Run = Callable[[Path, Images, Path], None]


def one_by_one(images: Images) -> Iterator[Images]:
    """Yield batches of one, in memory."""
    for index in range(len(images)):
        yield np.ascontiguousarray(images[index : index + 1])


def plain() -> Run:
    """Run the FP32 model over the images and look at nothing: the bound."""

    def run(model: Path, images: Images, out: Path) -> None:
        session = open_session(model)
        for image in one_by_one(images):
            session.run(None, {"images": image})

    return run


def own(method: str, *, correct: bool) -> Run:
    """Quantize with this package, as `build --int8 --backend onnxruntime` does, with or without bias correction."""
    from resnet_deploy.onnx_files import bytes_from_onnx, initializers_digest
    from resnet_deploy.pipeline import calibrating, lowering
    from resnet_deploy.pipeline.source import read_source
    from resnet_deploy.quantize import bias, calibrate, equalize, observations
    from resnet_deploy.quantize.qdq import insert_qdq
    from resnet_deploy.specs import BuildSpec, CalibrationSpec

    def run(model: Path, images: Images, out: Path) -> None:
        source = read_source(model)
        spec = CalibrationSpec(method=method)  # type: ignore[arg-type]
        form = lowering.find_form(
            BuildSpec(backend="onnxruntime", precision="int8", calibration=spec), environment.collect().cpu
        )
        graph, _ = equalize.equalize(source.model)
        with ThreadPoolExecutor(1) as other:
            digest = other.submit(initializers_digest, graph.graph)
            histograms, count = calibrate.observe(graph, one_by_one(images))
        identity = observations.Observed(
            onnx_sha256=source.sha256,
            weights_sha256=source.card.weights_sha256,
            preprocess_sha256=source.card.preprocess.digest,
            graph_sha256=digest.result(),
        )
        seen = observations.Observations(identity, "images", {}, count, (), histograms)
        trial = calibrating.Trial(form, one_by_one(images[:16])) if method == "auto" else None
        calibration = calibrating.calibrate(graph, seen, spec, trial)
        quantized, _ = insert_qdq(graph, calibration, form)
        if correct:
            corrections = bias.measure_corrections(graph, quantized, list(one_by_one(images[:32])))
            quantized, _ = insert_qdq(bias.correct_biases(graph, corrections), calibration, form)
        out.write_bytes(bytes_from_onnx(quantized))

    return run


def onnxruntime(method: str) -> Run:
    """Quantize with ONNX Runtime's own tool: U8S8, per channel, 7-bit weights where the CPU has no dot product."""
    from onnxruntime import quantization as ort

    def run(model: Path, images: Images, out: Path) -> None:
        class Reader(ort.CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.images = one_by_one(images)

            def get_next(self) -> dict[str, Images] | None:
                image = next(self.images, None)
                return None if image is None else {"images": image}

        ort.quantize_static(
            model,
            out,
            Reader(),
            calibrate_method=ort.CalibrationMethod[method],
            quant_format=ort.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=not environment.collect().cpu.has_vnni,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
        )

    return run


def nncf() -> Run:
    """Quantize with NNCF's post-training quantization, defaults but for the number of images."""
    import nncf as library
    import onnx

    def run(model: Path, images: Images, out: Path) -> None:
        data = library.Dataset(one_by_one(images), lambda image: {"images": image})
        onnx.save(library.quantize(onnx.load(model), data, subset_size=len(images)), out)

    return run


ARMS: dict[str, Callable[[], Run]] = {
    "plain inference": plain,
    "resnet-deploy": partial(own, "percentile", correct=True),
    "resnet-deploy, biases as they are": partial(own, "percentile", correct=False),
    "resnet-deploy auto": partial(own, "auto", correct=True),
    "onnxruntime MinMax": partial(onnxruntime, "MinMax"),
    "onnxruntime Percentile": partial(onnxruntime, "Percentile"),
    "onnxruntime Entropy": partial(onnxruntime, "Entropy"),
    "nncf": nncf,
}


def main() -> None:
    """Run one arm and print what it took."""
    arm, model, images, out = sys.argv[1:]
    run, data = ARMS[arm](), np.load(images, mmap_mode="r")  # libraries are imported before the clock starts
    start = time.perf_counter()
    run(Path(model), data, Path(out))
    seconds = time.perf_counter() - start
    # The peak that getrusage gives is the parent's where that was larger.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak_bytes = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes}))


if __name__ == "__main__":
    main()
