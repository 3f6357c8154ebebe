"""ONNX Runtime takes the lowered graph as it is; building means proving that it loads."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from resnet_deploy.backends import find_backend
from resnet_deploy.builders import BuiltEngine
from resnet_deploy.bundle import Requirements
from resnet_deploy.environment import installed_version
from resnet_deploy.ort_providers import open_on
from resnet_deploy.ort_session import import_onnxruntime, open_session
from resnet_deploy.specs import BuildSpec

if TYPE_CHECKING:
    from resnet_deploy.protocols import Progress

ENGINE: Final = "model.onnx"


def build_for_gpu(lowered: bytes, spec: BuildSpec, folder: Path, progress: "Progress") -> BuiltEngine:
    """Write ``model.onnx`` into ``folder`` and open it once on the execution provider that is to run it.

    The file is the portable graph: providers that compile do so where it is opened.

    Raises:
        BackendError: If this ONNX Runtime lacks the provider, or would run another in its place.
        BuildError: If it refuses the graph.
    """
    ort = import_onnxruntime()
    (folder / ENGINE).write_bytes(lowered)
    provider = find_backend(spec.backend).provider
    with progress.task(f"opening it with {provider}"):
        open_on(provider, folder / ENGINE)
    library = "onnxruntime-gpu" if installed_version("onnxruntime-gpu") else "onnxruntime"
    return BuiltEngine(file=ENGINE, requires=Requirements(library=library), toolchain={library: ort.__version__})


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
