"""TensorRT-RTX: parse the lowered graph, set a profile, compile ahead of time. No GPU is needed.

Precision is in the graph, so the network is strongly typed and the one flag that disagrees with it, TF32, is cleared.
"""

from pathlib import Path
from typing import Any, Final

from resnet_deploy import trt_api
from resnet_deploy.builders import BuiltEngine
from resnet_deploy.bundle import Requirements
from resnet_deploy.errors import BuildError
from resnet_deploy.specs import INPUT_NAME, BuildSpec
from resnet_deploy.trt_api import TrtApi

ENGINE: Final = "model.plan"


def build_engine(lowered: bytes, spec: BuildSpec, folder: Path) -> BuiltEngine:
    """Compile ``lowered`` and write ``model.plan`` into ``folder``.

    Raises:
        BackendError: If the library is not installed.
        BuildError: If the parser or the compiler refuses the graph; the message is the library's own.
    """
    api = trt_api.load(spec.backend)
    logger = trt_api.new_logger(api)
    plan = _compile(api, lowered, spec, logger)
    (folder / ENGINE).write_bytes(plan)
    return BuiltEngine(
        file=ENGINE,
        requires=Requirements(
            library=spec.backend, version=api.version, compute_capabilities=trt_api.RTX_DEFAULT_TARGETS
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
        _set_targets(api, config)
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


def _set_targets(api: TrtApi, config: Any) -> None:
    """Name the GPU generations to compile for; a refusal is a False, not an exception."""
    trt = api.module
    config.num_compute_capabilities = len(trt_api.RTX_DEFAULT_TARGETS)
    for index, target in enumerate(trt_api.RTX_DEFAULT_TARGETS):
        capability = getattr(trt.ComputeCapability, f"SM{target.replace('.', '')}")
        if not config.set_compute_capability(capability, index):
            raise BuildError(f"{api.backend} {api.version} does not compile for compute capability {target}")


def _notes(spec: BuildSpec) -> tuple[str, ...]:
    if spec.precision == "int8":
        return ("TensorRT-RTX's fast precision for this network is FP16: its INT8 convolutions fuse less",)
    return ()
