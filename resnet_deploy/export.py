"""PyTorch to ONNX: one file with a dynamic batch, folded BatchNorms and names a person can read.

The exporter of torch traces the network together with its normalisation; then a few rewrites give the graph the shape
that every backend's fusions expect, and every node and tensor a name derived from the module it came from
(``layer1.0.conv1``, ``layer1.0.add``): calibration files, reports and searches refer to tensors by these names.
"""

import contextlib
import copy
import importlib
import io
import itertools
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from resnet_deploy.errors import AccuracyError, FileError, WeightsError
from resnet_deploy.onnx_files import PRODUCER, attach_card, bytes_from_onnx, initializers_digest
from resnet_deploy.ort_session import open_session, translate_refusals
from resnet_deploy.specs import INPUT_NAME, OUTPUT_NAME, ModelCard, Preprocess
from resnet_deploy.version import __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The newest opset that TensorRT 10 and 11, TensorRT-RTX and ONNX Runtime all take with half-precision Q/DQ scales.
OPSET: Final = 20
# One batch size is the traced one, one is smaller, one is odd: a batch baked in anywhere fails at one of them.
PROOF_BATCHES: Final = (1, 2, 7)
# FP32 sums of up to 4,608 products, added in another order, differ by about 1e-6 of the largest logit; a wrong
# normalisation, stride or shortcut shows at 1e-2 and above.
RELATIVE_TOLERANCE: Final = 1e-4


@dataclass(frozen=True)
class ExportCheck:
    """How far the file's logits are from PyTorch's: largest absolute difference, and largest absolute logit."""

    max_difference: float
    peak: float

    @property
    def relative(self) -> float:
        """The difference as a share of the largest logit."""
        return self.max_difference / self.peak if self.peak else self.max_difference


class _Deployed(nn.Module):
    """The network as it is deployed: input contract in front, BatchNorms folded, one mean as its pooling."""

    mean: torch.Tensor
    reciprocal_std: torch.Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network = fold_batch_norms(network)
        self.network.avgpool = _SpatialMean()
        self.preprocess = preprocess
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (preprocess.mean, preprocess.std))
        self.register_buffer("mean", mean)
        self.register_buffer("reciprocal_std", 1 / std)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.preprocess.dtype == "uint8":
            # Cast comes first: TensorRT wants a UINT8 input to feed a Cast and nothing else.
            images = (images.to(torch.float32).permute(0, 3, 1, 2) - self.mean) * self.reciprocal_std
        logits: torch.Tensor = self.network(images)
        return logits


class _SpatialMean(nn.Module):
    """Global average pooling whose trace is a single ReduceMean, without the reshapes of AdaptiveAvgPool2d."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean((2, 3))


def export_onnx(network: nn.Module, card: ModelCard) -> ir.Model:
    """Trace ``network`` (in eval mode) behind the input contract of ``card`` and tidy the graph.

    The network is left as it was. Input ``images`` (batch, *card.preprocess.shape), output ``logits``
    (batch, num_classes) float32. The card travels in the model, completed by the digest of the graph's constants.

    Raises:
        FileError: If there is no writing where temporary files go.
    """
    _load_tracer()
    deployed = _Deployed(network, card.preprocess).eval()
    with _quiet_exporter():
        program = torch.onnx.export(
            deployed,
            (example_images(card.preprocess, batch=2),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None
    model = program.model
    _restore_pooling(model.graph)
    for tidy in (ir_passes.RemoveUnusedNodesPass(), ir_passes.ClearMetadataAndDocStringPass()):
        tidy(model)
    _clear_value_metadata(model.graph)
    _name_after_modules(model.graph)
    model.producer_name, model.producer_version = PRODUCER, __version__
    attach_card(model, msgspec.structs.replace(card, initializers_sha256=initializers_digest(model.graph)))
    return model


def check_export(model: ir.Model, network: nn.Module, card: ModelCard) -> ExportCheck:
    """Run the model through ONNX's checker and, at several batch sizes, against PyTorch; the network is left as it was.

    Raises:
        AccuracyError: If the logits differ by more than ``RELATIVE_TOLERANCE`` of the largest one.
        WeightsError: If PyTorch's own logits are not finite.
    """
    data = bytes_from_onnx(model)
    onnx.checker.check_model(data, full_check=True)
    session = open_session(data)
    reference = copy.deepcopy(network).eval()
    differences, peaks = [], []
    for batch in PROOF_BATCHES:
        images = example_images(card.preprocess, batch=batch, seed=batch)
        expected = reference_logits(reference, card.preprocess, images)
        if not np.isfinite(expected).all():
            raise WeightsError(
                "PyTorch computes logits that are not finite", hint="check the weights for NaN and for extreme values"
            )
        with translate_refusals():
            (logits,) = session.run([OUTPUT_NAME], {INPUT_NAME: images.numpy()})
        differences.append(np.abs(logits - expected).max())
        peaks.append(np.abs(expected).max())
    check = ExportCheck(float(np.max(differences)), float(np.max(peaks)))  # unlike Python's max, this keeps a NaN
    if not check.relative <= RELATIVE_TOLERANCE:
        raise AccuracyError(
            f"the exported model differs from PyTorch by {check.max_difference:.3g} where the largest logit is "
            f"{check.peak:.3g}",
            hint="this is a defect of the export, not of your model; please report it",
        )
    return check


def reference_logits(network: nn.Module, preprocess: Preprocess, images: torch.Tensor) -> "NDArray[np.float32]":
    """Run the network, in eval mode, on contract tensors, normalised by PyTorch itself as torchvision does it."""
    if preprocess.dtype == "uint8":
        images = images.permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
        images = (images - mean) / std
    with torch.inference_mode():
        logits: NDArray[np.float32] = network(images).numpy()
    return logits


def example_images(preprocess: Preprocess, *, batch: int, seed: int = 0) -> torch.Tensor:
    """Make noise in the shape and dtype of the input contract."""
    generator = torch.Generator().manual_seed(seed)
    if preprocess.dtype == "uint8":
        return torch.randint(0, 256, (batch, *preprocess.shape), generator=generator, dtype=torch.uint8)
    return torch.randn((batch, *preprocess.shape), generator=generator)


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Return a copy in which every BatchNorm that follows a convolution is folded into it.

    W' = W * gamma / sqrt(var + eps) per output channel, b' = (b - mean) * gamma / sqrt(var + eps) + beta
    (Jacob et al. 2018, section 3.2).
    """
    network = copy.deepcopy(network).eval()
    for parent in list(network.modules()):
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    return network


def _restore_pooling(graph: ir.Graph) -> None:
    """Write ReduceMean over space as GlobalAveragePool and Flatten, which every backend has a quantized kernel for."""
    for node in list(graph):
        if node.op_type == "ReduceMean":
            features = node.inputs[0]
            pool = ir.node("GlobalAveragePool", [features], name="avgpool")
            flatten = ir.node("Flatten", [pool.outputs[0]], {"axis": 1}, name="flatten")
            graph.insert_before(node, [pool, flatten])
            node.outputs[0].replace_all_uses_with(flatten.outputs[0])
            assert features is not None
            assert features.shape is not None
            batch, channels = features.shape[0], features.shape[1]
            for value, shape in ((pool.outputs[0], (batch, channels, 1, 1)), (flatten.outputs[0], (batch, channels))):
                value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(shape)


def _clear_value_metadata(graph: ir.Graph) -> None:
    """Drop the exporter's notes on tensors, which the pass that clears those on nodes leaves."""
    made = (output for node in graph for output in node.outputs)
    for value in (*graph.inputs, *graph.initializers.values(), *made):
        value.metadata_props.clear()


_INPUT_NODES: Final = {
    "Cast": "images.cast",
    "Transpose": "images.transposed",
    "Sub": "images.centred",
    "Mul": "images.normalized",
}


def _name_after_modules(graph: ir.Graph) -> None:
    """Name every node, and the tensor it makes, after the module it came from; outputs of the graph keep theirs."""
    for initializer in list(graph.initializers.values()):
        assert initializer.name is not None
        initializer.name = initializer.name.removeprefix("network.")
    for node in graph:
        node.name = _node_name(node)
        (output,) = node.outputs
        if not output.is_graph_output():
            output.name = node.name


def _node_name(node: ir.Node) -> str:
    if node.op_type in ("Conv", "Gemm"):
        weight = node.inputs[1]
        assert weight is not None
        assert weight.name is not None
        return weight.name.removesuffix(".weight")
    if node.op_type in _INPUT_NODES:
        return _INPUT_NODES[node.op_type]
    source = next(value.producer() for value in node.inputs if value is not None and value.producer() is not None)
    assert source is not None
    assert source.name is not None
    block = source.name.rpartition(".")[0]
    if node.op_type == "Add":
        # The first operand is the last convolution of the block, or its downsampling one: layer1.0.downsample.0.
        return f"{block.removesuffix('.downsample')}.add"
    if node.op_type == "Relu":
        return f"{block}.relu" if source.op_type == "Add" else f"{source.name}.relu"
    if node.op_type == "MaxPool":
        return "maxpool"
    return node.name or node.op_type.lower()


def _load_tracer() -> None:
    """Import what traces, which makes a folder for its cache; the exporter would hide why that fails."""
    try:
        importlib.import_module("torch._dynamo")
    except OSError as error:
        raise FileError(
            f"PyTorch cannot make a folder for its cache: {error.strerror}",
            hint="set TMPDIR to a folder that can be written to",
        ) from error


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's remarks about itself from the terminal; its errors still come through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def proof_summary(check: ExportCheck) -> str:
    """Say in one line what was proved."""
    sizes = ", ".join(str(batch) for batch in PROOF_BATCHES)
    return (
        f"largest difference from PyTorch {check.max_difference:.2e} at batch {sizes} (largest logit {check.peak:.3g})"
    )
