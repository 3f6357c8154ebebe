"""The exported FP32 graph, lowered to a precision in the form that the target runs fastest."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from resnet_deploy.errors import BackendError
from resnet_deploy.specs import BuildSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from resnet_deploy.environment import Cpu
    from resnet_deploy.quantize.bias import Corrections
    from resnet_deploy.quantize.calibrate import Calibration
    from resnet_deploy.quantize.qdq import QdqForm


_FEW_IMAGES: Final = 100


@dataclass(frozen=True)
class Recipe:
    """What a graph is lowered to, and with what.

    Attributes:
        model: The FP32 graph.
        spec: What the engine is to be.
        cpu: What this machine can do.
        calibration: Ranges of the graph's activations; absent for precisions other than INT8 and FP8.
        corrections: What is added to the biases of the layers that these quantize.
    """

    model: "ir.Model"
    spec: BuildSpec
    cpu: "Cpu"
    calibration: "Calibration | None" = None
    corrections: "Corrections" = field(default_factory=dict)


@dataclass(frozen=True)
class Lowered:
    """A graph ready for its builder.

    Attributes:
        model: The graph.
        quantized: Layers that run on integers, or in FP8.
        corrections: What was added to the biases of those layers.
        int8_dot_product: Whether its weights use the full 8 bits on a CPU, which then must have a dot product for them.
        notes: What was done, and what a reader of figures should know.
    """

    model: "ir.Model"
    quantized: tuple[str, ...]
    corrections: "Corrections"
    int8_dot_product: bool
    notes: tuple[str, ...]


def lower(recipe: Recipe, in_float: Collection[str] = ()) -> Lowered:
    """Lower a graph as ``recipe`` says, but for the nodes that are to stay ``in_float``.

    Raises:
        BackendError: If the backend has no such form.
        ModelError: If a weight does not fit 16 bits, or the calibration is of another model.
    """
    from resnet_deploy.quantize.bias import correct_biases
    from resnet_deploy.quantize.qdq import insert_qdq

    model, spec, calibration = recipe.model, recipe.spec, recipe.calibration
    notes: list[str] = []
    quantized: tuple[str, ...] = ()
    corrections: Corrections = {}
    full_range = False
    form = None
    if calibration is not None:
        form = find_form(spec, recipe.cpu)
        full_range = form.activation == "uint8" and form.weight_bits == 8
        if form.weight_bits == 7:
            notes.append("this CPU has no INT8 dot product: weights are 7-bit, so that its kernels do not saturate")
        notes += _calibration_notes(calibration)
        corrections = {layer: shift for layer, shift in recipe.corrections.items() if layer not in in_float}
        model, report = insert_qdq(correct_biases(model, corrections), calibration, form, in_float)
        quantized = report.quantized
        notes.append(f"{len(quantized)} layers and {len(report.activations)} activations quantized")
        notes += _left_in_words(report.left_in_float)
    model, found = _to_sixteen_bits(model, spec, form)
    notes += found
    return Lowered(model, quantized, corrections, full_range, tuple(notes))


def _to_sixteen_bits(model: "ir.Model", spec: BuildSpec, form: "QdqForm | None") -> "tuple[ir.Model, list[str]]":
    """Take what is not quantized to 16 bits, where spec or form ask for that; say what it cost."""
    from resnet_deploy.precision import lower_to_bfloat16, lower_to_float16

    if spec.precision == "bf16":
        kind, (lowered, report) = "BF16", lower_to_bfloat16(model)
    elif spec.precision == "fp16" or (form is not None and form.scale_dtype == "float16"):
        kind, (lowered, report) = "FP16", lower_to_float16(model)
    else:
        return model, []
    lost = sum(report.flushed.values())
    if not lost:
        return lowered, []
    return lowered, [f"{lost} weights in {len(report.flushed)} tensors were too small for {kind} and became 0"]


def _left_in_words(left: dict[str, str]) -> list[str]:
    """Say which layers stay in floating point, a line for each reason."""
    lines = []
    for reason in dict.fromkeys(left.values()):
        names = [name for name in left if left[name] == reason]
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        lines.append(f"{listed} {'stays' if len(names) == 1 else 'stay'} in floating point: {reason}")
    return lines


def find_form(spec: BuildSpec, cpu: "Cpu") -> "QdqForm":
    """Choose the form of Q/DQ for the target and, where the target is this CPU, what its kernels can do.

    Raises:
        BackendError: If the backend has no such form.
    """
    from resnet_deploy.quantize.qdq import FLOAT8_FORMS, FORMS

    forms = FLOAT8_FORMS if spec.precision == "fp8" else FORMS
    if spec.backend not in forms:
        reason = f"{spec.backend} has no {spec.precision.upper()} form"
        raise BackendError(reason, hint=f"choose one of: {', '.join(forms)}")
    form = forms[spec.backend]
    return replace(form, weight_bits=7) if form.activation == "uint8" and not cpu.has_vnni else form


def _calibration_notes(calibration: "Calibration") -> list[str]:
    """Say what a reader should know of the images, and what `auto` decided."""
    source, notes = calibration.source, []
    if not source.dataset_sha256:
        notes.append("calibrated on noise: the ranges suit no real image; do not deploy")
    elif source.images < _FEW_IMAGES:
        images = "1 image" if source.images == 1 else f"{source.images} images"
        notes.append(f"calibrated on {images}: a few hundred give ranges that suit others too")
    if source.skipped:
        names = ", ".join(source.skipped[:3]) + (", ..." if len(source.skipped) > 3 else "")
        images = "1 damaged image" if len(source.skipped) == 1 else f"{len(source.skipped)} damaged images"
        notes.append(f"{images} left out of the calibration: {names}")
    if calibration.spec.method == "auto":
        chosen = Counter(tensor.method for tensor in calibration.tensors.values())
        notes.append("auto chose " + ", ".join(f"{method} for {count}" for method, count in chosen.most_common()))
    return notes
