"""Reading and writing ONNX files; what stands between a file of unknown origin and the graph passes.

The model card travels as JSON in the file's ``metadata_props``, where every ONNX tool keeps and shows it.
"""

import textwrap
from pathlib import Path
from typing import Final

import msgspec
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message

from resnet_deploy import artifact
from resnet_deploy.errors import ModelError, SpecError
from resnet_deploy.specs import ModelCard

CARD_KEY: Final = "resnet_deploy.model_card"
PRODUCER: Final = "resnet-deploy"
_EXPORT_HINT: Final = "write it with `resnet-deploy export`"


def load_onnx(path: Path) -> ir.Model:
    """Read an ONNX file that ``export`` wrote.

    Raises:
        FileError: If it is missing or cannot be read.
        ModelError: If it is not ONNX, is truncated, keeps tensors in other files, or is not a valid graph.
    """
    return onnx_from_bytes(artifact.read_bytes(path), name=str(path))


def onnx_from_bytes(data: bytes, *, name: str) -> ir.Model:
    """Parse a serialized ONNX model and run it through ONNX's checker; ``name`` is for messages.

    Raises:
        ModelError: As ``load_onnx``.
    """
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
        parsed = bool(proto.graph.node)
    except DecodeError:
        parsed = False
    if not parsed:
        raise ModelError(f"{name} is not an ONNX file, or was cut short", hint=_EXPORT_HINT)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer):
        raise ModelError(f"{name} keeps its weights in other files", hint="save it as a single file")
    if not _is_text(proto):
        raise ModelError(f"{name} is a damaged ONNX file: it holds a name that is not UTF-8", hint=_EXPORT_HINT)
    check_onnx(data, name=name)
    try:
        return ir.from_proto(proto)
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{name} is a damaged ONNX file: {_in_one_line(error)}", hint=_EXPORT_HINT) from error


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


def attach_card(model: ir.Model, card: ModelCard) -> None:
    """Put ``card`` into the model's metadata."""
    model.metadata_props[CARD_KEY] = msgspec.json.encode(card, order="sorted").decode()


def read_card(model: ir.Model, *, name: str) -> ModelCard:
    """Take the model card from the metadata.

    Raises:
        ModelError: If there is none, or it is damaged.
    """
    text = model.metadata_props.get(CARD_KEY)
    if text is None:
        raise ModelError(f"{name} carries no model card", hint=_EXPORT_HINT)
    try:
        return msgspec.json.decode(text, type=ModelCard)
    except (msgspec.DecodeError, SpecError) as error:
        raise ModelError(f"{name} carries a damaged model card: {_in_one_line(error)}", hint=_EXPORT_HINT) from error


def _is_text(message: Message) -> bool:
    """Whether every string in ``message`` is UTF-8.

    Protobuf does not mind those that are not, and gives them as bytes. The checker cannot quote them; onnx_ir reads
    them, and fails when it writes them.
    """
    for field, value in message.ListFields():
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
