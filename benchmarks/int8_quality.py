"""What INT8 leaves of a trained network: every method, per tensor and per channel, with and without equalization.

The last column is what a build does by default: percentile, with biases corrected.

    python benchmarks/int8_quality.py [FOLDER]

FOLDER is what `make demo` made (its digits, weights and exported model); `demo` by default. The network is taken as it
was trained, and in two forms that compute the same with channels rescaled by factors over four decades. Graphs are run
as written: what is measured is the graph and not this CPU's kernels. Writes every figure to benchmarks/results/.
"""

import json
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import onnx_ir as ir
from hostile import make_hostile
from numpy.typing import NDArray

from resnet_deploy import environment
from resnet_deploy.cli.terminal import TerminalProgress
from resnet_deploy.datasets import BatchReader, find_dataset, find_images
from resnet_deploy.errors import ModelError
from resnet_deploy.export import export_onnx
from resnet_deploy.models import load_model
from resnet_deploy.onnx_files import bytes_from_onnx
from resnet_deploy.ort_session import open_session
from resnet_deploy.pipeline.source import Source, read_source
from resnet_deploy.precision import lower_to_float16
from resnet_deploy.quantize.bias import correct_biases, measure_corrections
from resnet_deploy.quantize.calibrate import Calibration, CalibrationSource, calibration_from, observe
from resnet_deploy.quantize.equalize import equalize
from resnet_deploy.quantize.observers import Histogram
from resnet_deploy.quantize.output_error import measure_output_sqnr
from resnet_deploy.quantize.qdq import FORMS, QdqForm, insert_qdq
from resnet_deploy.quantize.ranges import choose_ranges
from resnet_deploy.specs import CALIBRATION_METHODS, CalibrationSpec
from resnet_deploy.verify import best_classes, compare_logits

RESULTS = Path(__file__).parent / "results"
IMAGES = 256
TRIAL_IMAGES = 16
CORRECTION_IMAGES = 32
CORRECTED = "percentile, biases corrected"
COLUMNS = (*CALIBRATION_METHODS, CORRECTED)
WEIGHTS = ("trained", "hostile", "hostile, shortcuts too")

Images = NDArray[np.generic]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True), default=Path("demo"))
def main(folder: Path) -> None:
    """Measure, print tables, keep the record."""
    source = read_source(folder / "resnet50.onnx")
    calibration, images, labels = read_digits(folder, source)
    expected = logits(source.data, images)
    cases = list(all_cases())
    rows = []
    for weights, equalized in TerminalProgress().track(cases, "quantizing", len(cases)):
        model = graph(source, folder / "resnet50.safetensors", weights)
        if equalized:
            model, _ = equalize(model)
        for case, quantized in lowered(model, source, calibration):
            quality = {} if quantized is None else compare(expected, logits(quantized, images), labels)
            rows.append({"weights": weights, "equalized": equalized} | case | quality)
    record = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": msgspec.to_builtins(environment.collect()),
        "model": {"architecture": source.card.architecture, "weights_sha256": source.card.weights_sha256},
        "calibration_images": IMAGES,
        "images": len(images),
        "fp32_top1": float((best_classes(expected, 1)[:, 0] == labels).mean()),
        "rows": rows,
    }
    stamp = str(record["created"])[:19].replace(":", "").replace("-", "") + "Z"
    (RESULTS / f"int8-quality-{stamp}.json").write_text(json.dumps(record, indent=1) + "\n")
    click.echo(f"Top-1 in percent, SQNR in dB; FP32 has {record['fp32_top1']:.2%}.\n")
    click.echo("\n".join(table(rows)))


def read_digits(folder: Path, source: Source) -> tuple[Images, Images, NDArray[np.int64]]:
    """Images to calibrate on, those held out, and their labels, of what `make demo` left in ``folder``."""
    contract = source.card.preprocess
    calibration = read(BatchReader(find_images(folder / "digits/train").subset(IMAGES), contract, 32))
    dataset = find_dataset(folder / "digits/val", source.card)
    return calibration, read(BatchReader(dataset, contract, 32)), np.array(dataset.labels)


def all_cases() -> list[tuple[str, bool]]:
    """Weights, and whether they are equalized."""
    return [(weights, equalized) for weights in WEIGHTS for equalized in (False, True)]


def graph(source: Source, weights: Path, kind: str) -> ir.Model:
    """The exported network, or one that computes the same with hostile weights."""
    if kind == "trained":
        return source.model
    network = load_model(source.card.architecture, str(weights)).module.eval()
    return export_onnx(make_hostile(network, stream=kind != "hostile"), source.card)


def all_forms() -> dict[tuple[str, str], QdqForm]:
    """Every form by the first target that has it, per channel and per tensor.

    ONNX Runtime's with the 7 bits that any CPU computes rightly.
    """
    forms = FORMS | {"onnxruntime": replace(FORMS["onnxruntime"], weight_bits=7)}
    firsts = {form: target for target, form in reversed(forms.items())}
    return {
        (target, scales): replace(form, per_channel=scales == "per channel")
        for target, form in forms.items()
        for scales in ("per channel", "per tensor")
        if firsts[form] == target
    }


def lowered(model: ir.Model, source: Source, images: Images) -> list[tuple[dict[str, str], bytes | None]]:
    """Quantize by every method in every form; None where the values do not fit the form's number format."""
    histograms, origin = observed(model, source, images)
    ranges = {name: choose_ranges(histogram, CalibrationSpec()) for name, histogram in histograms.items()}
    found: list[tuple[dict[str, str], bytes | None]] = []
    for (target, scales), form in all_forms().items():
        for column in COLUMNS:
            quality = None
            if column == "auto":
                quality = measure_output_sqnr(model, ranges, form, [images[:TRIAL_IMAGES]])
            method = "percentile" if column == CORRECTED else column
            calibration = calibration_from(histograms, CalibrationSpec(method=method), origin, quality)
            case = {"target": target, "scales": scales, "method": column}
            try:
                quantized, layers = in_form(model, calibration, form)
                if column == CORRECTED:
                    few = [
                        images[index : index + 1] for index in range(0, len(images), len(images) // CORRECTION_IMAGES)
                    ]
                    shifts = measure_corrections(model, quantized, few)
                    corrected = correct_biases(model, {layer: shifts[layer] for layer in layers})
                    quantized, _ = in_form(corrected, calibration, form)
                found.append((case, bytes_from_onnx(quantized)))
            except ModelError:
                found.append((case, None))
    return found


def observed(model: ir.Model, source: Source, images: Images) -> tuple[dict[str, Histogram], CalibrationSource]:
    """What is seen of ``images``, and of what it was seen."""
    histograms, count = observe(model, [images])
    origin = CalibrationSource(
        dataset="train",
        dataset_sha256="",
        images=count,
        preprocess_sha256="",
        weights_sha256=source.card.weights_sha256,
        onnx_sha256="",
    )
    return histograms, origin


def in_form(model: ir.Model, calibration: Calibration, form: QdqForm) -> tuple[ir.Model, tuple[str, ...]]:
    """Quantize as one target wants it; say which layers run on integers then."""
    quantized, report = insert_qdq(model, calibration, form)
    return lower_to_float16(quantized)[0] if form.scale_dtype == "float16" else quantized, report.quantized


def read(reader: BatchReader) -> Images:
    """Read all images at once."""
    return np.concatenate([batch.images for batch in reader])


def logits(model: bytes, images: Images) -> NDArray[np.float32]:
    """Answer all images, every node as written."""
    found: NDArray[np.float32] = open_session(model, as_written=True).run(["logits"], {"images": images})[0]
    return found


def compare(expected: NDArray[np.float32], answers: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy, and what is left of the FP32 network's logits."""
    difference = compare_logits(expected, answers)
    top1 = float((best_classes(answers, 1)[:, 0] == labels).mean())
    return {"top1": top1, "agreement": difference.agreement, "sqnr_db": difference.sqnr_db}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table: a row for each combination, a column for each method, top-1 and SQNR in each cell.

    A form that several targets have is shown once, whatever was measured.
    """
    forms = all_forms()
    rows = [row for row in rows if (row["target"], row["scales"]) in forms]
    header = ("weights", "equalized", "form", "weight scales", *COLUMNS)
    lines = [header, ("---",) * len(header)]
    for start in range(0, len(rows), len(COLUMNS)):
        of_case = rows[start : start + len(COLUMNS)]
        first = of_case[0]
        cells = [f"{100 * row['top1']:.2f}, {row['sqnr_db']:.1f}" if "top1" in row else "refused" for row in of_case]
        lines.append(
            (first["weights"], "yes" if first["equalized"] else "no", first["target"], first["scales"], *cells)
        )
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    main()
