"""TensorRT and TensorRT-RTX as values: the module, its version, and what it is called.

Both flavours may serve in one process; which one is used is decided by the value that is passed along, never by a
process-wide switch.
"""

import importlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from resnet_deploy.backends import find_backend
from resnet_deploy.capabilities import RTX_WITHOUT
from resnet_deploy.driver import probe_gpu
from resnet_deploy.errors import BackendError
from resnet_deploy.specs import BuildSpec, Precision
from resnet_deploy.trt_options import RTX_COMPUTE_CAPABILITIES, TENSORRT_RTX

if TYPE_CHECKING:
    from types import ModuleType

# What TensorRT-RTX compiles for when nobody asks for a target: Ampere, Ada and Blackwell RTX GPUs (its own default).
RTX_DEFAULT_TARGETS: Final = ("8.6", "8.9", "12.0")
OLDEST: Final = {"tensorrt": (10, 16), "tensorrt-rtx": (1, 7)}

# The one table of differences: what we use and only one flavour has. Everything else that we use is in all of
# TensorRT 10.16, 11.4 and TensorRT-RTX 1.7, which a test holds against their bindings' complete lists of names.
ONLY_IN: Final[Mapping[str, str]] = {
    "ComputeCapability": "tensorrt-rtx",
    "CudaGraphStrategy": "tensorrt-rtx",
    "CudaGraphStrategy.DISABLED": "tensorrt-rtx",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE": "tensorrt-rtx",
    "EngineInvalidityDiagnostics": "tensorrt-rtx",
    "EngineValidity": "tensorrt-rtx",
    "EngineValidity.INVALID": "tensorrt-rtx",
    "EngineValidity.SUBOPTIMAL": "tensorrt-rtx",
    "IBuilderConfig.num_compute_capabilities": "tensorrt-rtx",
    "IBuilderConfig.set_compute_capability": "tensorrt-rtx",
    "IExecutionContext.is_stream_capturable": "tensorrt-rtx",
    "IRuntimeCache.deserialize": "tensorrt-rtx",
    "IRuntimeCache.serialize": "tensorrt-rtx",
    "IRuntimeConfig.create_runtime_cache": "tensorrt-rtx",
    "IRuntimeConfig.cuda_graph_strategy": "tensorrt-rtx",
    "IRuntimeConfig.set_runtime_cache": "tensorrt-rtx",
    "Runtime.engine_header_size": "tensorrt-rtx",
    "Runtime.get_engine_validity": "tensorrt-rtx",
}


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
        return self.backend == TENSORRT_RTX


def default_targets(precision: Precision) -> tuple[str, ...]:
    """List what to compile for when nobody asks for a target: the default ones that have hardware for ``precision``."""
    left_out = left_out_targets(precision)
    return tuple(target for target in RTX_DEFAULT_TARGETS if target not in left_out)


def targets_of(spec: BuildSpec) -> tuple[str, ...]:
    """List the GPU generations that a TensorRT-RTX engine is compiled for: those asked for, or the default ones.

    The default has the generation of the GPU that is here, too, where the flavour takes it.
    """
    if spec.trt.targets:
        return spec.trt.targets
    chosen = default_targets(spec.precision)
    here = {gpu.compute_capability for gpu in probe_gpu().gpus[:1]}
    lacking = (*chosen, *RTX_WITHOUT.get(spec.precision, ()))
    return (*chosen, *(one for one in RTX_COMPUTE_CAPABILITIES if one in here and one not in lacking))


def left_out_targets(precision: Precision) -> tuple[str, ...]:
    """List the default targets that have no hardware for ``precision``."""
    return tuple(target for target in RTX_DEFAULT_TARGETS if target in RTX_WITHOUT.get(precision, ()))


def load(backend: str) -> TrtApi:
    """Import a flavour by its name in the table of backends.

    Raises:
        BackendError: If it is not installed, its libraries do not load, or it is older than what this was written for.
    """
    row = find_backend(backend)
    install = f'install it with `pip install "resnet-deploy[{row.extra}]"`'
    try:
        module: ModuleType = importlib.import_module(row.module)
    except (ImportError, OSError) as error:
        raise BackendError(f"{backend} cannot be imported: {error}", hint=install) from error
    version = str(module.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST[backend]:
        oldest = ".".join(map(str, OLDEST[backend]))
        raise BackendError(f"{backend} {version} is too old: {oldest} or later is needed", hint=install)
    return TrtApi(backend, module, version)


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


def new_profiler(api: TrtApi) -> Any:
    """Make a profiler that adds up what each layer took, in seconds, as ``seconds`` by name in the order of execution.

    Of a flavour's own base class, as ``new_logger``.
    """

    class Profiler(api.module.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.seconds: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.seconds[layer_name] = self.seconds.get(layer_name, 0.0) + ms * 1e-3

    return Profiler()


_loggers: list[Any] = []
