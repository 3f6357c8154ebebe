"""From a bundle to a running engine: what is refused before TensorRT sees a byte, what is kept for the next process."""

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cuda_stand_in import CudaStandIn
from record_factory import SYNTHETIC_ENVIRONMENT
from trt_stand_in import Diagnostics, IRuntimeCache, RtxRuntimeConfig, TrtStandIn, Validity, expected, plan

from resnet_deploy import artifact
from resnet_deploy.backends import find_backend
from resnet_deploy.bundle import OBSERVATIONS, Bundle, HashChain, Manifest, Measured, Requirements
from resnet_deploy.capabilities import backend_status
from resnet_deploy.cuda.runtime import Cuda
from resnet_deploy.cuda.streams import Stream
from resnet_deploy.device_arrays import DeviceArray
from resnet_deploy.driver import Gpu, GpuProbe
from resnet_deploy.engine import Engine
from resnet_deploy.errors import BackendError, BundleError, DeviceError, FeedError, FileError
from resnet_deploy.runners import find_runner, trt, trt_cache
from resnet_deploy.runners.null import NullRunner
from resnet_deploy.runners.trt import TrtRunner
from resnet_deploy.runners.trt_cache import RuntimeCache, cache_path
from resnet_deploy.runners.trt_checks import check_header, read_plan
from resnet_deploy.runners.trt_engine import TrtEngine
from resnet_deploy.specs import BatchRange, BuildSpec, CalibrationSpec, ModelCard, Preprocess

GPU = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24 << 30)


def make_bundle(folder, data, *, precision="fp16", backend="tensorrt-rtx", **requires):
    """Write a plan and say what is in it."""
    (folder / "model.plan").write_bytes(data)
    files = {"model.plan": artifact.sha256_bytes(data)}
    if precision == "int8":
        files[OBSERVATIONS] = ""
    manifest = Manifest(
        name="net",
        card=ModelCard(
            architecture="resnet18",
            num_classes=3,
            weights="none",
            weights_sha256="",
            preprocess=Preprocess(image_size=2, resize=2),
        ),
        spec=BuildSpec(
            backend=backend,
            precision=precision,
            batch=BatchRange(1, 2, 8),
            calibration=CalibrationSpec() if precision == "int8" else None,
        ),
        engine="model.plan",
        files=files,
        chain=HashChain(weights="", onnx="", lowered="", engine=""),
        cache_key="",
        requires=Requirements(library=backend, **requires),
        toolchain={},
        environment=SYNTHETIC_ENVIRONMENT,
        measured=Measured(by="engine", inputs="synthetic images", images=1, agreement=1, sqnr_db=1, max_difference=0),
    )
    return Bundle(folder, manifest)


@pytest.fixture
def stand_in():
    return CudaStandIn()


@pytest.fixture
def rtx(stand_in):
    return TrtStandIn(stand_in, rtx=True)


@pytest.fixture
def here(stand_in, rtx, monkeypatch, tmp_path):
    """A machine with a GPU and TensorRT-RTX, both played."""
    monkeypatch.setattr(trt, "probe_gpu", lambda: GpuProbe((GPU,), "13.0"))
    monkeypatch.setattr(trt, "Cuda", lambda: Cuda(0, stand_in))
    monkeypatch.setattr(trt.trt_api, "load", lambda name: rtx.api())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "resnet-deploy"


def images(count):
    return np.random.default_rng(count).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)


# --- refusals


def test_what_fits_is_read(tmp_path, rtx):
    bundle = make_bundle(tmp_path, plan(), version="1.0", compute_capabilities=("8.6", "8.9"))
    assert read_plan(bundle, rtx.api(), "8.9") == plan()


def test_another_version_is_named(tmp_path, rtx):
    bundle = make_bundle(tmp_path, plan(), version="1.1")
    with pytest.raises(BundleError, match=r"requires.version is tensorrt-rtx 1.1, loaded is 1.0") as caught:
        read_plan(bundle, rtx.api(), "8.9")
    assert caught.value.hint == (
        "build it again: resnet-deploy build resnet18.onnx --fp16 --backend tensorrt-rtx --batch 1:2:8"
    )


def test_another_gpu_is_named(tmp_path, rtx):
    bundle = make_bundle(tmp_path, plan(), compute_capabilities=("8.6", "8.9"))
    with pytest.raises(BundleError, match=r"requires.compute_capabilities is 8.6, 8.9, this GPU has 9.0"):
        read_plan(bundle, rtx.api(), "9.0")


def test_an_altered_plan_is_named(tmp_path, rtx):
    bundle = make_bundle(tmp_path, plan())
    (tmp_path / "model.plan").write_bytes(plan() + b" ")
    with pytest.raises(BundleError, match=r"model.plan was altered: .* files.model.plan in the manifest"):
        read_plan(bundle, rtx.api(), "8.9")


def test_int8_is_built_again_from_what_was_observed(tmp_path, rtx):
    bundle = make_bundle(tmp_path, plan(), precision="int8", version="1.1")
    with pytest.raises(BundleError) as caught:
        read_plan(bundle, rtx.api(), "8.9")
    assert f"--int8 --calib {tmp_path / OBSERVATIONS} --backend" in caught.value.hint


def test_the_header_is_asked_first(tmp_path, rtx):
    bundle = make_bundle(tmp_path, plan())
    assert check_header(bundle, rtx.api(), plan()) == ()
    rtx.validity = (Validity.INVALID, Diagnostics.VERSION_MISMATCH | Diagnostics.UNSUPPORTED_CC)
    with pytest.raises(BundleError, match="does not run here: VERSION_MISMATCH, UNSUPPORTED_CC"):
        check_header(bundle, rtx.api(), plan())
    rtx.validity = (Validity.SUBOPTIMAL, 0)
    assert check_header(bundle, rtx.api(), plan()) == (
        "tensorrt-rtx says that the plan is not at its best here: no reason given",
    )
    with pytest.raises(BundleError, match="MALFORMED_ENGINE"):
        check_header(bundle, rtx.api(), b"x" * 1000)


def test_a_flavour_without_headers_is_not_asked(tmp_path, stand_in):
    api = TrtStandIn(stand_in).api()
    assert check_header(make_bundle(tmp_path, b"no plan"), api, b"no plan") == ()


def test_the_real_header_check_is_understood(tmp_path):
    """On TensorRT-RTX itself, which needs no GPU to find that this is no plan."""
    module = pytest.importorskip("tensorrt_rtx")
    api = dataclasses.replace(TrtStandIn(CudaStandIn(), rtx=True).api(), module=module)
    with pytest.raises(BundleError, match="does not run here: MALFORMED_ENGINE"):
        check_header(make_bundle(tmp_path, b"x" * 1000), api, b"x" * 1000)


def test_the_real_refusal_to_deserialize_is_understood():
    module = pytest.importorskip("tensorrt_rtx")
    stand_in = CudaStandIn()
    api = dataclasses.replace(TrtStandIn(stand_in, rtx=True).api(), module=module)
    with pytest.raises(DeviceError, match=r"tensorrt-rtx cannot load the plan: (?!it gave no reason).+"):
        TrtEngine(api, b"x" * 1000, Cuda(0, stand_in))


# --- opening


def test_a_bundle_is_opened_and_run(here, tmp_path, stand_in, rtx):
    runner = find_runner("tensorrt-rtx")(make_bundle(tmp_path, plan()), 4)
    assert isinstance(runner, TrtRunner)
    assert runner.device == GPU.name
    with Engine(make_bundle(tmp_path, plan()), runner) as engine:
        np.testing.assert_array_equal(engine(images(19)), expected(images(19)))
    assert stand_in.left() == []
    assert stand_in.misuses == []
    (kept,) = here.iterdir()
    assert kept.name.startswith("nvidia-geforce-rtx-4090-rtx1.0-cuda13-")
    assert kept.read_bytes() == b"tag kernels"


def test_without_a_gpu_nothing_is_loaded(here, tmp_path, monkeypatch):
    monkeypatch.setattr(trt, "probe_gpu", lambda: GpuProbe(reason="no driver"))
    with pytest.raises(BackendError, match="no NVIDIA GPU: no driver") as caught:
        TrtRunner.open(make_bundle(tmp_path, plan()), 0)
    assert "doctor" in caught.value.hint


def test_this_machine_says_why_it_cannot():
    for name in ("tensorrt", "tensorrt-rtx"):
        environment = msgspec.structs.replace(SYNTHETIC_ENVIRONMENT, gpu=GpuProbe(reason="no driver"))
        run = backend_status(find_backend(name), environment).run
        assert not run.ok
        assert "no NVIDIA GPU: no driver" in run.reason or "not installed" in run.reason


def test_notes_of_the_header_are_the_runner_s(here, tmp_path, rtx):
    rtx.validity = (Validity.SUBOPTIMAL, 0)
    runner = TrtRunner.open(make_bundle(tmp_path, plan()), 0)
    assert any("not at its best" in note for note in runner.notes)
    runner.close()


# --- the runtime cache


def engine_with(cache, rtx, stand_in):
    return TrtEngine(rtx.api(), plan(), Cuda(0, stand_in), cache=cache)


def test_the_cache_comes_back(tmp_path, rtx, stand_in):
    path = tmp_path / "kept" / "kernels.cache"
    engine_with(RuntimeCache(path), rtx, stand_in).close()
    assert path.read_bytes() == b"tag kernels"
    path.write_bytes(b"tag more kernels")
    before = path.stat().st_mtime_ns
    cache = RuntimeCache(path)
    engine = engine_with(cache, rtx, stand_in)
    assert engine._config.cache.kernels == b"tag more kernels"
    engine.close()
    engine.close()
    assert path.stat().st_mtime_ns == before  # nothing was added, nothing is written
    assert cache.notes == []


def test_a_refused_cache_is_said_and_replaced(tmp_path, rtx, stand_in):
    path = tmp_path / "kernels.cache"
    path.write_bytes(b"of another driver")
    engine = engine_with(RuntimeCache(path), rtx, stand_in)
    assert any("was refused: kernels are compiled again" in note for note in engine.notes)
    engine.close()
    assert path.read_bytes() == b"tag kernels"


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path, rtx, stand_in):
    (tmp_path / "file").write_bytes(b"")
    cache = RuntimeCache(tmp_path / "file" / "kernels.cache")
    engine_with(cache, rtx, stand_in).close()
    assert any("runtime cache not written" in note for note in cache.notes)


@pytest.mark.parametrize(
    ("owner", "name", "answer", "note"),
    [
        (
            RtxRuntimeConfig,
            "set_runtime_cache",
            False,
            "runtime cache not accepted: kernels are compiled again in every",
        ),
        (IRuntimeCache, "serialize", None, "runtime cache not kept: TensorRT-RTX could not write it out"),
    ],
)
def test_a_cache_that_tensorrt_does_not_take_is_said(tmp_path, rtx, stand_in, monkeypatch, owner, name, answer, note):
    monkeypatch.setattr(owner, name, lambda *_: answer)
    path = tmp_path / "kernels.cache"
    engine = engine_with(RuntimeCache(path), rtx, stand_in)
    engine.close()
    assert any(one.startswith(note) for one in engine.notes)
    assert not path.exists()


def test_a_cache_that_cannot_be_read_is_no_failure(tmp_path, rtx, stand_in, monkeypatch):
    path = tmp_path / "kernels.cache"
    path.write_bytes(b"tag kernels of another process")

    def refuses(_):
        raise FileError("permission denied")

    monkeypatch.setattr(trt_cache.artifact, "read_bytes", refuses)
    engine = engine_with(RuntimeCache(path), rtx, stand_in)
    assert "runtime cache not read: permission denied" in engine.notes
    engine.close()
    assert path.read_bytes() == b"tag kernels"


def test_the_cache_s_name_tells_what_it_depends_on():
    folder = Path("folder")
    name = cache_path(folder, "NVIDIA L4", "1.7.1", "13.0", "a" * 64)
    assert name == folder / "nvidia-l4-rtx1.7.1-cuda13-aaaaaaaaaaaaaaaa.cache"
    assert name == cache_path(folder, "NVIDIA L4", "1.7.1", "13.2", "a" * 64)
    others = {
        cache_path(folder, "NVIDIA L40", "1.7.1", "13.0", "a" * 64),
        cache_path(folder, "NVIDIA L4", "1.7.2", "13.0", "a" * 64),
        cache_path(folder, "NVIDIA L4", "1.7.1", "12.9", "a" * 64),
        cache_path(folder, "NVIDIA L4", "1.7.1", "13.0", "b" * 64),
    }
    assert len(others | {name}) == 5


# --- through Engine


def test_an_engine_takes_arrays_on_the_gpu(here, tmp_path, stand_in):
    bundle = make_bundle(tmp_path, plan())
    runner = TrtRunner.open(bundle, 0)
    stream = Stream.create(runner.cuda)
    array = DeviceArray.empty((4, 2, 2, 3), "uint8", stream)
    out = DeviceArray.empty((4, 3), "float32", stream)
    with Engine(bundle, runner) as engine:
        logits = engine(array, stream=stream, out=out)
        assert isinstance(logits, DeviceArray)
        assert logits.pointer == out.pointer
        np.testing.assert_array_equal(logits.to_host(), expected(array.to_host()))
        assert engine.notes == ("CUDA graphs by tensorrt-rtx itself",)
        with pytest.raises(FeedError, match="a stream is for arrays on the GPU"):
            engine(images(2), stream=stream)
    with pytest.raises(FeedError, match="the engine is closed"):
        engine(array)


def test_an_engine_on_the_cpu_says_what_to_do_with_them(tmp_path, stand_in):
    bundle = make_bundle(tmp_path, b"", backend="null")
    array = DeviceArray.empty((4, 2, 2, 3), "uint8", Stream.create(Cuda(0, stand_in)))
    engine = Engine(bundle, NullRunner(bundle.manifest.card, bundle.manifest.spec.batch))
    with pytest.raises(FeedError, match="the images are on a GPU, and null engines run on none") as caught:
        engine(array)
    assert "cpu()" in caught.value.hint
    assert engine(images(2)).shape == (2, 3)
