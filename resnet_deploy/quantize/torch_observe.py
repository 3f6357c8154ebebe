"""Calibration by PyTorch, on a GPU where there is one: what ``calibrate.observe`` does, without leaving the device.

The exported graph itself is run, rescaled channels and all, by PyTorch's functions in full FP32. Activations are
counted where they are made; what crosses to the host is two extremes and a row of counts for each, whatever the image's
size. Kernels of another device round differently in the last digit, so that ranges agree with a CPU's to within
rounding and histograms in all but the few values that lie at a bin's edge.
"""

import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F  # noqa: N812 - as PyTorch's own documentation has it

from resnet_deploy.batching import one_by_one
from resnet_deploy.errors import BackendError, DataError, ModelError
from resnet_deploy.quantize.counting import BINS, HALF
from resnet_deploy.quantize.graph import constant, observed_names, tensor_name
from resnet_deploy.quantize.observers import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_ir as ir
    from torch import Tensor

    from resnet_deploy.protocols import Array

    Operation = Callable[[ir.Node, list[Tensor]], Tensor]

_READ: Final = {"strides", "pads", "dilations", "kernel_shape", "perm", "to"}
_CONVOLUTION: Final = {"group": 1, "auto_pad": "NOTSET"}
_POOLING: Final = {"auto_pad": "NOTSET", "ceil_mode": 0, "storage_order": 0}
_PRODUCT: Final = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
_WRITTEN: Final[dict[str, object]] = _CONVOLUTION | _POOLING | _PRODUCT | {"axis": 1}
_PADDING: Final = {"Conv": 0.0, "MaxPool": -math.inf}


def observe(model: "ir.Model", images: "Iterable[Array]", device: str) -> tuple[dict[str, Histogram], int]:
    """Run ``model`` over contract tensors on ``device``, one image at a time, and observe its activations.

    Args:
        model: The FP32 model; left as it was.
        images: Batches of any size, each (N, *preprocess.shape).
        device: As PyTorch names it, such as ``cuda``.

    Returns:
        Histograms by tensor name, in order of execution, and the number of images seen.

    Raises:
        DataError: If there was no image.
        ModelError: If an activation is not finite, or the graph has an operation that ``export`` does not write.
        BackendError: If PyTorch fails there: its memory is full, or it has no kernels for such a device.
    """
    histograms = {name: Histogram() for name in observed_names(model.graph)}
    try:
        count = _run(model, images, device, histograms)
    except RuntimeError as error:  # all that PyTorch raises, out of memory among it
        reason = f"PyTorch failed on {device}: {str(error).partition(chr(10))[0]}"
        raise BackendError(reason, hint="calibrate with --calib-device cpu") from error
    if count == 0:
        raise DataError("no calibration images", hint="give --calib a folder of real images")
    return histograms, count


@torch.inference_mode()
def _run(model: "ir.Model", images: "Iterable[Array]", device: str, histograms: dict[str, Histogram]) -> int:
    """Count every image's activations into ``histograms``; return how many images there were."""
    graph, count = TorchGraph(model, device), 0
    # TensorFloat-32, which cuDNN would take for convolutions, has 10 digits of FP32's 23. What the classifier computes
    # is not observed.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for image in one_by_one(images):
            count += 1
            _count(histograms, graph.run(image, histograms), f"calibration image {count}")
    return count


def _count(histograms: dict[str, Histogram], tensors: "dict[str, Tensor]", image: str) -> None:
    """Count one image's activations where they are; they are waited for twice, not twice each."""
    extremes = torch.stack([torch.stack(values.aminmax()) for values in tensors.values()]).tolist()
    rows, scales = [], []
    for (name, values), (low, high) in zip(tensors.items(), extremes, strict=True):
        if not (math.isfinite(low) and math.isfinite(high)):
            reason = f"{image}: tensor {name} has a value that is not finite"
            raise ModelError(reason, hint="check the weights and the image")
        seen = Histogram(low=low + 0.0, high=high + 0.0)  # adding zero turns -0.0 into 0.0
        seen.cover(max(-low, high))
        scaled = values.flatten() * math.ldexp(HALF, -seen.exponent)
        rows.append(torch.bincount(scaled.to(torch.int32) + HALF, minlength=BINS))
        scales.append(seen)
    for name, seen, counts in zip(tensors, scales, torch.stack(rows).cpu().numpy(), strict=True):
        seen.counts += counts
        histograms[name].merge(seen)


class TorchGraph:
    """An exported graph, run by PyTorch's functions.

    Args:
        model: The FP32 graph; left as it was.
        device: Where its constants are put and it runs.

    Raises:
        ModelError: If it has an operation that ``export`` does not write, or has in another form.
    """

    def __init__(self, model: "ir.Model", device: str) -> None:
        self._device = device
        self._nodes = list(model.graph)
        self._input = tensor_name(model.graph.inputs[0])
        for node in self._nodes:
            if node.op_type not in _OPERATIONS or not _is_as_exported(node):
                reason = f"{node.name} is a {node.op_type} such as no exported ResNet has"
                raise ModelError(reason, hint="give a model that `export` wrote")
        self._constants = {
            name: torch.from_numpy(constant(value).copy()).to(device)
            for name, value in model.graph.initializers.items()
        }

    def run(self, images: "Array", names: Collection[str]) -> "dict[str, Tensor]":
        """Return the named tensors for a batch of contract tensors, in order of execution, on the device."""
        values = {self._input: torch.from_numpy(images).to(self._device)}
        for node in self._nodes:
            inputs = [
                self._constants[name] if name in self._constants else values[name]
                for name in map(tensor_name, node.inputs)
            ]
            values[tensor_name(node.outputs[0])] = _OPERATIONS[node.op_type](node, inputs)
        return {name: value for name, value in values.items() if name in names}


def _is_as_exported(node: "ir.Node") -> bool:
    """Whether the settings that the functions below do not read are as ``export`` writes them."""
    settings = {name: attribute.value for name, attribute in node.attributes.items() if name not in _READ}
    return settings == {name: _WRITTEN[name] for name in settings if name in _WRITTEN} and (
        node.op_type != "Gemm" or "transB" in settings
    )


def _integers(node: "ir.Node", name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return tuple(attribute.as_ints()) if attribute is not None else default


def _padded(node: "ir.Node", values: "Tensor") -> "Tensor":
    """Pad as ONNX says, (top, left, bottom, right); PyTorch's own argument knows no uneven padding."""
    top, left, bottom, right = _integers(node, "pads", (0, 0, 0, 0))
    sides = (left, right, top, bottom)
    return F.pad(values, sides, value=_PADDING[node.op_type]) if any(sides) else values


def _convolve(node: "ir.Node", inputs: "list[Tensor]") -> "Tensor":
    values, weights, *bias = inputs
    strides, dilations = (_integers(node, name, (1, 1)) for name in ("strides", "dilations"))
    return F.conv2d(_padded(node, values), weights, bias[0] if bias else None, strides, 0, dilations)


def _pool(node: "ir.Node", inputs: "list[Tensor]") -> "Tensor":
    kernel, strides, dilations = (_integers(node, name, (1, 1)) for name in ("kernel_shape", "strides", "dilations"))
    return F.max_pool2d(_padded(node, inputs[0]), kernel, strides, 0, dilations)


def _classify(node: "ir.Node", inputs: "list[Tensor]") -> "Tensor":
    values, weights, *bias = inputs
    return F.linear(values, weights, bias[0] if bias else None)


_OPERATIONS: Final[dict[str, "Operation"]] = {
    "Cast": lambda node, inputs: inputs[0].float(),
    "Transpose": lambda node, inputs: inputs[0].permute(_integers(node, "perm", ())),
    "Sub": lambda node, inputs: inputs[0] - inputs[1],
    "Mul": lambda node, inputs: inputs[0] * inputs[1],
    "Conv": _convolve,
    "Relu": lambda node, inputs: inputs[0].relu(),
    "MaxPool": _pool,
    "Add": lambda node, inputs: inputs[0] + inputs[1],
    "GlobalAveragePool": lambda node, inputs: inputs[0].mean((2, 3), keepdim=True),
    "Flatten": lambda node, inputs: inputs[0].flatten(1),
    "Gemm": _classify,
}
