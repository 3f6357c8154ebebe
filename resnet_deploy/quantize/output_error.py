"""Trying ranges out: how much of a layer's output is left when only the tensor that it reads is quantized.

The error of a tensor alone misleads: what a layer's weights are blind to costs nothing, and a value that is rare but
decisive costs much. So each candidate range is put before copies of the layers that read the tensor, all in one graph,
and what comes out is compared with what the unquantized tensor gives.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from resnet_deploy.onnx_files import split_weights
from resnet_deploy.ort_session import open_session, translate_refusals
from resnet_deploy.quantize.graph import activations, add_constant, grid_source, tensor_name
from resnet_deploy.quantize.qdq import QdqForm, activation_grid, grid_dtype
from resnet_deploy.quantize.ranges import Range
from resnet_deploy.specs import INPUT_NAME, RangeMethod
from resnet_deploy.verify import sqnr_db

if TYPE_CHECKING:
    from resnet_deploy.protocols import Array

MOST_DECIBELS: Final = 200.0  # nothing was lost
_FLOAT: Final = ir.TensorType(ir.DataType.FLOAT)


def measure_output_sqnr(
    model: ir.Model, ranges: Mapping[str, Mapping[RangeMethod, Range]], form: QdqForm, images: "Iterable[Array]"
) -> dict[str, dict[RangeMethod, float]]:
    """Measure how well each method's range serves the layers that read the tensor.

    For a convolution or the classifier that is the power of its output over that of the output's error; for sums and
    pooling, the same of the tensor itself. Where several read a tensor, the error is the mean over them.

    Args:
        model: The FP32 graph that the ranges were observed on; left as it was.
        ranges: Candidates, by tensor name and method.
        form: Whose grid to try them on.
        images: Batches of contract tensors, of any size.

    Returns:
        Decibels, at most ``MOST_DECIBELS``, by tensor name and method.

    Raises:
        BuildError: If ONNX Runtime refuses the graph.
    """
    trial = _Trial(model.clone(), form)
    for tensor in activations(trial.graph):
        name = tensor_name(grid_source(tensor))
        trial.try_out(tensor, name, ranges[name])
    # ONNX Runtime's optimizer takes the FP8 of a convolution for INT8: 1.32 computes nonsense then.
    session = open_session(*split_weights(trial.finished()), as_written=form.activation == "float8")
    totals = np.zeros(len(trial.outputs))
    for batch in images:
        with translate_refusals():
            totals += [float(value) for value in session.run(trial.outputs, {INPUT_NAME: batch})]
    return trial.summary(dict(zip(trial.outputs, totals, strict=True)))


class _Trial:
    """The graph with every candidate tried out beside what is really computed, and a sum of squares for each."""

    def __init__(self, model: ir.Model, form: QdqForm) -> None:
        self.model = model
        self.graph = model.graph
        self.form = form
        self.readings: dict[str, list[tuple[str, dict[RangeMethod, str]]]] = defaultdict(list)
        self._sums: list[ir.Value] = []
        self._added: list[ir.Node] = []

    @property
    def outputs(self) -> list[str]:
        """Names of the sums of squares."""
        return [tensor_name(value) for value in self._sums]

    def try_out(self, tensor: ir.Value, name: str, ranges: Mapping[RangeMethod, Range]) -> None:
        """Add what the readers of ``tensor`` make of each range, known under ``name`` in the summary."""
        quantized = {method: self._quantized(tensor, method, chosen) for method, chosen in ranges.items()}
        layers = [use.node for use in tensor.uses() if use.node.op_type in ("Conv", "Gemm") and use.idx == 0]
        others = any(use.node not in layers for use in tensor.uses() if use.node not in self._added)
        for layer in layers:
            errors = {}
            for method, value in quantized.items():
                copy = self._add(layer.op_type, [value, *layer.inputs[1:]], layer.attributes.values())
                errors[method] = self._power_of_difference(layer.outputs[0], copy)
            self.readings[name].append((self._power(layer.outputs[0]), errors))
        if others:
            errors = {method: self._power_of_difference(tensor, value) for method, value in quantized.items()}
            self.readings[name].append((self._power(tensor), errors))

    def finished(self) -> ir.Model:
        """The graph that computes the sums and nothing else."""
        self.graph.outputs.clear()
        self.graph.outputs.extend(self._sums)
        return self.model

    def summary(self, totals: Mapping[str, float]) -> dict[str, dict[RangeMethod, float]]:
        """Turn sums of squares into decibels."""
        found: dict[str, dict[RangeMethod, float]] = {}
        for name, readings in self.readings.items():
            methods = readings[0][1]
            found[name] = {
                method: _decibels([(totals[signal], totals[errors[method]]) for signal, errors in readings])
                for method in methods
            }
        return found

    def _quantized(self, tensor: ir.Value, method: RangeMethod, chosen: Range) -> ir.Value:
        scale, zero_point = activation_grid(chosen, self.form)
        name = f"{tensor.name}.{method}"
        grid = [
            add_constant(self.graph, f"{name}.scale", np.array(scale, np.float32)),
            add_constant(self.graph, f"{name}.zero_point", np.array(zero_point, grid_dtype(self.form))),
        ]
        return self._add("DequantizeLinear", [self._add("QuantizeLinear", [tensor, *grid]), *grid])

    def _power_of_difference(self, exact: ir.Value, tried: ir.Value) -> str:
        return self._power(self._add("Sub", [exact, tried]))

    def _power(self, value: ir.Value) -> str:
        total = self._add("ReduceSumSquare", [value], [ir.AttrInt64("keepdims", 0)])
        total.type, total.shape = _FLOAT, ir.Shape([])
        self._sums.append(total)
        return tensor_name(total)

    def _add(self, op_type: str, inputs: list[ir.Value | None], attributes: Iterable[ir.Attr] = ()) -> ir.Value:
        node = ir.Node("", op_type, inputs, attributes)
        node.name = f"trial.{len(self._added)}"
        node.outputs[0].name = node.name
        self._added.append(node)
        self.graph.append(node)
        return node.outputs[0]


def _decibels(powers: list[tuple[float, float]]) -> float:
    """Mean of the relative errors, from (signal, error) pairs, in decibels."""
    relative = [error / signal if signal else float(error > 0) for signal, error in powers]
    mean = sum(relative) / len(relative)
    return min(sqnr_db(1.0, mean), MOST_DECIBELS)
