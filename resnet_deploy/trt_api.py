"""TensorRT and TensorRT-RTX as values: the module, its version, and what it is called.

Both flavours may serve in one process; which one is used is decided by the value that is passed along, never by a
process-wide switch.
"""

import importlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from resnet_deploy.backends import find_backend
from resnet_deploy.errors import BackendError

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


def new_logger(api: TrtApi, keep: int | None = None) -> Any:
    """Make a logger that keeps the last ``keep`` messages as ``lines``, by default all, and ``last_error``.

    Of a flavour's own base class, which exists only once the flavour is loaded. Verbose messages are not kept. It
    lives as long as the process: TensorRT makes the first one it sees its global logger, and does not own it.
    """
    kinds = api.module.ILogger

    class Log(kinds):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.lines: deque[str] = deque(maxlen=keep)
            self.last_error = ""

        def log(self, severity: Any, message: str) -> None:
            if severity == kinds.VERBOSE:
                return
            self.lines.append(f"{severity.name} {message}")
            if severity in (kinds.ERROR, kinds.INTERNAL_ERROR):
                self.last_error = message

    logger = Log()
    _loggers.append(logger)
    return logger


_loggers: list[Any] = []
