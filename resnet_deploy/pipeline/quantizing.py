"""An exported graph to INT8 or FP8: calibrate, search where a limit is set, lower."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from resnet_deploy.bundle import CALIBRATION, CORRECTIONS, OBSERVATIONS, SEARCH
from resnet_deploy.pipeline import lowering, searching
from resnet_deploy.pipeline.calibrating import Material, calibrate, find_trial, observe
from resnet_deploy.pipeline.correcting import correct

if TYPE_CHECKING:
    from resnet_deploy.datasets import BatchReader
    from resnet_deploy.environment import Cpu
    from resnet_deploy.pipeline.lowering import Lowered
    from resnet_deploy.pipeline.source import Source
    from resnet_deploy.protocols import Progress
    from resnet_deploy.quantize.equalize import EqualizationReport
    from resnet_deploy.quantize.search import Search
    from resnet_deploy.specs import BuildSpec


@dataclass(frozen=True)
class Request:
    """What INT8 or FP8 is made from.

    Attributes:
        source: The exported model.
        spec: What the engine is to be.
        material: What to calibrate on.
        data: The images that the accuracy is measured on where ``spec`` limits its drop.
        cpu: What this machine can do.
    """

    source: "Source"
    spec: "BuildSpec"
    material: Material
    data: "BatchReader | None"
    cpu: "Cpu"


@dataclass(frozen=True)
class Quantized:
    """A graph on integers and how it came to be.

    Attributes:
        lowered: The graph.
        images: Digest of the images that it was calibrated on; empty for noise.
        files: What a bundle keeps of it, by file name.
    """

    lowered: "Lowered"
    images: str
    files: dict[str, bytes]


def quantize(request: Request, measured: Path, key: str, progress: "Progress") -> Quantized:
    """Take the graph to INT8 or FP8.

    Args:
        request: From what.
        measured: Where a search keeps what it has measured, until it has ended.
        key: Digest of everything that the measurements depend on.
        progress: Shows what takes longer than a moment.

    Raises:
        UserError: If the images or the observations are at fault.
        AccuracyError: If the drop cannot be kept within its limit.
    """
    from resnet_deploy.quantize.bias import bytes_from_corrections

    source, spec = request.source, request.spec
    assert spec.calibration is not None
    with progress.task("equalizing"):
        graph, report = source.graph_to_quantize(equalize=spec.calibration.equalize)
    form = lowering.find_form(spec, request.cpu)
    observations = observe(source, graph, request.material, progress)
    trial = find_trial(spec.calibration, form, request.material, source.card, progress)
    calibration = calibrate(graph, observations, spec.calibration, trial)
    files = {CALIBRATION: calibration.to_json(), OBSERVATIONS: observations.to_bytes()}
    recipe = lowering.Recipe(graph, spec, request.cpu, calibration)
    notes = _equalization_in_words(report)
    if observations.device != "cpu":
        notes.append("calibrated by PyTorch on the GPU")
    if spec.calibration.correct_biases:
        recipe, note = correct(recipe, request.material, progress)
        notes.append(note)
    in_float: tuple[str, ...] = ()
    if spec.max_drop is not None:
        assert request.data is not None
        subject = searching.Subject(source, recipe, request.data)
        notebook = searching.Notebook(measured, key)
        found = searching.search_precision(subject, spec.max_drop, notebook, progress)
        notebook.close()
        files[SEARCH] = msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"
        in_float = found.in_float
        notes.append(_in_words(found))
    with progress.task(f"lowering to {spec.precision}"):
        lowered = lowering.lower(recipe, in_float)
    if lowered.corrections:
        files[CORRECTIONS] = bytes_from_corrections(lowered.corrections)
    return Quantized(replace(lowered, notes=(*notes, *lowered.notes)), observations.dataset_digest, files)


def _equalization_in_words(report: "EqualizationReport | None") -> list[str]:
    if report is None or not report.groups:
        return []
    factor = 2 ** max(max(-group.smallest, group.largest) for group in report.groups)
    count = len(report.groups)
    return [f"channels of {count} groups of tensors rescaled by factors up to {factor}: they were out of balance"]


def _in_words(found: "Search") -> str:
    images = f"{found.images} images of {found.dataset}"
    return f"{found.steps[-1].drop:.2f} points of {found.metric} lost on {images}, {found.max_drop:g} allowed"
