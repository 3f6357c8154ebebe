"""The exported model that an engine is built from."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_deploy import artifact
from resnet_deploy.specs import ModelCard

if TYPE_CHECKING:
    import onnx_ir as ir

    from resnet_deploy.quantize.equalize import EqualizationReport


@dataclass(frozen=True)
class Source:
    """An exported model, as its file has it and as a graph.

    Attributes:
        data: The bytes of the file.
        model: The FP32 graph; passes leave it as it is.
        card: What it says of itself.
    """

    data: bytes
    model: "ir.Model"
    card: ModelCard

    @cached_property
    def sha256(self) -> str:
        """Digest of the file."""
        return artifact.sha256_bytes(self.data)

    def graph_to_quantize(self, *, equalize: bool) -> "tuple[ir.Model, EqualizationReport | None]":
        """Return the FP32 graph that INT8 is made of: this one, or the same function with its channels rescaled."""
        from resnet_deploy.quantize.equalize import equalize as rescale

        return rescale(self.model) if equalize else (self.model, None)


def read_source(path: Path) -> Source:
    """Read an ONNX file that ``export`` wrote.

    Raises:
        FileError: If it is missing or cannot be read.
        ModelError: If it is damaged, or not a model that ``export`` wrote.
    """
    from resnet_deploy.onnx_files import read_exported

    data = artifact.read_bytes(path)
    return Source(data, *read_exported(data, name=str(path)))
