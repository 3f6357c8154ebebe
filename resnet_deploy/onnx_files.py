"""Reading and writing ONNX files; what stands between a file of unknown origin and the graph passes.

The model card travels as JSON in the file's ``metadata_props``, where every ONNX tool keeps and shows it.
"""

from pathlib import Path
from typing import Final

import msgspec
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

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
        ModelError: If it is not ONNX, is truncated, or keeps tensors in other files.
    """
    return onnx_from_bytes(artifact.read_bytes(path), name=str(path))


def onnx_from_bytes(data: bytes, *, name: str) -> ir.Model:
    """Parse a serialized ONNX model; ``name`` is for messages.

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
    try:
        return ir.from_proto(proto)
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{name} is a damaged ONNX file: {_first_line(error)}", hint=_EXPORT_HINT) from error


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
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, SpecError) as error:
        raise ModelError(f"{name} carries a damaged model card: {_first_line(error)}", hint=_EXPORT_HINT) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
