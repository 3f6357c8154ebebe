"""Weights to an exported model, checked against PyTorch before it is kept."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from resnet_deploy import artifact
from resnet_deploy.capabilities import have_modules
from resnet_deploy.errors import BackendError, DataError, FileError, SpecError
from resnet_deploy.names import readable
from resnet_deploy.pipeline.references import read_weights_digest
from resnet_deploy.specs import ExportSpec, ModelCard

if TYPE_CHECKING:
    from resnet_deploy.export import ExportCheck
    from resnet_deploy.protocols import Progress

# The extras that install what exporting takes; onnxscript is imported by PyTorch's exporter, ONNX Runtime by the check.
_LIBRARIES: Final = dict.fromkeys(("torch", "onnx", "onnx_ir", "onnxscript", "safetensors"), "export") | {
    "onnxruntime": "cpu"
}
_LABELS_MIB: Final = 16  # that labels may have; those of 20,000 classes have one
_REINSTALL: Final = 'pip install --force-reinstall "resnet-deploy[export,cpu]"'


@dataclass(frozen=True)
class Exported:
    """An exported model on the disk.

    Attributes:
        path: The ONNX file.
        reference_path: The weights it was made from, which `bench` runs in PyTorch beside the engines.
        card: What it is.
        check: How far it is from PyTorch.
        size_bytes: Of the ONNX file.
    """

    path: Path
    reference_path: Path
    card: ModelCard
    check: "ExportCheck"
    size_bytes: int


def export(spec: ExportSpec, output: Path, progress: "Progress") -> Exported:
    """Load the weights, export, check, and write ``output`` and its PyTorch weights beside it.

    Nothing is written unless the exported graph agrees with PyTorch.

    Raises:
        SpecError, FileError, WeightsError: If the request or the weights are at fault.
        BackendError: If PyTorch, ONNX or ONNX Runtime is not installed.
        AccuracyError: If the graph differs from PyTorch beyond tolerance.
    """
    libraries = have_modules(_LIBRARIES)
    if not libraries.ok:
        raise BackendError(f"cannot export: {libraries.reason}", hint=libraries.fix)
    try:
        with progress.task("loading PyTorch"):
            from resnet_deploy import checkpoints, models
            from resnet_deploy.export import check_export, export_onnx
            from resnet_deploy.onnx_files import bytes_from_onnx, read_card
    except ImportError as error:
        raise BackendError(f"cannot export: {error}", hint=_REINSTALL) from error
    _require_free(output)
    reference_path = output.with_suffix(".safetensors")
    # The files first: where there is no writing, nobody should wait for a download to learn it. Nor should a new model
    # ever lie beside old weights.
    with artifact.atomic_files(reference_path, output) as (weights_file, onnx_file):
        loaded = models.load_model(spec.architecture, spec.weights, num_classes=spec.num_classes, progress=progress)
        card = ModelCard(
            architecture=loaded.architecture,
            num_classes=loaded.num_classes,
            weights=readable(loaded.weights),
            weights_sha256=loaded.weights_sha256,
            labels=spec.labels or loaded.labels,
            folders=loaded.folders,
            preprocess=spec.preprocess(loaded.resize),
        )
        with progress.task(f"exporting {spec.architecture} to ONNX"):
            model = export_onnx(loaded.module, card)
            card = read_card(model, name=str(output))  # completed by what is known of the graph alone
        with progress.task("checking it against PyTorch"):
            check = check_export(model, loaded.module, card)
        metadata = {"architecture": card.architecture, "weights_sha256": card.weights_sha256, "weights": card.weights}
        with progress.task(f"writing {output}"), artifact.translate_os_errors(output):
            data = bytes_from_onnx(model)
            onnx_file.write_bytes(data)
            weights_file.write_bytes(checkpoints.state_dict_bytes(loaded.module.state_dict(), metadata))
    return Exported(output, reference_path, card, check, len(data))


def _require_free(output: Path) -> None:
    """Refuse, before the work, to put the model or its weights where something else is."""
    if artifact.is_folder(output):
        raise FileError(f"{output} is a folder, not a file", hint=f"give a file, such as {output / 'resnet50.onnx'}")
    if output.suffix != ".onnx":
        # The weights go under the same name with another ending: m.v1 and m.v2 would both have theirs in m.safetensors.
        raise SpecError(f"{output} does not end in .onnx", hint=f"use a name such as {output.name}.onnx")
    reference_path = output.with_suffix(".safetensors")
    if artifact.exists(reference_path) and read_weights_digest(reference_path) is None:
        raise FileError(
            f"{reference_path} was not written by `export`, which keeps the PyTorch weights there",
            hint="choose another place or name with -o",
        )


def read_labels(path: Path) -> tuple[str, ...]:
    """Read one label per line, in the order of the logits; blank lines at the end and a byte-order mark are ignored.

    Raises:
        FileError: If the file cannot be read, or is larger than any list of labels.
        DataError: If it is not text, it is empty, or a line in the middle is blank.
    """
    try:
        text = artifact.read_bytes(path, most_mib=_LABELS_MIB).decode("utf-8-sig").rstrip()
        # As a file gives its lines, and not splitlines(), for which a label may end in its middle, at U+2028 or U+0085.
        lines = tuple(line.strip() for line in io.StringIO(text, newline=None))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text", hint="give a file with one label per line") from error
    if not lines:
        raise DataError(f"{path} is empty", hint="give one label per line")
    if not all(lines):
        raise DataError(f"{path}: line {lines.index('') + 1} is blank", hint="give one label per line")
    return lines
