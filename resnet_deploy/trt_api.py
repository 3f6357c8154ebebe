"""TensorRT and TensorRT-RTX as values: the module, its version, and what it is called.

Both flavours may serve in one process; which one is used is decided by the value that is passed along, never by a
process-wide switch.
"""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from resnet_deploy.backends import find_backend
from resnet_deploy.capabilities import RTX_WITHOUT
from resnet_deploy.errors import BackendError
from resnet_deploy.specs import Precision

if TYPE_CHECKING:
    from types import ModuleType

# What TensorRT-RTX compiles for when nobody asks for a target: Ampere, Ada and Blackwell RTX GPUs (its own default).
RTX_DEFAULT_TARGETS: Final = ("8.6", "8.9", "12.0")


@dataclass(frozen=True)
class TrtApi:
    """One flavour of TensorRT, imported.

    Attributes:
        backend: Its name in the table of backends: ``tensorrt`` or ``tensorrt-rtx``.
        module: The Python bindings.
        version: Version of the library behind them.
    """

    backend: str
    module: Any
    version: str

    @property
    def ahead_of_time(self) -> bool:
        """Whether it compiles for named GPU generations without a GPU, rather than for the one that is present."""
        return self.backend == "tensorrt-rtx"


def default_targets(precision: Precision) -> tuple[str, ...]:
    """List what to compile for when nobody asks for a target: the default ones that have hardware for ``precision``."""
    return tuple(target for target in RTX_DEFAULT_TARGETS if target not in RTX_WITHOUT.get(precision, ()))


def load(backend: str) -> TrtApi:
    """Import a flavour by its name in the table of backends.

    Raises:
        BackendError: If it is not installed, or its libraries do not load.
    """
    row = find_backend(backend)
    try:
        module: ModuleType = importlib.import_module(row.module)
    except (ImportError, OSError) as error:
        raise BackendError(
            f"{backend} cannot be imported: {error}", hint=f'install it with `pip install "resnet-deploy[{row.extra}]"`'
        ) from error
    return TrtApi(backend, module, str(module.__version__))
