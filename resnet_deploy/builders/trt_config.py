"""What a TensorRT builder is told beside the network: flags, limits, profiles, targets, and timings to start from."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_deploy import artifact
from resnet_deploy.errors import BuildError
from resnet_deploy.specs import INPUT_NAME, BuildSpec
from resnet_deploy.trt_api import targets_of

if TYPE_CHECKING:
    from resnet_deploy.trt_api import TrtApi


def new_config(api: "TrtApi", builder: Any, network: Any, spec: BuildSpec) -> Any:
    """Make the ``IBuilderConfig`` of a spec.

    FP32 is FP32: by default it may be TF32, with a mantissa of 10 bits.

    Raises:
        BuildError: If the flavour refuses a setting; it says so by a return value, or not at all.
        FileError: If the timing cache cannot be read.
    """
    trt, options = api.module, spec.trt
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    for profile in _profiles(builder, network, spec):
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"{api.backend} refuses the profile of batches {spec.batch}")
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if api.ahead_of_time:
        _set_targets(api, config, targets_of(spec))
    else:
        _set_deployment(api, config, spec)
    return config


def _profiles(builder: Any, network: Any, spec: BuildSpec) -> list[Any]:
    inputs = {tensor.name: tensor for tensor in map(network.get_input, range(network.num_inputs))}
    if INPUT_NAME not in inputs:
        raise BuildError(f"the graph has no input {INPUT_NAME}", hint="build what `resnet-deploy export` wrote")
    shape = tuple(inputs[INPUT_NAME].shape)[1:]
    profiles = []
    for sizes in spec.profiles or (spec.batch,):
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT_NAME, *((size, *shape) for size in (sizes.min, sizes.opt, sizes.max)))
        profiles.append(profile)
    return profiles


def _set_targets(api: "TrtApi", config: Any, targets: tuple[str, ...]) -> None:
    """Name the GPU generations to compile for; a refusal is a False, not an exception."""
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        capability = getattr(api.module.ComputeCapability, f"SM{target.replace('.', '')}", None)
        if capability is None or not config.set_compute_capability(capability, index):
            raise BuildError(f"{api.backend} {api.version} does not compile for compute capability {target}")


def _set_deployment(api: "TrtApi", config: Any, spec: BuildSpec) -> None:
    """Say where else than here, and with which weights, an engine is to run."""
    trt, options = api.module, spec.trt
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector; it costs no time at run time
    level = trt.HardwareCompatibilityLevel
    config.hardware_compatibility_level = {
        "none": level.NONE,
        "ampere+": level.AMPERE_PLUS,
        "same-cc": level.SAME_COMPUTE_CAPABILITY,
    }[options.hardware_compatibility]
    flag = trt.BuilderFlag
    for wanted, flags in (
        (options.version_compatible, (flag.VERSION_COMPATIBLE,)),
        # Only the very weights of the graph go back in, so the compiler may still look at their values.
        (options.strip_weights, (flag.STRIP_PLAN, flag.REFIT_IDENTICAL)),
        (options.refittable, (flag.REFIT,)),
    ):
        for one in flags if wanted else ():
            config.set_flag(one)
    if options.timing_cache:
        _start_from(config, Path(options.timing_cache))


def _start_from(config: Any, path: Path) -> None:
    """Give the compiler the timings that are in a file, if it exists."""
    timings = artifact.read_bytes(path) if artifact.is_file(path) else b""
    if not config.set_timing_cache(config.create_timing_cache(timings), ignore_mismatch=False):
        hint = "name another file; it is written anew"
        raise BuildError(f"{path} holds timings of another TensorRT, or of another GPU", hint=hint)
