"""TensorRT 10 and 11, and TensorRT-RTX: parse the lowered graph, configure, compile.

Precision is in the graph, so the network is strongly typed. TensorRT compiles for the GPU that is present, TensorRT-RTX
ahead of time for the generations that are named, for which no GPU is needed.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from resnet_deploy import artifact, driver, trt_api
from resnet_deploy.builders import BuiltEngine
from resnet_deploy.builders.trt_config import new_config
from resnet_deploy.builders.trt_watch import compile_watched
from resnet_deploy.bundle import LAYERS, TIMINGS, Requirements
from resnet_deploy.errors import BackendError, BuildError
from resnet_deploy.specs import QUANTIZED, BuildSpec
from resnet_deploy.trt_api import TrtApi
from resnet_deploy.trt_options import TENSORRT_RTX

if TYPE_CHECKING:
    from resnet_deploy.protocols import Progress

ENGINE: Final = "model.plan"
_AMPERE: Final = "8.0"


def build_engine(lowered: bytes, spec: BuildSpec, folder: Path, progress: "Progress") -> BuiltEngine:
    """Compile ``lowered`` and write ``model.plan`` into ``folder``, with what the compiler tells of it.

    Raises:
        BackendError: If the library, or the GPU that it compiles for, is not here.
        BuildError: If the parser or the compiler refuses the graph; the message is the library's own.
        FileError: If the timing cache cannot be read or written.
        KeyboardInterrupt: Once the compiler has stopped.
    """
    api = trt_api.load(spec.backend)
    requires = _requirements(api, spec)
    logger = trt_api.new_logger(api)
    compiler = _Compiler(api, spec, logger)
    plan = compile_watched(
        api, lambda monitor: compiler.compile(lowered, monitor), progress, f"compiling for {spec.backend}"
    )
    (folder / ENGINE).write_bytes(plan)
    if compiler.timings is not None:
        (folder / TIMINGS).write_bytes(compiler.timings)
        artifact.write_bytes(Path(spec.trt.timing_cache), compiler.timings)
    if not api.ahead_of_time:
        (folder / LAYERS).write_text(_layers(api, plan, logger), encoding="utf-8")
    return BuiltEngine(
        file=ENGINE,
        requires=requires,
        toolchain={spec.backend: api.version},
        log=tuple(logger.lines),
        notes=_notes(spec),
    )


def _requirements(api: TrtApi, spec: BuildSpec) -> Requirements:
    """Say what a machine must have to run the engine."""
    if api.ahead_of_time:
        targets = trt_api.targets_of(spec)
        return Requirements(library=spec.backend, version=api.version, compute_capabilities=targets)
    gpus = driver.probe_gpu()
    if not gpus.gpus:
        hint = "use a machine with an NVIDIA GPU, or --backend tensorrt-rtx, which compiles without one"
        raise BackendError(f"TensorRT compiles for the GPU that is present: {gpus.reason}", hint=hint)
    anywhere = spec.trt.hardware_compatibility == "ampere+"
    return Requirements(
        library=spec.backend,
        version=api.version,
        later_versions=spec.trt.version_compatible,
        compute_capabilities=() if anywhere else (gpus.gpus[0].compute_capability,),
        least_compute_capability=_AMPERE if anywhere else "",
    )


class _Compiler:
    """One compilation.

    Attributes:
        timings: Kernel timings, serialized, once it is done and where a cache of them was asked for.
    """

    def __init__(self, api: TrtApi, spec: BuildSpec, logger: Any) -> None:
        self.timings: bytes | None = None
        self._api, self._spec, self._logger = api, spec, logger

    def compile(self, lowered: bytes, monitor: Any) -> memoryview:
        """Compile a graph to a plan."""
        api, trt = self._api, self._api.module
        builder = trt.Builder(self._logger)
        # Numbers of flags differ between releases, so they are always taken from the enumeration.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse(lowered):
            first = parser.get_error(0)
            raise BuildError(f"{api.backend} cannot parse {_where(first)}: {_reason(first.desc())}")
        config = new_config(api, builder, network, self._spec)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BuildError(f"{api.backend} failed to build: {_reason(self._logger.last_error)}")
        if self._spec.trt.timing_cache:
            self.timings = bytes(config.get_timing_cache().serialize())
        return memoryview(plan)


def _layers(api: TrtApi, plan: memoryview, logger: Any) -> str:
    """Ask the engine inspector for the layers of a plan, as JSON."""
    trt = api.module
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = True  # a version-compatible plan brings its own runtime; we have just built it
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildError(f"{api.backend} cannot load what it built: {_reason(logger.last_error)}")
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _where(error: Any) -> str:
    """Name the node that a parser's error is about, and its operator; the model where it is about none."""
    return f"node {error.node_name()} ({error.node_operator()})" if error.node_name() else "the model"


def _reason(message: str) -> str:
    """Pick the line that says what is wrong: the first after the node's name; later ones may deplore a missing GPU."""
    lines = [line for line in message.splitlines() if line and not line.startswith("Invalid Node")]
    return lines[0] if lines else "it gave no reason"


def _notes(spec: BuildSpec) -> tuple[str, ...]:
    notes, kind = [], spec.precision.upper()
    if spec.backend == TENSORRT_RTX:
        left_out = trt_api.left_out_targets(spec.precision) if not spec.trt.targets else ()
        if left_out:
            kept, without = (" and ".join(found) for found in (trt_api.targets_of(spec), left_out))
            notes.append(f"compiled for compute capabilities {kept}, and not for {without}, which has no {kind}")
        if spec.precision in QUANTIZED:
            notes.append(f"TensorRT-RTX's fast precision for this network is FP16: its {kind} convolutions fuse less")
    if spec.trt.refittable:
        notes.append("hold every set of weights that is put in against `verify`: refitted engines have been wrong")
    return tuple(notes)
