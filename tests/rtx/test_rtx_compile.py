"""What TensorRT-RTX's compiler is told, how it tells of its progress, and how it is stopped; all with the real library.

What only TensorRT takes is told to the bindings of TensorRT-RTX too, which have the same names: that proves what is
set, not what TensorRT makes of it.
"""

import threading
import weakref
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

try:
    import tensorrt_rtx as trt
except (ImportError, OSError) as reason:  # OSError: installed, but its libraries do not load
    pytest.skip(f"TensorRT-RTX cannot be imported: {reason}", allow_module_level=True)

from resnet_deploy import trt_api
from resnet_deploy.builders import trt_config
from resnet_deploy.builders.trt import _Compiler, build_engine
from resnet_deploy.builders.trt_config import new_config
from resnet_deploy.builders.trt_watch import compile_watched
from resnet_deploy.collector import no_garbage_collection
from resnet_deploy.errors import BuildError
from resnet_deploy.protocols import Silent
from resnet_deploy.specs import BatchRange, BuildSpec, whole_range
from resnet_deploy.trt_options import RTX_COMPUTE_CAPABILITIES, TrtOptions

RTX = "tensorrt-rtx"
CHANNELS = 16


def chain(layers: int) -> bytes:
    """A network of 3x3 convolutions, each with a ReLU."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "images"
    for number in range(layers):
        name = f"w{number}"
        inputs = 3 if number == 0 else CHANNELS
        weights.append(numpy_helper.from_array(rng.normal(size=(CHANNELS, inputs, 3, 3)).astype(np.float32), name))
        out = "logits" if number == layers - 1 else f"r{number}"
        nodes.append(helper.make_node("Conv", [last, name], [f"c{number}"], name=f"conv{number}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [out], name=f"relu{number}"))
        last = out
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ("batch", 3, 16, 16))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "chain", [images], [logits], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


NETWORK = chain(8)
BATCH = BatchRange(1, 4, 8)


def spec(*profiles: BatchRange, **options: object) -> BuildSpec:
    profiles = profiles or (BATCH,)
    several = profiles if len(profiles) > 1 else ()
    return BuildSpec(
        backend=RTX, precision="fp32", batch=whole_range(profiles), profiles=several, trt=TrtOptions(**options)
    )


# --- progress


class Watcher(Silent):
    """Keeps what it is shown, and presses Ctrl-C at some percent."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.seen, self.total, self.stop_at, self.halfway = [], None, stop_at, threading.Event()

    def track(self, items, description, total=None, *, still=False):
        assert description == "compiling for tensorrt-rtx"
        self.total = total
        for item in items:
            self.seen.append(item)
            if item == 50:
                self.halfway.set()
            if item == self.stop_at:
                raise KeyboardInterrupt
            yield item


def test_progress_is_told_in_percent_while_it_compiles(tmp_path, monkeypatch):
    watcher = Watcher()

    def held(api, compile_plan, *others):
        def compile_and_wait(monitor):
            plan = compile_plan(monitor)
            assert watcher.halfway.wait(60)  # nobody would have said so if it were told in the end
            return plan

        return compile_watched(api, compile_and_wait, *others)

    monkeypatch.setattr("resnet_deploy.builders.trt.compile_watched", held)
    build_engine(NETWORK, spec(), tmp_path, watcher)
    assert watcher.seen == list(range(1, 101))
    assert watcher.total == 100


def test_an_interrupt_stops_the_compiler_and_writes_nothing(tmp_path):
    watcher = Watcher(stop_at=20)
    with pytest.raises(KeyboardInterrupt):
        build_engine(NETWORK, spec(), tmp_path, watcher)
    assert list(tmp_path.iterdir()) == []
    build_engine(NETWORK, spec(), tmp_path, Watcher())  # the next one is none the worse
    assert [path.name for path in tmp_path.iterdir()] == ["model.plan"]


def test_an_error_holds_no_builder_and_goes_without_the_collector(tmp_path, monkeypatch):
    """A builder that is freed while the library makes another, and logs, waits for ever for the library's lock."""
    builders, errors, create = [], [], trt.Builder

    def spy(logger):
        builder = create(logger)
        builders.append(weakref.ref(builder))
        return builder

    def fail():
        try:
            build_engine(b"junk", spec(), tmp_path, Silent())
        except BuildError as error:
            errors.append(weakref.ref(error))
            assert builders[0]() is None

    monkeypatch.setattr(trt, "Builder", spy)
    with no_garbage_collection():
        fail()
        assert errors[0]() is None


def phases(*, go_on: bool) -> list[str]:
    """The phases that the compiler enters, when it is told to go on or to stop."""
    api, told = trt_api.load(RTX), []

    class Answer(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name, parent_phase, num_steps):
            told.append(phase_name)

        def step_complete(self, phase_name, step):
            return go_on

        def phase_finish(self, phase_name):
            pass

    compiler = _Compiler(api, spec(), trt_api.new_logger(api))
    with nullcontext() if go_on else pytest.raises(BuildError, match="tensorrt-rtx failed to build"):
        compiler.compile(NETWORK, Answer())
    return told


def test_a_cancelled_build_ends_early():
    """The compiler itself is stopped: it does not go on to the end behind our back."""
    whole, cut = phases(go_on=True), phases(go_on=False)
    assert whole[: len(cut)] == cut
    assert len(cut) < len(whole) / 2


# --- targets


def requirements(tmp_path, *targets):
    return build_engine(NETWORK, spec(targets=targets), tmp_path, Silent()).requires.compute_capabilities


def test_an_engine_says_for_which_gpus_it_was_compiled(tmp_path):
    assert requirements(tmp_path) == trt_api.RTX_DEFAULT_TARGETS
    assert requirements(tmp_path, "8.9") == ("8.9",)


def test_an_engine_for_more_gpus_is_larger(tmp_path):
    sizes = []
    for number, targets in enumerate((("8.9",), RTX_COMPUTE_CAPABILITIES)):
        folder = tmp_path / str(number)
        folder.mkdir()
        requirements(folder, *targets)
        sizes.append((folder / "model.plan").stat().st_size)
    assert sizes[0] < sizes[1]


def told(options, backend=RTX, profiles=(BATCH,)):
    """The configuration, and the parser and builder that it would die without."""
    api = trt_api.load(RTX)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(NETWORK)
    several = profiles if len(profiles) > 1 else ()
    asked = BuildSpec(
        backend=backend, precision="fp32", batch=whole_range(profiles), profiles=several, trt=TrtOptions(**options)
    )
    config = new_config(replace(api, backend=backend), builder, network, asked)
    return config, (parser, builder, network)


def test_targets_are_named_one_by_one():
    config, _ = told({"targets": ("8.6", "12.0")})
    assert config.num_compute_capabilities == 2
    assert config.get_compute_capability(0) == trt.ComputeCapability.SM86
    assert config.get_compute_capability(1) == trt.ComputeCapability.SM120


@pytest.mark.parametrize("target", ["8.7", "9.0", "10.0", "10.3"])
def test_a_target_that_the_compiler_lacks_is_an_error(target):
    """A later version may take other generations than those that the spec lets through."""
    config = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_builder_config()
    with pytest.raises(BuildError, match=f"does not compile for compute capability {target}"):
        trt_config._set_targets(trt_api.load(RTX), config, (target,))


# --- flags and limits


def test_fp32_is_not_tf32():
    assert trt.Builder(trt.Logger(trt.Logger.ERROR)).create_builder_config().get_flag(trt.BuilderFlag.TF32)
    config, _ = told({})
    assert not config.get_flag(trt.BuilderFlag.TF32)


def test_every_profile_is_added():
    config, _ = told({}, profiles=(BatchRange(1, 1, 1), BatchRange(2, 4, 8)))
    assert config.num_optimization_profiles == 2


def test_several_profiles_are_compiled(tmp_path):
    build_engine(NETWORK, spec(BatchRange(1, 1, 1), BatchRange(2, 4, 8)), tmp_path, Silent())
    assert (tmp_path / "model.plan").stat().st_size > 1000


def test_limits_are_set_where_they_are_given():
    config, _ = told({"workspace_bytes": 2**28, "optimization_level": 2})
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 2**28
    assert config.builder_optimization_level == 2
    untouched = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_builder_config()
    config, _ = told({})
    assert config.builder_optimization_level == untouched.builder_optimization_level


def test_a_workspace_that_is_too_small_is_an_error(tmp_path):
    with pytest.raises(BuildError, match="failed to build"):
        build_engine(NETWORK, spec(workspace_bytes=1), tmp_path, Silent())
    assert list(tmp_path.iterdir()) == []


FLAGS = {
    "version_compatible": (trt.BuilderFlag.VERSION_COMPATIBLE,),
    "strip_weights": (trt.BuilderFlag.STRIP_PLAN, trt.BuilderFlag.REFIT_IDENTICAL),
    "refittable": (trt.BuilderFlag.REFIT,),
}


@pytest.mark.parametrize("option", FLAGS)
def test_tensorrts_flags(option):
    def flags(**options):
        config, _ = told(options, backend="tensorrt")
        every = {flag for flags in FLAGS.values() for flag in flags}
        return {flag for flag in every if config.get_flag(flag)}

    assert flags(**{option: True}) == set(FLAGS[option])
    assert flags() == set()


def test_tensorrt_is_told_where_an_engine_is_to_run():
    """On a stand-in for the configuration: that of TensorRT-RTX does not keep the level."""
    level = trt.HardwareCompatibilityLevel
    for name, expected in (
        ("none", level.NONE),
        ("ampere+", level.AMPERE_PLUS),
        ("same-cc", level.SAME_COMPUTE_CAPABILITY),
    ):
        asked = BuildSpec(backend="tensorrt", precision="fp32", trt=TrtOptions(hardware_compatibility=name))
        config = SimpleNamespace()
        trt_config._set_deployment(trt_api.load(RTX), config, asked)
        assert config.hardware_compatibility_level == expected
        assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED


class Timings:
    """Stands in for a configuration's timing cache: those of TensorRT-RTX do nothing."""

    def __init__(self, *, fits: bool) -> None:
        self.fits, self.given = fits, []

    def create_timing_cache(self, content):
        self.given.append(bytes(content))
        return "cache"

    def set_timing_cache(self, cache, ignore_mismatch):
        assert (cache, ignore_mismatch) == ("cache", False)
        return self.fits


def test_a_timing_cache_is_started_from(tmp_path):
    file = tmp_path / "timings"
    config = Timings(fits=True)
    trt_config._start_from(config, file)
    file.write_bytes(b"what was measured")
    trt_config._start_from(config, file)
    assert config.given == [b"", b"what was measured"]


def test_timings_of_another_gpu_are_an_error(tmp_path):
    with pytest.raises(BuildError, match="holds timings of another TensorRT, or of another GPU"):
        trt_config._start_from(Timings(fits=False), tmp_path / "timings")


def test_an_old_version_is_refused(monkeypatch):
    from resnet_deploy.errors import BackendError

    monkeypatch.setattr(trt, "__version__", "1.6.9")
    with pytest.raises(BackendError, match=r"tensorrt-rtx 1.6.9 is too old: 1.7 or later") as caught:
        trt_api.load(RTX)
    assert "resnet-deploy[rtx]" in caught.value.hint


def test_old_manifests_have_no_options():
    before = b'{"backend": "tensorrt-rtx", "precision": "fp16", "batch": {"min": 1, "opt": 8, "max": 64}}'
    assert msgspec.json.decode(before, type=BuildSpec).trt == TrtOptions()
