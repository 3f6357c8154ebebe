"""A model quantized by the tools of others, as their documents show it: what peers run.

    python -m resnet_deploy.quantize.other_tools TOOL MODEL.onnx IMAGES.npy OUT

In a process of its own: NNCF patches functions of PyTorch, ONNX Runtime's tool writes to the root of the logs, and
neither gives its memory back; what is measured beside them must not know of them.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from resnet_deploy.errors import BuildError

if TYPE_CHECKING:
    from resnet_deploy.protocols import Array


def quantize_apart(tool: str, model: Path, images: Path, output: Path) -> None:
    """Quantize ``model`` in another process.

    Args:
        tool: A name in ``TOOLS``.
        model: The exported FP32 model.
        images: Contract tensors to calibrate on, (N, *contract shape), as NumPy saves them.
        output: Where the quantized model goes, in the format of the tool: ONNX, or OpenVINO's.

    Raises:
        BuildError: If the tool fails; the message is the last line that it leaves.
    """
    command = [sys.executable, "-m", __spec__.name, tool, *map(str, (model, images, output))]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - this very module
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"it ended with status {done.returncode}"
        raise BuildError(f"{tool} could not quantize the model: {reason}")


def quantize_with_onnxruntime(model: Path, images: "Array", output: Path) -> None:
    """Quantize with ONNX Runtime's ``quantize_static`` as its documents advise for x86.

    The model is pre-processed, Q/DQ, U8S8, per channel, ranges by MinMax; weights have 7 bits (``reduce_range``) where
    the CPU has no INT8 dot product. https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from resnet_deploy.environment import collect

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Hands over the images one at a time."""

        def __init__(self) -> None:
            self.images = _one_by_one(images)

        def get_next(self) -> "dict[str, Array] | None":
            """Return the next, or None after the last."""
            return next(self.images, None)

    prepared = output.with_suffix(".prepared.onnx")
    quant_pre_process(model, prepared)
    quantization.quantize_static(
        prepared,
        output,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=not collect().cpu.has_vnni,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def quantize_with_nncf(model: Path, images: "Array", output: Path) -> None:
    """Quantize with NNCF's post-training quantization for OpenVINO, defaults but for the number of images."""
    import nncf
    import openvino

    data = nncf.Dataset(list(range(len(images))), lambda index: {_INPUT: images[index : index + 1]})
    network = openvino.Core().read_model(str(model))
    openvino.save_model(nncf.quantize(network, data, subset_size=len(images)), str(output))


_INPUT: Final = "images"
TOOLS: Final[dict[str, Callable[[Path, Any, Path], None]]] = {
    "onnxruntime": quantize_with_onnxruntime,
    "nncf": quantize_with_nncf,
}


def _one_by_one(images: "Array") -> "Iterator[dict[str, Array]]":
    for index in range(len(images)):
        yield {_INPUT: images[index : index + 1]}


def _main() -> None:
    import numpy as np

    tool, model, images, output = sys.argv[1:]
    TOOLS[tool](Path(model), np.load(images), Path(output))


if __name__ == "__main__":
    _main()
