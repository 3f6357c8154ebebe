"""Whether a bundle fits this machine, and which of several does."""

from pathlib import Path
from typing import TYPE_CHECKING

from resnet_deploy.backends import find_backend
from resnet_deploy.bundle import Bundle, Requirements
from resnet_deploy.capabilities import backend_status
from resnet_deploy.errors import BackendError, BundleError
from resnet_deploy.fleet import FleetEngine, open_engine, read_fleet

if TYPE_CHECKING:
    from resnet_deploy.environment import Environment


def choose_engine(folder: Path, here: "Environment") -> Bundle:
    """Take the first engine of a fleet whose backend runs here and whose requirements this machine meets.

    Raises:
        BundleError: With a reason for each, if there is none.
    """
    reasons = []
    for engine in read_fleet(folder).engines:
        reason = _reason_against(engine, here)
        if not reason:
            return open_engine(folder, engine)
        reasons.append(f"{engine.folder}: {reason}")
    hint = "build one on this machine"
    raise BundleError(
        f"{folder} has no engine for this machine: {'; '.join(reasons) or 'it has none at all'}", hint=hint
    )


def _reason_against(engine: FleetEngine, here: "Environment") -> str:
    """Say why an engine does not run here, as far as the index tells; empty if it does."""
    if misfit := _misfit(engine.requires, here):
        return misfit[0]
    try:
        return backend_status(find_backend(engine.backend), here).run.reason
    except BackendError as error:
        return error.message


def check_fits(bundle: Bundle, here: "Environment") -> None:
    """Hold what the bundle requires against this machine, before a byte reaches the backend.

    Raises:
        BundleError: Naming the first field that differs.
    """
    if misfit := _misfit(bundle.manifest.requires, here):
        reason, hint = misfit
        raise BundleError(f"{bundle.path}: {reason}", hint=hint)


def _misfit(requires: Requirements, here: "Environment") -> tuple[str, str] | None:
    """Name the first requirement that this machine does not meet, and what to do; None if it meets all."""
    if requires.int8_dot_product and not here.cpu.has_vnni:
        return (
            "requires.int8_dot_product is true, and this CPU has none: its INT8 results would saturate",
            "build the engine on this machine; it will then use 7-bit weights",
        )
    installed = {library.name: library.version for library in here.libraries}.get(requires.library)
    if installed is not None and not requires.takes_version(installed):
        later = ", or a later one of that major release" if requires.later_versions else ""
        return (
            f"requires.version is {requires.library} {requires.version}{later}, installed is {installed}",
            f"install {requires.library}=={requires.version}, or build the engine again",
        )
    for gpu in here.gpu.gpus[:1]:
        if unmet := requires.takes_gpu(gpu.compute_capability):
            return f"{unmet}, {gpu.name} has {gpu.compute_capability}", "build the engine for this GPU"
    return None
