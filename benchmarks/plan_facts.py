"""What TensorRT-RTX's compiler makes of a ResNet-50 in each precision, read from its plans. No GPU, no timing.

    python benchmarks/plan_facts.py [--image-size N]

Builds FP32, FP16, INT8 in the form that we give this compiler, and in the forms that we do not. Writes every figure to
benchmarks/results/.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
import torch

from resnet_deploy import environment
from resnet_deploy.builders import find_builder
from resnet_deploy.cli.terminal import TerminalProgress
from resnet_deploy.compiled.lint import Expected, lint
from resnet_deploy.compiled.plan import read_plan
from resnet_deploy.export import export_onnx
from resnet_deploy.models import create_model
from resnet_deploy.onnx_files import bytes_from_onnx, read_card
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.precision import lower_to_float16
from resnet_deploy.protocols import Silent
from resnet_deploy.quantize.calibrate import CalibrationSource, calibration_from, observe
from resnet_deploy.quantize.qdq import FORMS, insert_qdq
from resnet_deploy.specs import BatchRange, BuildSpec, CalibrationSpec, ModelCard, Precision, Preprocess

if TYPE_CHECKING:
    import onnx_ir as ir

RESULTS = Path(__file__).parent / "results"
BACKEND = "tensorrt-rtx"
BATCH = BatchRange(1, 8, 64)
OURS = FORMS[BACKEND]
INT8_FORMS = {
    "INT8, our form": OURS,
    "INT8, shortcuts quantized too": replace(OURS, shortcut=True),
    "INT8, weights per channel": replace(OURS, per_channel=True),
    "INT8, TensorRT's form: both": FORMS["tensorrt"],
}


@click.command()
@click.option("--image-size", default=224, show_default=True, help="Side of the images.")
def main(image_size: int) -> None:
    """Build, read, print a table, keep the record."""
    progress = TerminalProgress()
    model = network(image_size)
    arms = {}
    for name, precision, graph in progress.track(graphs(model), "compiling", 2 + len(INT8_FORMS)):
        arms[name] = facts(precision, graph)
    record = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": msgspec.to_builtins(environment.collect()),
        "versions": {name: environment.installed_version(name) for name in ("tensorrt-rtx", "onnx", "torch")},
        "model": {"architecture": "resnet50", "weights": "untrained, biases random", "image_size": image_size},
        "batch": BATCH.opt,
        "arms": arms,
    }
    stamp = str(record["created"])[:19].replace(":", "").replace("-", "") + "Z"
    path = RESULTS / f"plan-facts-{stamp}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    click.echo("\n".join(table(record)))
    click.echo(f"record: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def network(image_size: int) -> "ir.Model":
    """Export an untrained ResNet-50 whose convolutions have biases: a bias of zero is left out of a plan."""
    preprocess = Preprocess(image_size=image_size, resize=image_size)
    card = ModelCard(
        architecture="resnet50", num_classes=1000, weights="none", weights_sha256="", preprocess=preprocess
    )
    untrained = create_model("resnet50").eval()
    generator = torch.Generator().manual_seed(0)
    for module in untrained.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias, std=0.1, generator=generator)
    return export_onnx(untrained, card)


def graphs(model: "ir.Model") -> Iterator[tuple[str, Precision, bytes]]:
    """Lower the model to every precision and form: name, precision and graph."""
    yield "FP32", "fp32", bytes_from_onnx(model)
    yield "FP16", "fp16", bytes_from_onnx(lower_to_float16(model)[0])
    preprocess = read_card(model, name="the model").preprocess
    histograms, images = observe(model, [synthetic_images(preprocess, 2)])
    digests = dict.fromkeys(("dataset_sha256", "preprocess_sha256", "weights_sha256", "onnx_sha256"), "")
    calibration = calibration_from(
        histograms, CalibrationSpec(), CalibrationSource(dataset="generated", images=images, **digests)
    )
    for name, form in INT8_FORMS.items():
        yield name, "int8", bytes_from_onnx(lower_to_float16(insert_qdq(model, calibration, form)[0])[0])


def facts(precision: Precision, graph: bytes) -> dict[str, Any]:
    """Compile a graph and read the plan."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        # The graph says all of its precision; a spec of INT8 would want a calibration.
        spec = BuildSpec(backend=BACKEND, precision="fp32", batch=BATCH)
        built = find_builder(BACKEND)(graph, spec, Path(folder), Silent())
        seconds = time.perf_counter() - begin
        plan = (Path(folder) / built.file).read_bytes()
    compiled = read_plan(plan)
    return {
        "precision": precision,
        "targets": compiled.targets,
        "weighted_types": compiled.weighted_types(),
        "fused": compiled.fused_counts(),
        "kernels": len(compiled.kernels),
        "quantize_kernels": sum(layer.kind == "quantize" for layer in compiled.kernels),
        "activation_bytes": compiled.activation_bytes(BATCH.opt),
        "constants_bytes": compiled.constants_bytes,
        "plan_bytes": len(plan),
        "graph_bytes": len(graph),
        "build_s": seconds,
        "findings": len(lint(compiled, Expected(BACKEND, precision))),
    }


def table(record: dict[str, Any]) -> list[str]:
    """Lines of a Markdown table."""
    header = ("", "convolutions and classifier", "fused into them", "kernels", "activations, MB per image")
    header += ("weights, MB", "plan, MB", "build, s", "findings")
    rows = [[name, *cells(arm, record["batch"])] for name, arm in record["arms"].items()]
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)]


def cells(arm: dict[str, Any], batch: int) -> list[str]:
    """One plan's figures."""
    types = "; ".join(f"{count} {kinds}" for kinds, count in arm["weighted_types"].items())
    fused = ", ".join(f"{what} {count}" for what, count in sorted(arm["fused"].items()))
    sizes = [f"{arm[key] / 1e6:.1f}" for key in ("constants_bytes", "plan_bytes")]
    figures = [str(arm["kernels"]), f"{arm['activation_bytes'] / batch / 1e6:.1f}", *sizes]
    return [types, fused, *figures, f"{arm['build_s']:.1f}", str(arm["findings"])]


if __name__ == "__main__":
    main()
