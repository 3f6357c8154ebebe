"""OpenVINO takes the lowered graph as it is; building means proving that it compiles."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from resnet_deploy.builders import BuiltEngine
from resnet_deploy.bundle import Requirements
from resnet_deploy.environment import installed_version
from resnet_deploy.openvino_session import open_compiled
from resnet_deploy.specs import BuildSpec

if TYPE_CHECKING:
    from resnet_deploy.protocols import Progress

ENGINE: Final = "model.onnx"


def build_engine(lowered: bytes, spec: BuildSpec, folder: Path, progress: "Progress") -> BuiltEngine:
    """Write ``model.onnx`` into ``folder`` and compile it once.

    The file is the portable graph and not OpenVINO's own format: what it compiles to is made for this CPU.

    Raises:
        BackendError: If OpenVINO is not installed.
        BuildError: If it refuses the graph.
    """
    (folder / ENGINE).write_bytes(lowered)
    with progress.task("opening it with openvino"):
        open_compiled(folder / ENGINE)
    notes: tuple[str, ...] = ()
    if spec.precision == "fp16":
        notes = ("OpenVINO is told to compute in FP32: half the size, and the rounding of FP16 in the weights alone",)
    return BuiltEngine(
        file=ENGINE,
        requires=Requirements(library="openvino"),
        toolchain={"openvino": installed_version("openvino") or ""},
        notes=notes,
    )
