"""What stands between a bundle and TensorRT: a plan that does not suit this machine never reaches the deserializer."""

from typing import TYPE_CHECKING

from resnet_deploy import artifact
from resnet_deploy.bundle import LOWERED, OBSERVATIONS
from resnet_deploy.errors import BundleError
from resnet_deploy.trt_api import new_logger

if TYPE_CHECKING:
    from resnet_deploy.bundle import Bundle
    from resnet_deploy.trt_api import TrtApi


def read_plan(bundle: "Bundle", api: "TrtApi", compute_capability: str) -> bytes:
    """Read a bundle's plan; hold what it requires against library and GPU, and the bytes against their digest.

    Raises:
        BundleError: Naming the field that differs, and the command that builds the engine again.
    """
    manifest, path, hint = bundle.manifest, bundle.path, rebuild_hint(bundle)
    requires = manifest.requires
    if not requires.takes_version(api.version):
        raise BundleError(
            f"{path}: requires.version is {requires.library} {requires.version}, loaded is {api.version}", hint=hint
        )
    if unmet := requires.takes_gpu(compute_capability):
        raise BundleError(f"{path}: {unmet}, this GPU has {compute_capability}", hint=hint)
    plan = artifact.read_bytes(bundle.engine_path)
    if artifact.sha256_bytes(plan) != manifest.files[manifest.engine]:
        raise BundleError(
            f"{path}: {manifest.engine} was altered: its SHA-256 differs from files.{manifest.engine} in the manifest",
            hint=hint,
        )
    return plan


def read_graph(bundle: "Bundle") -> bytes:
    """Read the graph that the plan was compiled from; hold its bytes against their digest.

    Raises:
        BundleError: If it is not there, or was altered.
    """
    graph = artifact.read_bytes(bundle.path / LOWERED)
    if artifact.sha256_bytes(graph) != bundle.manifest.chain.lowered:
        reason = f"{bundle.path}: {LOWERED} was altered: its SHA-256 differs from chain.lowered in the manifest"
        raise BundleError(reason, hint=rebuild_hint(bundle))
    return graph


def check_header(bundle: "Bundle", api: "TrtApi", plan: bytes) -> tuple[str, ...]:
    """Ask TensorRT-RTX whether the plan's header suits this machine; other flavours cannot say. Return notes.

    Raises:
        BundleError: Naming what does not suit, in TensorRT-RTX's words.
    """
    if not hasattr(api.module.Runtime, "get_engine_validity"):
        return ()
    runtime = api.module.Runtime(new_logger(api))
    verdict, diagnostics = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    kinds = api.module.EngineInvalidityDiagnostics
    named = [name for name, kind in kinds.__members__.items() if int(diagnostics) & int(kind)]
    if verdict == api.module.EngineValidity.INVALID:
        reasons = ", ".join(named) or "no reason given"
        raise BundleError(
            f"{bundle.path}: {api.backend} says that the plan does not run here: {reasons}", hint=rebuild_hint(bundle)
        )
    if verdict == api.module.EngineValidity.SUBOPTIMAL:
        return (f"{api.backend} says that the plan is not at its best here: {', '.join(named) or 'no reason given'}",)
    return ()


def rebuild_hint(bundle: "Bundle") -> str:
    """Say how to build a bundle's engine again."""
    spec = bundle.manifest.spec
    observed = f" --calib {bundle.path / OBSERVATIONS}" if OBSERVATIONS in bundle.manifest.files else ""
    targets = " --target SM, such as sm89" if spec.trt.targets else ""
    return (
        f"build it again: resnet-deploy build {bundle.manifest.card.architecture}.onnx --{spec.precision}{observed} "
        f"--backend {spec.backend} --batch {spec.batch}{targets}"
    )
