"""A deserialized engine of TensorRT 10, 11 or RTX: its profiles, and execution contexts for it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from resnet_deploy.errors import BundleError, DeviceError, FeedError
from resnet_deploy.specs import INPUT_NAME, OUTPUT_NAME
from resnet_deploy.trt_api import new_logger

if TYPE_CHECKING:
    from resnet_deploy.cuda.runtime import Cuda
    from resnet_deploy.runners.trt_cache import RuntimeCache
    from resnet_deploy.specs import BatchRange
    from resnet_deploy.trt_api import TrtApi


@dataclass(frozen=True)
class ContextOptions:
    """How an engine is loaded and run.

    Attributes:
        contexts: Most execution contexts, each with memory of its own for activations: how many streams can be served
            at the same time.
        timeout_s: How long a call waits for a context, in seconds.
        graphs: Whether to use CUDA graphs.
        weights: The lowered graph, whose weights go back into a plan that was stripped of them; empty for others.
        host_code: Whether to run code of the host's that is in the plan, as that of other versions of TensorRT is.
    """

    contexts: int = 4
    timeout_s: float = 30.0
    graphs: bool = True
    weights: bytes = b""
    host_code: bool = False


_DEFAULT: Final = ContextOptions()
_KEPT_MESSAGES: Final = 100


class TrtEngine:
    """The engine itself, which any number of contexts share, from any number of threads.

    Once made, it changes only by what it finds out: ``graph_refusal``, and the profile of each batch size.

    Args:
        api: The flavour it was built with.
        plan: What that flavour's builder made.
        cuda: The device to load it on.
        options: How it is run.
        cache: Where TensorRT-RTX keeps kernels; None for nowhere.

    Raises:
        DeviceError: If TensorRT cannot load the plan.
        BundleError: If it is not of a model that ``export`` wrote.

    Attributes:
        graph_refusal: Why no CUDA graph is captured, though asked for; empty if one is. Found out by the first try.
    """

    def __init__(
        self,
        api: "TrtApi",
        plan: bytes,
        cuda: "Cuda",
        options: ContextOptions = _DEFAULT,
        cache: "RuntimeCache | None" = None,
    ) -> None:
        self.api, self.cuda, self.options, self.cache = api, cuda, options, cache
        self.graph_refusal = ""
        self._logger = new_logger(api, keep=_KEPT_MESSAGES)
        self._runtime = api.module.Runtime(self._logger)
        if options.host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = engine = self._deserialize(plan)
        if options.weights:
            self._refit(options.weights)
        self._require_tensors()
        self.image_shape: tuple[int, ...] = tuple(engine.get_tensor_shape(INPUT_NAME))[1:]
        self.profiles: tuple[tuple[int, int, int], ...] = tuple(
            tuple(dims[0] for dims in engine.get_tensor_profile_shape(INPUT_NAME, index))
            for index in range(engine.num_optimization_profiles)
        )
        self._config = self._new_config()
        self._chosen: dict[int, int] = {}

    @property
    def captures(self) -> bool:
        """Whether graphs are captured here: TensorRT-RTX does it itself, and better, for it knows its kernels."""
        return self.options.graphs and not self.library_captures and not self.graph_refusal

    @property
    def library_captures(self) -> bool:
        """Whether the library has CUDA graphs of its own."""
        return hasattr(self._config, "cuda_graph_strategy")

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of figures should know, one line each."""
        if not self.options.graphs:
            graphs = "no CUDA graphs, as asked for"
        elif self.library_captures:
            graphs = f"CUDA graphs by {self.api.backend} itself"
        elif self.graph_refusal:
            graphs = f"no CUDA graphs: {self.graph_refusal}"
        else:
            graphs = "CUDA graphs, one for each batch size and pair of buffers"
        return (graphs, *(self.cache.notes if self.cache else ()))

    def profile_for(self, batch: int) -> int:
        """Choose the optimization profile that holds ``batch`` and is tuned for a size nearest to it.

        Raises:
            FeedError: If none holds it.
        """
        if batch not in self._chosen:
            fitting = [
                (abs(opt - batch), index)
                for index, (least, opt, most) in enumerate(self.profiles)
                if least <= batch <= most
            ]
            if not fitting:
                ranges = ", ".join(f"{least} to {most}" for least, _, most in self.profiles)
                raise FeedError(f"batch of {batch}, the plan takes {ranges}", hint="build with another --batch")
            self._chosen[batch] = min(fitting)[1]
        return self._chosen[batch]

    def new_context(self) -> Any:
        """Make an execution context without memory for activations.

        Raises:
            DeviceError: If TensorRT cannot.
        """
        context = self._engine.create_execution_context(self._config)
        if context is None:
            raise self.error("create_execution_context")
        return context

    def require(self, done: object, call: str) -> None:
        """Turn TensorRT's False into an error.

        Raises:
            DeviceError: Unless ``done`` is true, with the last error that TensorRT logged.
        """
        if not done:
            raise self.error(call)

    def error(self, call: str) -> DeviceError:
        """Make the error of a call that failed."""
        return DeviceError(f"{self.api.backend}: {call} failed: {self._said()}")

    def close(self) -> None:
        """Let go of the engine; all contexts must be gone. Harmless when repeated."""
        if self.cache is not None and self._engine is not None:
            self.cache.save()
        self._engine = self._config = self._runtime = None

    def _deserialize(self, plan: bytes) -> Any:
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise DeviceError(
                f"{self.api.backend} cannot load the plan: {self._said()}",
                hint="resnet-deploy doctor says what is wrong with the GPU; else build the engine again",
            )
        return engine

    def _refit(self, lowered: bytes) -> None:
        """Put the weights of the graph that the plan was compiled from back in."""
        trt = self.api.module
        refitter = trt.Refitter(self._engine, self._logger)
        parser_refitter = trt.OnnxParserRefitter(refitter, self._logger)
        self.require(parser_refitter.refit_from_bytes(lowered), "refit_from_bytes")
        self.require(refitter.refit_cuda_engine(), "refit_cuda_engine")

    def _said(self) -> str:
        """The first line of the last error that TensorRT logged."""
        return str(self._logger.last_error).partition("\n")[0] or "it gave no reason"

    def _require_tensors(self) -> None:
        engine = self._engine
        names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        if names != {INPUT_NAME, OUTPUT_NAME}:
            raise BundleError(
                f"the plan has tensors {', '.join(sorted(names))}, expected are {INPUT_NAME} and {OUTPUT_NAME}",
                hint="build the engine from what `resnet-deploy export` wrote",
            )

    def _new_config(self) -> Any:
        """Set up contexts: the memory is ours, for those of a lane share it; graphs and cache where there are any."""
        trt, config = self.api.module, self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if hasattr(config, "cuda_graph_strategy"):
            strategy = trt.CudaGraphStrategy
            config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if self.options.graphs else strategy.DISABLED
        if self.cache is not None:
            self.cache.attach(config)
        return config


def check_profiles(engine: TrtEngine, batch: "BatchRange") -> None:
    """Hold the batch sizes that the manifest promises against the plan's profiles.

    Raises:
        BundleError: If an end of the range is in none.
    """
    for size in (batch.min, batch.max):
        if not any(least <= size <= most for least, _, most in engine.profiles):
            raise BundleError(
                f"spec.batch is {batch}, and no profile of the plan holds {size}", hint="build the engine again"
            )
