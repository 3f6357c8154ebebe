"""The PyTorch reference of an exported model: finding its weights and opening them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from resnet_deploy import artifact
from resnet_deploy.errors import BackendError, FileError, WeightsError
from resnet_deploy.specs import BatchRange, ModelCard

if TYPE_CHECKING:
    from resnet_deploy.protocols import Runner

REFERENCE: Final = "pytorch"
_HINT: Final = "name the weights with --reference PATH, or leave PyTorch out with --no-pytorch"


def find_reference(folders: Sequence[Path], card: ModelCard) -> Path:
    """Find the weights that `export` kept beside the model, by the digest in their header.

    Raises:
        FileError: If no file in ``folders`` has them.
        BackendError: If safetensors is not installed.
    """
    _import_safetensors()  # where it is missing, that is what to say, and not that nothing was found
    for folder in dict.fromkeys(folders):
        for path in sorted(folder.glob("*.safetensors")):
            if read_weights_digest(path) == card.weights_sha256:
                return path
    raise FileError(f"the PyTorch weights of {card.architecture} are not beside the engines", hint=_HINT)


def read_weights_digest(path: Path) -> str | None:
    """Return the digest that `export` wrote into the header of its weights; None for any other file.

    Raises:
        BackendError: If safetensors is not installed.
    """
    safetensors = _import_safetensors()
    if not artifact.is_file(path):  # a pipe would be waited for
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("weights_sha256")
    except (OSError, safetensors.SafetensorError):
        return None  # not a checkpoint at all


def open_reference(path: Path, card: ModelCard, batch: BatchRange, threads: int) -> "Runner":
    """Open the reference network on weights that are proved to be the engines' own.

    Raises:
        WeightsError: If the file holds other weights.
        BackendError: If PyTorch is not installed.
    """
    try:
        from resnet_deploy.models import load_model
        from resnet_deploy.runners.pytorch import TorchRunner
    except ImportError as error:
        raise _not_installed(error) from error
    loaded = load_model(card.architecture, str(path))
    if loaded.weights_sha256 != card.weights_sha256:
        raise WeightsError(f"{path} holds other weights than the engines: weights_sha256 differs", hint=_HINT)
    return TorchRunner(loaded.module, card, batch, threads=threads)


def _import_safetensors() -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise _not_installed(error) from error
    return safetensors


def _not_installed(error: ImportError) -> BackendError:
    return BackendError(
        f"the PyTorch reference needs {error.name}, which is not installed",
        hint='install it with `pip install "resnet-deploy[export]"`, or use --no-pytorch',
    )
