"""The kernels that an engine's compiler made, read from its bundle, and held against what is expected of them."""

from typing import TYPE_CHECKING

from resnet_deploy import artifact
from resnet_deploy.bundle import LAYERS, Bundle, Manifest
from resnet_deploy.compiled.inspector import read_inspector
from resnet_deploy.compiled.layers import CompiledGraph
from resnet_deploy.compiled.lint import FLAVOURS, PRECISIONS, Expected, Finding, lint
from resnet_deploy.compiled.plan import read_plan
from resnet_deploy.errors import BackendError, BundleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resnet_deploy.quantize.layers import Layer


def read_compiled(bundle: Bundle) -> tuple[CompiledGraph | None, str]:
    """Read an engine's kernels; where that cannot be done, the reason.

    What the inspector said when the engine was built goes before the plan, of which one flavour's alone can be read.
    """
    backend = bundle.manifest.spec.backend
    if backend not in FLAVOURS:
        return None, f"an engine of {backend} is a graph: what it launches is decided where it is loaded"
    try:
        if LAYERS in bundle.manifest.files:
            return read_inspector(artifact.read_bytes(bundle.path / LAYERS)), ""
        if backend == "tensorrt-rtx":
            return read_plan(artifact.read_bytes(bundle.engine_path)), ""
    except BundleError as error:
        return None, error.message
    return None, f"the bundle has no {LAYERS}: the engine was not inspected when it was built"


def lint_engine(
    manifest: Manifest, compiled: CompiledGraph | None, reason: str, layers: "Sequence[Layer]"
) -> tuple[Finding, ...]:
    """List what is wrong with an engine's kernels; layers that its graph has in floating point are meant to be there.

    Raises:
        BackendError: If they could not be read, for ``reason``.
    """
    spec = manifest.spec
    if compiled is None:
        flavour = spec.backend in FLAVOURS
        hint = "build it with one --batch" if flavour else "name an engine of TensorRT or TensorRT-RTX"
        raise BackendError(f"there are no kernels to lint: {reason}", hint=hint)
    if spec.precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        reason = f"what is expected of {spec.precision} kernels is not known"
        raise BackendError(reason, hint=f"--lint judges {known}; --layers lists any")
    in_float = frozenset(layer.name for layer in layers if not layer.scales)
    return lint(compiled, Expected(spec.backend, spec.precision, in_float))
