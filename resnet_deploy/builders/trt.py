"""TensorRT-RTX: parse the lowered graph, set a profile, compile ahead of time. No GPU is needed.

Precision is in the graph, so the network is strongly typed and the one flag that disagrees with it, TF32, is cleared.
"""

from pathlib import Path
from typing import Any, Final

from resnet_deploy import trt_api
from resnet_deploy.builders import BuiltEngine
from resnet_deploy.bundle import Requirements
from resnet_deploy.errors import BuildError
from resnet_deploy.specs import INPUT_NAME, QUANTIZED, BuildSpec
from resnet_deploy.trt_api import TrtApi

ENGINE: Final = "model.plan"


def build_engine(lowered: bytes, spec: BuildSpec, folder: Path) -> BuiltEngine:
    """Compile ``lowered`` and write ``model.plan`` into ``folder``.

    Raises:
        BackendError: If the library is not installed.
        BuildError: If the parser or the compiler refuses the graph; the message is the library's own.
    """
    api = trt_api.load(spec.backend)
    logger = _new_logger(api)
    plan = _compile(api, lowered, spec, logger)
    (folder / ENGINE).write_bytes(plan)
    return BuiltEngine(
        file=ENGINE,
        requires=Requirements(
            library=spec.backend,
            version=api.version,
            compute_capabilities=trt_api.default_targets(spec.precision),
        ),
        toolchain={spec.backend: api.version},
        log=tuple(logger.lines),
        notes=_notes(spec),
    )


def _compile(api: TrtApi, lowered: bytes, spec: BuildSpec, logger: Any) -> memoryview:
    trt = api.module
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(lowered):
        first = parser.get_error(0)
        raise BuildError(f"{api.backend} cannot parse {_where(first)}: {_reason(first.desc())}")
    config = _new_config(api, builder)
    config.add_optimization_profile(_profile(builder, network, spec))
    if api.ahead_of_time:
        _set_targets(api, config, trt_api.default_targets(spec.precision))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"{api.backend} failed to build: {_reason(logger.last_error)}")
    return memoryview(plan)


def _new_config(api: TrtApi, builder: Any) -> Any:
    """Make a configuration in which FP32 is FP32; by default it may be TF32, with a mantissa of 10 bits."""
    config = builder.create_builder_config()
    config.clear_flag(api.module.BuilderFlag.TF32)
    return config


def _where(error: Any) -> str:
    """Name the node that a parser's error is about, and its operator; the model where it is about none."""
    return f"node {error.node_name()} ({error.node_operator()})" if error.node_name() else "the model"


def _reason(message: str) -> str:
    """Pick the line that says what is wrong: the first after the node's name; later ones may deplore a missing GPU."""
    lines = [line for line in message.splitlines() if line and not line.startswith("Invalid Node")]
    return lines[0] if lines else "it gave no reason"


def _profile(builder: Any, network: Any, spec: BuildSpec) -> Any:
    inputs = {tensor.name: tensor for tensor in map(network.get_input, range(network.num_inputs))}
    if INPUT_NAME not in inputs:
        raise BuildError(f"the graph has no input {INPUT_NAME}", hint="build what `resnet-deploy export` wrote")
    images = inputs[INPUT_NAME]
    shape = tuple(images.shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT_NAME, *((size, *shape) for size in (spec.batch.min, spec.batch.opt, spec.batch.max)))
    return profile


def _set_targets(api: TrtApi, config: Any, targets: tuple[str, ...]) -> None:
    """Name the GPU generations to compile for; a refusal is a False, not an exception."""
    trt = api.module
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        capability = getattr(trt.ComputeCapability, f"SM{target.replace('.', '')}")
        if not config.set_compute_capability(capability, index):
            raise BuildError(f"{api.backend} {api.version} does not compile for compute capability {target}")


def _notes(spec: BuildSpec) -> tuple[str, ...]:
    notes = []
    kind = spec.precision.upper()
    targets = trt_api.default_targets(spec.precision)
    left_out = [target for target in trt_api.RTX_DEFAULT_TARGETS if target not in targets]
    if left_out:
        kept, without = (" and ".join(found) for found in (targets, left_out))
        notes.append(f"compiled for compute capabilities {kept}, and not for {without}, which has no {kind}")
    if spec.precision in QUANTIZED:
        notes.append(f"TensorRT-RTX's fast precision for this network is FP16: its {kind} convolutions fuse less")
    return tuple(notes)


def _new_logger(api: TrtApi) -> Any:
    """Make a logger that keeps every message; the base class exists only once the flavour is loaded."""

    class Log(api.module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []
            self.last_error = ""

        def log(self, severity: Any, message: str) -> None:
            if severity == api.module.ILogger.VERBOSE:
                return
            self.lines.append(f"{severity.name} {message}")
            if severity in (api.module.ILogger.ERROR, api.module.ILogger.INTERNAL_ERROR):
                self.last_error = message

    return Log()
