"""ONNX Runtime takes the lowered graph as it is; building means proving that it loads."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from resnet_deploy.builders import BuiltEngine
from resnet_deploy.bundle import Requirements
from resnet_deploy.ort_session import import_onnxruntime, open_session
from resnet_deploy.specs import BuildSpec

if TYPE_CHECKING:
    from resnet_deploy.protocols import Progress

ENGINE: Final = "model.onnx"


def build_engine(lowered: bytes, spec: BuildSpec, folder: Path, progress: "Progress") -> BuiltEngine:
    """Write ``model.onnx`` into ``folder`` and open it once.

    The file is the portable graph and not ONNX Runtime's optimized one, which would hold layouts of this very CPU.

    Raises:
        BackendError: If ONNX Runtime is not installed.
        BuildError: If it refuses the graph.
    """
    ort = import_onnxruntime()
    (folder / ENGINE).write_bytes(lowered)
    with progress.task("opening it with onnxruntime"):
        open_session(folder / ENGINE)
    notes: tuple[str, ...] = ()
    if spec.precision == "fp16":
        notes = ("ONNX Runtime computes FP16 in FP32 on most CPUs: expect half the size, not the speed",)
    return BuiltEngine(
        file=ENGINE,
        requires=Requirements(library="onnxruntime"),
        toolchain={"onnxruntime": ort.__version__},
        notes=notes,
    )
