"""Reading and writing ONNX files; what stands between a file of unknown origin and the graph passes.

The model card travels as JSON in the file's ``metadata_props``, where every ONNX tool keeps and shows it.
"""

import hashlib
import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message

from resnet_deploy.errors import ModelError
from resnet_deploy.json_files import decode_json
from resnet_deploy.onnx_wire import has_external_tensors
from resnet_deploy.protocols import TensorSpec
from resnet_deploy.specs import INPUT_NAME, OUTPUT_NAME, ModelCard
from resnet_deploy.version import __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray

CARD_KEY: Final = "resnet_deploy.model_card"
PRODUCER: Final = "resnet-deploy"
_LARGE: Final = 1024  # bytes of a constant; what lies below may be a shape or a scale that the graph is optimized by
_NUMPYS_OWN: Final = 256  # numbers from here on are of types that other packages add to NumPy
_NOWHERE: Final = "in-memory"  # external data must have the name of a file
_EXPORT_HINT: Final = "write it with `resnet-deploy export`"
_AGAIN_HINT: Final = "do not change exported files: write it again with `resnet-deploy export`"
_WITH_CONSTANTS: Final = 4  # version of the format from which on constants need not be inputs as well
_MOST_AXES: Final = 4  # of weights; a product of many takes long
# Fields of a tensor beside those of weights: its name, type, shape and bytes.
_NUMBERS: Final = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_LISTS: Final = (*_NUMBERS, "external_data", "metadata_props")  # the last since ONNX 1.17
_EXTRAS: Final = ("segment", "doc_string", "data_location")
_DTYPES: Final = {"uint8": ir.DataType.UINT8, "float32": ir.DataType.FLOAT}


def read_exported(data: bytes, *, name: str) -> tuple[ir.Model, ModelCard]:
    """Parse a file that ``export`` wrote and hold its graph against the card that it carries; ``name`` is for messages.

    Everything downstream takes the input contract and the number of classes from the card alone.

    Raises:
        ModelError: As ``onnx_from_bytes`` and ``read_card``, or if inputs, outputs or weights are not the card's, or a
            layer has not the weights and bias of one.
    """
    model = onnx_from_bytes(data, name=name)
    card = read_card(model, name=name)
    contract = card.preprocess
    for kind, values, promised in (
        ("input", model.graph.inputs, TensorSpec(INPUT_NAME, contract.dtype, contract.shape)),
        ("output", model.graph.outputs, TensorSpec(OUTPUT_NAME, "float32", (card.num_classes,))),
    ):
        difference = _difference(kind, values, promised)
        if difference:
            raise ModelError(f"{name} is not what its model card says: {difference}", hint=_AGAIN_HINT)
    if initializers_digest(model.graph) != card.initializers_sha256:
        raise ModelError(f"the weights in {name} are not those that its model card names", hint=_AGAIN_HINT)
    for node in model.graph:
        difference = _layer_difference(node)
        if difference:
            raise ModelError(f"{name} is not what `export` writes: {difference}", hint=_AGAIN_HINT)
    return model, card


def onnx_from_bytes(data: bytes, *, name: str) -> ir.Model:
    """Parse a serialized ONNX model and run it through ONNX's checker; ``name`` is for messages.

    Raises:
        ModelError: If it is not ONNX, is truncated, keeps tensors in other files, or is not a valid graph.
    """
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
        parsed, has_others = bool(proto.graph.node), has_external_tensors(data)
    except (DecodeError, ValueError):
        parsed, has_others = False, False
    if not parsed:
        raise ModelError(f"{name} is not an ONNX file, or was cut short", hint=_EXPORT_HINT)
    if has_others:
        raise ModelError(f"{name} keeps its weights in other files", hint="save it as a single file")
    if not _is_text(proto):
        raise ModelError(f"{name} is a damaged ONNX file: it holds a name that is not UTF-8", hint=_EXPORT_HINT)
    check_onnx(_without_weights(proto).SerializeToString(), name=name)
    try:
        model = ir.from_proto(proto)
        _read_constants(model)
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{name} is a damaged ONNX file: {_in_one_line(error)}", hint=_EXPORT_HINT) from error
    return model


def check_onnx(data: bytes, *, name: str) -> None:
    """Run a serialized model through ONNX's checker, types and shapes included; ``name`` is for messages.

    Raises:
        ModelError: If it is not valid ONNX.
    """
    try:
        onnx.checker.check_model(data, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        # The ValueError is of a data type that ONNX does not know.
        raise ModelError(f"{name} is not valid ONNX: {_in_one_line(error)}", hint=_EXPORT_HINT) from error


def bytes_from_onnx(model: ir.Model) -> bytes:
    """Serialize ``model``; equal graphs give equal bytes."""
    return ir.to_proto(model).SerializeToString(deterministic=True)  # type: ignore[no-any-return]


def split_weights(model: ir.Model) -> "tuple[bytes, dict[str, NDArray[np.generic]]]":
    """Serialize ``model`` without its large constants, for a session that is handed those beside it.

    A serialized copy of a ResNet-50's weights, which the session would copy again, costs 0.2 s and 200 MB.

    Returns:
        The graph, where they are declared to be external data, and the constants by name: the model's own arrays.
    """
    split, weights = model.clone(), {}
    for name, value in split.graph.initializers.items():
        assert value.const_value is not None
        array = value.const_value.numpy()
        if array.nbytes >= _LARGE and array.dtype.num < _NUMPYS_OWN:  # a session takes no others: BF16, FP8
            dtype, shape = value.const_value.dtype, value.const_value.shape
            assert isinstance(shape, ir.Shape)
            value.const_value = ir.ExternalTensor(_NOWHERE, 0, array.nbytes, dtype, shape=shape, name=name)
            weights[name] = array
    return bytes_from_onnx(split), weights


def attach_card(model: ir.Model, card: ModelCard) -> None:
    """Put ``card`` into the model's metadata."""
    model.metadata_props[CARD_KEY] = msgspec.json.encode(card, order="sorted").decode()


def read_card(model: ir.Model, *, name: str) -> ModelCard:
    """Take the model card from the metadata.

    Raises:
        ModelError: If there is none, or it is damaged, or of another version that this one does not read.
    """
    text = model.metadata_props.get(CARD_KEY)
    if text is None:
        raise ModelError(f"{name} carries no model card", hint=_EXPORT_HINT)
    try:
        return decode_json(text, ModelCard)
    except ValueError as error:
        writer = model.producer_version or ""
        if model.producer_name == PRODUCER and writer != __version__:  # a card has no schema version of its own
            what = f"{name} was written by resnet-deploy {writer}, and this is {__version__}: {_in_one_line(error)}"
            raise ModelError(what, hint=f"use that version, or {_EXPORT_HINT}") from error
        raise ModelError(f"{name} carries a damaged model card: {_in_one_line(error)}", hint=_EXPORT_HINT) from error


def initializers_digest(graph: ir.Graph) -> str:
    """Hash names, dtypes, shapes and bytes of the graph's constants with SHA-256, whatever order they are stored in."""
    digest = hashlib.sha256()
    for name, value in sorted(graph.initializers.items()):
        assert value.const_value is not None
        array = value.const_value.numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.ravel().view(np.uint8).data)  # flattened first, because a scalar cannot change its dtype
    return digest.hexdigest()


def _difference(kind: str, values: Sequence[ir.Value], promised: TensorSpec) -> str:
    """Say what distinguishes the inputs, or the outputs, of a graph from the one that is promised; empty if nothing."""
    if len(values) != 1:
        return f"it has {len(values)} {kind}s, not one"
    (value,) = values
    if value.name != promised.name:
        return f"its {kind} is called {value.name!r}, not {promised.name!r}"
    what = f"{kind} {promised.name}"
    if value.dtype != _DTYPES[promised.dtype]:
        found = value.dtype.name.lower() if value.dtype is not None else "no tensor"
        return f"{what} is {found}, not {promised.dtype}"
    batch, *shape = value.shape or (0,)
    if tuple(shape) != promised.shape:
        return f"{what} has the shape {_by(shape)} per image, not {_by(promised.shape)}"
    if isinstance(batch, int):
        return f"{what} has a batch of {batch}, not one of any size"
    return ""


def _layer_difference(node: ir.Node) -> str:
    """Say what a convolution or classifier has that is none's: empty weights, or a bias of another length; or nothing.

    ONNX's checker does not look at the bias, nor does ONNX Runtime 1.22, which runs with one that is too short.
    """
    if node.op_type not in ("Conv", "Gemm"):
        return ""
    constants = [value.const_value for value in node.inputs[1:] if value is not None]
    if not constants or None in constants:
        return f"{node.name!r} computes its weights or its bias"
    weights, *bias = (constant.numpy() for constant in constants if constant is not None)
    if weights.ndim < 2 or weights.size == 0:
        return f"{node.name!r} has weights of shape {weights.shape}"
    if node.op_type == "Gemm" and not node.attributes.get_int("transB", 0):
        return f"{node.name!r} has its weights the other way round, without transB"
    if bias and bias[0].shape != weights.shape[:1]:
        return f"{node.name!r} has a bias of shape {bias[0].shape}, not {weights.shape[:1]}"
    return ""


def _by(shape: Iterable[object]) -> str:
    return "x".join(map(str, shape)) or "()"


def _read_constants(model: ir.Model) -> None:
    """Take the constants out of the parsed file, which would copy them each time that one is looked at.

    Those of nodes are looked at as well: of some types, the checker does not compare the bytes with the shape.

    Raises:
        ValueError, TypeError: If one is not as large as it says.
    """
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        value.const_value = ir.Tensor(value.const_value.numpy(), name=name)
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                attribute.as_tensor().numpy()


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Copy ``proto`` with the weights as inputs of their type and shape: each check would copy them, the checker twice.

    All other tensors stay, for the checks to judge: those that share their name, or are declared to be something else,
    too. Whether weights are as many as their shape asks for is found out when they are read.
    """
    if proto.ir_version < _WITH_CONSTANTS:
        return proto
    copy = onnx.ModelProto()
    for source, target, left_out in ((proto, copy, "graph"), (proto.graph, copy.graph, "initializer")):
        for field, value in source.ListFields():
            if field.name == left_out:
                continue
            if hasattr(value, "MergeFrom"):
                getattr(target, field.name).MergeFrom(value)
            else:
                setattr(target, field.name, value)
    names = Counter(one.name for part in (proto.graph.input, proto.graph.initializer) for one in part)
    names.update(one.values.name for one in proto.graph.sparse_initializer)
    declared = {value.name: value.type for value in proto.graph.value_info}
    for tensor in proto.graph.initializer:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        is_alone = names[tensor.name] == 1 and declared.get(tensor.name, value.type) == value.type
        if is_alone and _is_plain_weight(tensor):
            copy.graph.input.append(value)
        else:
            copy.graph.initializer.append(tensor)
    return copy


def _is_plain_weight(tensor: onnx.TensorProto) -> bool:
    """Whether it is large, FP32, and holds a name, a shape and bytes alone. To ask for a message's size copies it."""
    if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) > _MOST_AXES or not tensor.HasField("raw_data"):
        return False
    has_more = any(len(getattr(tensor, name, ())) for name in _LISTS) or any(map(tensor.HasField, _EXTRAS))
    return 4 * math.prod(tensor.dims) >= _LARGE and not has_more


def _is_text(message: Message) -> bool:
    """Whether every string in ``message`` is UTF-8.

    Protobuf does not mind those that are not, and gives them as bytes. The checker cannot quote them; onnx_ir reads
    them, and fails when it writes them.
    """
    fields = message.ListFields()
    if isinstance(message, onnx.TensorProto):  # its bytes would be copied to be listed
        fields = [
            (field, getattr(message, field.name)) for field in message.DESCRIPTOR.fields if field.name != "raw_data"
        ]
    for field, value in fields:
        if field.type == field.TYPE_MESSAGE:
            if not all(map(_is_text, [value] if isinstance(value, Message) else value)):
                return False
        elif field.type == field.TYPE_STRING or field.full_name == "onnx.AttributeProto.s":
            for text in [value] if isinstance(value, str | bytes) else value:
                if isinstance(text, bytes) and not _is_utf8(text):
                    return False
    return True


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _in_one_line(error: Exception) -> str:
    return textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__
