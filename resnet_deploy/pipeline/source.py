"""The exported model that an engine is built from."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
        sha256: Digest of the file.
    """

    data: bytes
    model: "ir.Model"
    card: ModelCard
    sha256: str

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
    with ThreadPoolExecutor(1, thread_name_prefix="digest") as other:
        digest = other.submit(artifact.sha256_bytes, data)  # takes as long as reading the graph does
        model, card = read_exported(data, name=str(path))
    return Source(data, model, card, digest.result())
