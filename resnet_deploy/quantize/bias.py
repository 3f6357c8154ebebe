"""Bias correction: take out of every channel the mean error that quantization brings into it.

Rounding weights shifts the mean of a layer's output, because what it reads after a ReLU is not centred on zero;
rounding and clipping activations add their share (Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.2; this is the empirical form of its appendix D). With y the FP32 layer's
output and y' the quantized one's, over a few images and all positions,

    b' = b + E[y - y']

layer by layer in order of execution, each measured with those before it corrected: what is left of their shift is taken
out too, and nothing twice. So the lowered graph is run a layer at a time. What later layers still need of each image is
held, so that memory grows with the images, which are few.

Every image is computed on one core, others beside it, and means are added up in the order of the images: several
threads on one image would add up in an order that depends on how many they are, and the biases with it.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import onnx_ir as ir

from resnet_deploy import artifact
from resnet_deploy.environment import compute_threads
from resnet_deploy.errors import DataError
from resnet_deploy.onnx_files import split_weights
from resnet_deploy.ort_session import open_session, translate_refusals
from resnet_deploy.quantize.graph import add_constant, constant, tensor_name, weighted_nodes, with_outputs
from resnet_deploy.specs import INPUT_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from numpy.typing import NDArray

    from resnet_deploy.protocols import Array

    Corrections: TypeAlias = Mapping[str, NDArray[np.float32]]  # what to add to the bias, by the layer's name

_MOST_WORKERS: Final = 8  # each may hold what every layer makes of an image, 44 MB of a ResNet-50's at 224 pixels


def measure_corrections(model: ir.Model, lowered: ir.Model, images: "Sequence[Array]") -> "Corrections":
    """Measure by how much each layer's bias is to be raised.

    Args:
        model: The FP32 graph.
        lowered: What was made of it; its layers have the names of the model's. Both are left as they were.
        images: Contract tensors of one image each, (1, *preprocess.shape); at least one.

    Returns:
        float32, (channels,), by name of the layer, in order of execution; the same whatever the number of cores. Left
        out are those whose error is not finite: the answers of such a graph are no better for it.

    Raises:
        BuildError: If ONNX Runtime refuses one of the graphs.
    """
    with ThreadPoolExecutor(min(compute_threads(), _MOST_WORKERS), thread_name_prefix="correct") as pool:
        expected = _mean_outputs(model, images, pool)
        corrections: dict[str, NDArray[np.float32]] = {}
        held = [{INPUT_NAME: image} for image in images]
        for stage in _stages(lowered.graph, {str(node.name) for node in weighted_nodes(model.graph)}):
            means = _run_stage(stage, lowered, held, pool)
            shift = (expected[stage.layer] - np.mean(means, axis=0)).astype(np.float32)
            is_finite = bool(np.isfinite(shift).all())
            if is_finite:
                corrections[stage.layer] = shift
            for values in held:
                if is_finite:
                    _raise(values[stage.result], shift)
                for name in stage.spent:
                    del values[name]
    return corrections


def correct_biases(model: ir.Model, corrections: "Corrections") -> ir.Model:
    """Return a copy of the FP32 ``model`` with its biases raised by ``corrections``; layers without one get one.

    Raises:
        DataError: If a correction is not of one number for each channel of its layer.
    """
    corrected = model.clone()
    for layer in weighted_nodes(corrected.graph):
        shift = corrections.get(str(layer.name))
        if shift is None:
            continue
        bias = layer.inputs[2] if len(layer.inputs) > 2 else None
        channels = constant(layer.inputs[1]).shape[:1] if bias is None else constant(bias).shape
        if shift.shape != channels:
            reason = f"the correction of {layer.name} has shape {shift.shape}, not {channels}"
            raise DataError(reason, hint="build the engine again")
        if bias is not None:
            bias.const_value = ir.tensor((constant(bias) + shift).astype(np.float32), name=bias.name)
        else:
            layer.resize_inputs(3)
            layer.replace_input_with(2, add_constant(corrected.graph, f"{layer.name}.bias", shift))
    return corrected


def bytes_from_corrections(corrections: "Corrections") -> bytes:
    """Serialize as safetensors, a tensor for each layer."""
    from safetensors.numpy import save

    return save(dict(corrections))


def read_corrections(path: "Path") -> "Corrections":
    """Read what ``bytes_from_corrections`` made.

    Raises:
        FileError: If the file is missing or cannot be read.
        DataError: If it is of another kind, damaged, or holds what is no finite number.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        corrections: Corrections = load(artifact.read_bytes(path))
    except (SafetensorError, ValueError, KeyError) as error:  # KeyError: of a type that NumPy lacks
        raise DataError(f"{path}: the corrections are damaged: {error}", hint="build the engine again") from error
    for layer, shift in corrections.items():
        if shift.dtype != np.float32 or not np.isfinite(shift).all():
            raise DataError(f"{path}: the correction of {layer} is damaged", hint="build the engine again")
    return corrections


def _mean_outputs(model: ir.Model, images: "Sequence[Array]", pool: "Executor") -> "dict[str, NDArray[np.float64]]":
    """Mean output of every layer of ``model`` over images and positions, (channels,) by name of the layer."""
    layers = {tensor_name(node.outputs[0]): str(node.name) for node in weighted_nodes(model.graph)}
    tapped = with_outputs(model, layers)
    names = [tensor_name(value) for value in tapped.graph.outputs]
    session = open_session(*split_weights(tapped), threads=1)

    def run(image: "Array") -> "list[NDArray[np.float64]]":
        with translate_refusals():
            return [_channel_means(values) for values in session.run(names, {INPUT_NAME: image})]

    by_layer = zip(*pool.map(run, images), strict=True)  # in the order of the images, whichever is done first
    return {layers[name]: np.mean(means, axis=0) for name, means in zip(names, by_layer, strict=True)}


def _run_stage(
    stage: "_Stage", lowered: ir.Model, held: "list[dict[str, Array]]", pool: "Executor"
) -> "list[NDArray[np.float64]]":
    """Run a stage on what is held of each image, which what it makes is added to; return the means of its layer."""
    session = open_session(*split_weights(stage.model(lowered)), threads=1, as_written=True)

    def run(values: "dict[str, Array]") -> "NDArray[np.float64]":
        with translate_refusals():
            made = session.run(stage.outputs, {name: values[name] for name in stage.inputs})
        values |= dict(zip(stage.outputs, made, strict=True))
        return _channel_means(values[stage.result])

    return list(pool.map(run, held))


def _channel_means(values: "Array") -> "NDArray[np.float64]":
    """Mean over positions: (1, channels, ...) to (channels,)."""
    # In single precision NumPy adds up in pairs: as good as double for the thousands of positions that there are.
    means: NDArray[np.float32] = values.reshape(values.shape[1], -1).mean(1, dtype=np.float32)
    return means.astype(np.float64)


def _raise(values: "Array", shift: "NDArray[np.float32]") -> None:
    """Make of a layer's output what it is with its bias corrected, in the data type that it computes in."""
    np.add(values, shift.reshape(-1, *(1,) * (values.ndim - 2)), out=values, dtype=np.float32, casting="same_kind")


@dataclass(frozen=True)
class _Stage:
    """The nodes that end with one layer, and what passes between them and the others.

    Attributes:
        layer: Name of the layer.
        result: Its output.
        inputs, outputs: Tensors made before, and tensors that are needed afterwards.
        spent: Tensors that nothing needs after this stage.
    """

    layer: str
    result: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    spent: tuple[str, ...]

    def model(self, whole: ir.Model) -> ir.Model:
        """Make these nodes a model of their own."""
        graph = ir.convenience.extract(whole.graph, list(self.inputs), list(self.outputs))
        return ir.Model(graph, ir_version=whole.ir_version)


def _stages(graph: ir.Graph, layers: set[str]) -> list[_Stage]:
    """Part a graph after each layer; what follows the last is dropped."""
    stage_of: dict[ir.Value, int] = dict.fromkeys(graph.inputs, -1)
    last_use: dict[ir.Value, int] = {}
    ends: list[ir.Node] = []
    for node in graph:
        for value in node.inputs:
            if value in stage_of:
                last_use[value] = len(ends)
        stage_of |= dict.fromkeys(node.outputs, len(ends))
        if node.name in layers:
            ends.append(node)
    found = []
    for number, layer in enumerate(ends):
        crossing = [value for value in stage_of if last_use.get(value, -1) >= number]
        made = [value for value in crossing if stage_of[value] == number and last_use[value] > number]
        read = [value for value in crossing if stage_of[value] < number and _read_in(value, stage_of, number)]
        spent = [value for value in stage_of if stage_of[value] < number and last_use.get(value, -1) == number]
        result = layer.outputs[0]
        found.append(
            _Stage(
                layer=str(layer.name),
                result=tensor_name(result),
                inputs=tuple(map(tensor_name, read)),
                outputs=tuple(map(tensor_name, dict.fromkeys([*made, result]))),
                spent=tuple(map(tensor_name, spent)),
            )
        )
    return found


def _read_in(value: ir.Value, stage_of: dict[ir.Value, int], number: int) -> bool:
    return any(stage_of.get(use.node.outputs[0]) == number for use in value.uses())
