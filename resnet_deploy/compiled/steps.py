"""Kernels that the graph compiler generates, told by their names: ``__myl_MulMinMaxRounCast`` lists what they do."""

import re
from typing import Final

from resnet_deploy.compiled.layers import Kind, Tensor

_MOVES: Final = {"Tran", "Repl", "Conc", "Resh", "Move", "Copy", "Cast", "Slic"}
_ROUNDS: Final = {"Cast", "Mul", "Div", "Min", "Max", "Roun"}  # quantization, dequantization, and both


def steps_of(name: str) -> tuple[str, ...]:
    """Read the steps out of a kernel's name; none if it is not a generated one."""
    found = re.search(r"__myl_((?:[A-Z][a-z]*)+)", name)
    return tuple(re.findall("[A-Z][a-z]*", found[1])) if found else ()


def nodes_of(text: str) -> tuple[str, ...]:
    """Read the nodes out of what compilers say of a kernel's origin: ``[ONNX Layer: conv1][ONNX Layer: relu]``."""
    parts = (part.partition("]") for part in text.split("[ONNX Layer: ")[1:])
    return tuple(name for name, end, _ in parts if end)


def kind_of(steps: tuple[str, ...], inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Kind:
    """Tell what a generated kernel mainly does, by its steps and by what it reads and writes."""
    if "Fc" in steps or "Gemm" in steps:
        return "matrix multiply"
    if "Mean" in steps or "Sum" in steps:
        return "reduction"
    if set(steps) <= _MOVES:
        return "reformat"
    if set(steps) <= _ROUNDS:
        if {tensor.dtype for tensor in inputs if not tensor.constant} == {"int8"}:
            return "dequantize"
        if "Roun" in steps and any(tensor.dtype == "int8" for tensor in outputs):
            return "quantize"
    return "pointwise"


def fused_by(steps: tuple[str, ...], inputs: tuple[Tensor, ...], kind: Kind) -> tuple[str, ...]:
    """What a generated kernel does besides its kind; a sum is residual where both its sides are activations."""
    activations = sum(not tensor.constant for tensor in inputs)
    sums = steps.count("Add")
    is_residual = sums > 0 and activations > 1
    fused = ["bias"] if sums > is_residual else []
    fused += ["add"] if is_residual else []
    fused += ["relu"] if "Relu" in steps else []
    fused += ["quantize"] if "Roun" in steps and kind != "quantize" else []
    return tuple(fused)
