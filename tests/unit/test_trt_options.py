"""What can be asked of TensorRT's compilers, and what is refused before anything is compiled."""

import gc
import weakref
from collections import deque
from types import SimpleNamespace

import msgspec
import pytest
from cuda_stand_in import CudaStandIn
from trt_stand_in import Severity, TrtStandIn

from resnet_deploy import trt_api
from resnet_deploy.builders.trt_watch import Phases
from resnet_deploy.bundle import Requirements
from resnet_deploy.driver import Gpu, GpuProbe
from resnet_deploy.errors import BackendError, SpecError
from resnet_deploy.specs import BatchRange, BuildSpec, CalibrationSpec, whole_range
from resnet_deploy.trt_options import _WHERE, TrtOptions, parse_bytes, parse_targets

OPTIONS = {
    "targets": (("8.9",), ("tensorrt-rtx",), "--target"),
    "workspace_bytes": (2**30, ("tensorrt", "tensorrt-rtx"), "--workspace"),
    "optimization_level": (3, ("tensorrt", "tensorrt-rtx"), "--opt-level"),
    "timing_cache": ("timings", ("tensorrt",), "--timing-cache"),
    "hardware_compatibility": ("ampere+", ("tensorrt",), "--hardware-compat"),
    "version_compatible": (True, ("tensorrt",), "--version-compatible"),
    "strip_weights": (True, ("tensorrt",), "--strip-weights"),
    "refittable": (True, ("tensorrt",), "--refittable"),
}


def test_every_option_is_here():
    assert list(OPTIONS) == list(TrtOptions.__struct_fields__)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx", "onnxruntime", "openvino"])
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_taken_where_it_means_something_and_refused_elsewhere(backend, option):
    value, flavours, flag = OPTIONS[option]
    asked = {"backend": backend, "precision": "fp16", "trt": TrtOptions(**{option: value})}
    if backend in flavours:
        spec = BuildSpec(**asked)
        assert msgspec.json.decode(msgspec.json.encode(spec), type=BuildSpec) == spec
        return
    with pytest.raises(SpecError, match=f"{backend} has no {flag}") as caught:
        BuildSpec(**asked)
    assert caught.value.hint
    if backend.startswith("tensorrt"):
        assert caught.value.hint == _WHERE[option][2]
    if backend == "onnxruntime":
        assert caught.value.hint == f"drop it, or use --backend {flavours[0]}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ("9.0",)}, r"does not support compute capability 9.0 \(Hopper\)"),
        ({"targets": ("3.5",)}, "does not support compute capability 3.5$"),
        ({"targets": ("8.9", "8.9")}, "repeat themselves"),
        ({"workspace_bytes": 0}, "a workspace of 0 bytes"),
        ({"optimization_level": 6}, "optimization level 6"),
        ({"optimization_level": -1}, "optimization level -1"),
        ({"hardware_compatibility": "all"}, "hardware compatibility 'all'"),
        ({"strip_weights": True, "refittable": True}, "either stripped or refittable"),
    ],
)
def test_values_that_make_no_sense(options, message):
    with pytest.raises(SpecError, match=message) as caught:
        TrtOptions(**options)
    assert caught.value.hint


def test_values_at_the_ends():
    assert [TrtOptions(optimization_level=level).optimization_level for level in (0, 5)] == [0, 5]
    assert TrtOptions(workspace_bytes=1).workspace_bytes == 1


def test_targets_as_people_write_them():
    assert parse_targets("sm86,SM89, sm_120") == parse_targets("8.6,8.9,12.0") == ("8.6", "8.9", "12.0")
    for text in ("", "ada", "sm8", "8.6.1", "sm86;sm89"):
        with pytest.raises(SpecError, match="is no GPU generation"):
            parse_targets(text)


def test_sizes_as_people_write_them():
    assert parse_bytes("512M") == parse_bytes("512MiB") == 2**29
    assert (parse_bytes("4g"), parse_bytes("64KB"), parse_bytes("1000")) == (2**32, 2**16, 1000)
    assert parse_bytes(" 2G ") == 2**31
    for text in ("", "4T", "1.5G", "-1", "G"):
        with pytest.raises(SpecError, match="is no size"):
            parse_bytes(text)


# --- profiles


def test_profiles_make_up_one_range():
    assert whole_range([BatchRange(1, 1, 1), BatchRange(2, 8, 64)]) == BatchRange(1, 1, 64)
    assert whole_range([BatchRange(2, 8, 64), BatchRange(1, 1, 1)]) == BatchRange(1, 8, 64)
    assert whole_range([BatchRange(1, 4, 32), BatchRange(8, 8, 8)]) == BatchRange(1, 4, 32)


@pytest.mark.parametrize(
    ("profiles", "missing"),
    [((1, 3), "2"), ((1, 8), "2 to 7"), ((8, 1), "2 to 7")],
)
def test_profiles_leave_no_size_out(profiles, missing):
    with pytest.raises(SpecError, match=f"leave out a batch of {missing}$"):
        whole_range([BatchRange(size, size, size) for size in profiles])


def test_a_profile_is_given_once():
    with pytest.raises(SpecError, match="a profile is given twice"):
        whole_range([BatchRange(1, 8, 64), BatchRange(1, 8, 64)])


def test_profiles_are_tensorrts():
    profiles = (BatchRange(1, 1, 1), BatchRange(2, 8, 64))
    asked = {"precision": "fp16", "batch": whole_range(profiles), "profiles": profiles}
    BuildSpec(backend="tensorrt-rtx", **asked)
    with pytest.raises(SpecError, match="onnxruntime has no profiles"):
        BuildSpec(backend="onnxruntime", **asked)
    with pytest.raises(SpecError, match="do not make up 1:8:32"):
        BuildSpec(backend="tensorrt", **{**asked, "batch": BatchRange(1, 8, 32)})


# --- where an engine may run


@pytest.mark.parametrize(
    ("installed", "exact", "compatible"),
    [
        ("10.16.1.11", True, True),
        ("10.16.2", False, True),
        ("10.17", False, True),
        ("10.15.9", False, False),
        ("11.0.0", False, False),
    ],
)
def test_versions_that_run_an_engine(installed, exact, compatible):
    built = "10.16.1.11"
    assert Requirements(library="tensorrt", version=built).takes_version(installed) == exact
    assert Requirements(library="tensorrt", version=built, later_versions=True).takes_version(installed) == compatible
    assert Requirements(library="tensorrt").takes_version(installed)


# --- progress


def test_nested_phases_add_up():
    phases = Phases()
    phases.start("whole", None, 2)
    phases.start("half", "whole", 4)
    assert phases.complete("half", 0) == list(range(1, 13))  # a quarter of a half
    assert phases.complete("half", 1) == list(range(13, 26))
    phases.finish("half")
    assert phases.complete("whole", 0) == list(range(26, 51))
    assert phases.finish("whole") == list(range(51, 101))


def test_progress_never_goes_back():
    phases = Phases()
    phases.start("whole", None, 4)
    assert phases.complete("whole", 2) == list(range(1, 76))
    assert phases.complete("whole", 0) == []
    assert phases.complete("never begun", 0) == []
    assert phases.finish("never begun") == []
    phases.start("empty", "whole", 0)
    assert phases.complete("empty", 0) == []


def test_bundle_requirements_default_to_nothing():
    """What older manifests do not say is not asked for."""
    old = msgspec.json.decode(b'{"library": "onnxruntime"}', type=Requirements)
    assert not old.later_versions
    assert old.least_compute_capability == ""


# --- loading a flavour


@pytest.mark.parametrize(("version", "loads"), [("1.7.1", True), ("1.7", True), ("1.6.9", False), ("2.0", True)])
def test_versions_that_are_too_old(monkeypatch, version, loads):
    monkeypatch.setattr(trt_api.importlib, "import_module", lambda _: SimpleNamespace(__version__=version))
    if loads:
        assert trt_api.load("tensorrt-rtx").version == version
        return
    with pytest.raises(BackendError, match=f"tensorrt-rtx {version} is too old: 1.7 or later is needed") as caught:
        trt_api.load("tensorrt-rtx")
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize("error", [ImportError("no module"), OSError("no library")])
def test_a_library_that_does_not_load(monkeypatch, error):
    def fails(_):
        raise error

    monkeypatch.setattr(trt_api.importlib, "import_module", fails)
    with pytest.raises(BackendError, match=f"tensorrt cannot be imported: {error}"):
        trt_api.load("tensorrt")


def test_what_a_logger_keeps():
    api = TrtStandIn(CudaStandIn()).api()
    logger = trt_api.new_logger(api)
    for severity in Severity:
        logger.log(severity, severity.name.lower())
    assert logger.lines == deque(["INTERNAL_ERROR internal_error", "ERROR error", "WARNING warning", "INFO info"])
    assert logger.last_error == "error"
    logger.log(Severity.INTERNAL_ERROR, "worse")
    assert logger.last_error == "worse"
    alive = weakref.ref(logger)
    del logger
    gc.collect()
    assert alive() is not None  # TensorRT goes on using it


# --- targets


@pytest.mark.parametrize(
    ("precision", "here", "targets"),
    [
        ("fp16", "", ("8.6", "8.9", "12.0")),
        ("fp16", "8.9", ("8.6", "8.9", "12.0")),
        ("fp16", "12.1", ("8.6", "8.9", "12.0", "12.1")),
        ("fp16", "9.0", ("8.6", "8.9", "12.0")),  # which the flavour does not take
        ("fp8", "", ("8.9", "12.0")),
        ("fp8", "8.0", ("8.9", "12.0")),  # which has no FP8
        ("bf16", "8.0", ("8.6", "8.9", "12.0", "8.0")),
    ],
)
def test_default_targets_have_the_gpu_that_is_here(monkeypatch, precision, here, targets):
    gpus = (Gpu("Synthetic GPU", here, 2**30),) if here else ()
    monkeypatch.setattr(trt_api, "probe_gpu", lambda: GpuProbe(gpus))
    calibration = CalibrationSpec() if precision == "fp8" else None
    spec = BuildSpec(backend="tensorrt-rtx", precision=precision, calibration=calibration)
    assert trt_api.targets_of(spec) == targets
    gpus = (*gpus, Gpu("Another one", "7.5", 2**30)) if gpus else ()
    assert trt_api.targets_of(spec) == targets  # the first GPU is the one that is used
    asked = msgspec.structs.replace(spec, trt=TrtOptions(targets=("8.9",)))
    assert trt_api.targets_of(asked) == ("8.9",)
