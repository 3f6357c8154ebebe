"""What rounding weights otherwise could bring at most: INT8 as built, beside the same with weights left as they are.

    python benchmarks/rounding.py [FOLDER]

FOLDER is what `make demo` made; `demo` by default. AdaRound (Nagel et al., "Up or Down?", ICML 2020) and its like
choose for each weight whether it is rounded up or down. The best choice that does not make up for errors of activations
is as good as weights that are not rounded at all, and that is measured here, with the corrections of biases that a
build makes. Graphs are run as written. Writes every figure to benchmarks/results/.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec
import onnx_ir as ir
from int8_quality import CORRECTION_IMAGES, IMAGES, RESULTS, Images, compare, logits, observed, read_digits

from resnet_deploy import environment
from resnet_deploy.bench import record_files
from resnet_deploy.cli.terminal import TerminalProgress
from resnet_deploy.onnx_files import bytes_from_onnx
from resnet_deploy.pipeline.source import read_source
from resnet_deploy.precision import lower_to_float16
from resnet_deploy.quantize.bias import correct_biases, measure_corrections
from resnet_deploy.quantize.calibrate import Calibration, calibration_from
from resnet_deploy.quantize.equalize import equalize
from resnet_deploy.quantize.graph import add_constant, constant, tensor_name, weighted_nodes
from resnet_deploy.quantize.qdq import FORMS, QdqForm, insert_qdq
from resnet_deploy.specs import CalibrationSpec

COLUMNS = ("weights and activations on the grid", "activations alone")
ROWS = {
    f"{target}, {bits} bits, {'per channel' if per_channel else 'per tensor'}": replace(
        FORMS[target], weight_bits=bits, per_channel=per_channel
    )
    for target, bits in (("onnxruntime", 7), ("onnxruntime", 8), ("tensorrt-rtx", 8))
    for per_channel in (True, False)
}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True), default=Path("demo"))
def main(folder: Path) -> None:
    """Measure, print a table, keep the record."""
    source = read_source(folder / "resnet50.onnx")
    calibration_images, images, labels = read_digits(folder, source)
    expected = logits(source.data, images)
    model, _ = equalize(source.model)
    histograms, origin = observed(model, source, calibration_images)
    calibration = calibration_from(histograms, CalibrationSpec(), origin)
    few = [one[None] for one in calibration_images[:: len(calibration_images) // CORRECTION_IMAGES]]
    rows = []
    for name, form in TerminalProgress().track(ROWS.items(), "quantizing", len(ROWS)):
        for column, is_rounded in zip(COLUMNS, (True, False), strict=True):
            answers = logits(quantized(model, calibration, form, few, is_rounded=is_rounded), images)
            rows.append({"form": name, "on_grid": column} | compare(expected, answers, labels))
    record = {
        "created": (created := record_files.created_now()),
        "environment": msgspec.to_builtins(environment.collect()),
        "model": {"architecture": source.card.architecture, "weights_sha256": source.card.weights_sha256},
        "calibration_images": IMAGES,
        "images": len(images),
        "rows": rows,
    }
    (RESULTS / f"rounding-{record_files.file_stamp(created)}.json").write_text(json.dumps(record, indent=1) + "\n")
    click.echo("\n".join(table(rows)))


def quantized(
    model: ir.Model, calibration: Calibration, form: QdqForm, few: list[Images], *, is_rounded: bool
) -> bytes:
    """Quantize as a build does, biases corrected; with weights as they are where they are not to be rounded."""

    def in_form(graph: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
        lowered, report = insert_qdq(graph, calibration, form)
        if not is_rounded:
            restore_weights(lowered.graph, graph.graph)
        return lower_to_float16(lowered)[0] if form.scale_dtype == "float16" else lowered, report.quantized

    lowered, layers = in_form(model)
    shifts = measure_corrections(model, lowered, few)
    return bytes_from_onnx(in_form(correct_biases(model, {layer: shifts[layer] for layer in layers}))[0])


def restore_weights(lowered: ir.Graph, original: ir.Graph) -> None:
    """Feed every layer's weights from what they were before they were rounded."""
    exact = {node.name: constant(node.inputs[1]) for node in weighted_nodes(original)}
    for node in weighted_nodes(lowered):
        name = tensor_name(node.inputs[1])
        node.replace_input_with(1, add_constant(lowered, f"{name}.exact", exact[node.name]))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table: SQNR and top-1 of each form, rounded and not, and what lies between them."""
    lines = [("form", *COLUMNS, "at most to be gained, dB"), ("---",) * 4]
    for rounded, exact in zip(rows[::2], rows[1::2], strict=True):
        cells = [f"{row['sqnr_db']:.1f} dB, {100 * row['top1']:.2f} %" for row in (rounded, exact)]
        lines.append((rounded["form"], *cells, f"{exact['sqnr_db'] - rounded['sqnr_db']:.1f}"))
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    main()
