"""ONNX Runtime's execution providers: the one that is asked for runs, or it is an error.

Without a GPU, binding and its order are proved on the CPU's provider, by the same code; that a GPU's provider computes
the same is for the tests in tests/gpu.
"""

import gc
import sys
import weakref
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from resnet_deploy import ort_providers
from resnet_deploy.backends import BACKENDS, find_backend
from resnet_deploy.batching import infer, run_once
from resnet_deploy.builders import find_builder
from resnet_deploy.bundle import open_bundle
from resnet_deploy.errors import BackendError, FeedError
from resnet_deploy.ort_session import CPU_PROVIDER
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.protocols import Silent
from resnet_deploy.runners.ort import OrtRunner
from resnet_deploy.runners.ort_gpu import OrtGpuRunner
from resnet_deploy.specs import BatchRange, BuildSpec

ort = pytest.importorskip("onnxruntime")
ON_GPUS = [backend.name for backend in BACKENDS if backend.provider]


@pytest.fixture
def bundle(deployment):
    return open_bundle(deployment.engines["fp32"])


@pytest.fixture
def runner(bundle):
    manifest = bundle.manifest
    runner = OrtGpuRunner(bundle.engine_path, manifest.card, manifest.spec.batch, CPU_PROVIDER, memory=("cpu",))
    yield runner
    runner.close()


# --- binding, on the CPU


def test_answers_are_those_of_a_plain_session(runner, bundle):
    images = synthetic_images(bundle.manifest.card.preprocess, 7)
    plain = OrtRunner.open(bundle, 1)
    np.testing.assert_allclose(infer(runner, images), infer(plain, images), rtol=1e-4, atol=1e-5)
    assert runner.device == CPU_PROVIDER


def test_every_batch_has_answers_of_its_own(runner, bundle):
    """Memory is bound once for each size, and used again; what was fetched stays as it was."""
    images = synthetic_images(bundle.manifest.card.preprocess, 4)
    first = run_once(runner, images[:2])
    kept = first.copy()
    second = run_once(runner, images[2:4])
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(run_once(runner, images[:1]), kept[:1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(run_once(runner, images[:2]), kept)


def test_sizes_used_longest_ago_make_room(runner, bundle):
    """Memory is bound for four times the largest batch, and not for one batch of each size there is."""
    most = runner.batch.max
    assert most > 5
    images = synthetic_images(bundle.manifest.card.preprocess, most)
    answers = infer(OrtRunner.open(bundle, 1), images)
    first = weakref.ref(runner._bound_for(1)[1])
    for size in (*range(1, most + 1), 2, most, most - 1, 3, most - 2, most - 3):
        np.testing.assert_allclose(run_once(runner, images[:size]), answers[:size], rtol=1e-4, atol=1e-5)
        assert sum(runner._bound) <= 4 * most
        assert next(reversed(runner._bound)) == size
    gc.collect()
    assert first() is None
    assert list(runner._bound)[-4:] == [most - 1, 3, most - 2, most - 3]
    kept = runner._bound[3]
    run_once(runner, images[:3])
    assert runner._bound[3] is kept


def test_a_batch_that_does_not_fit_is_refused(runner, bundle):
    shape = bundle.manifest.card.preprocess.shape
    with pytest.raises(FeedError, match="dtype float32"):
        runner.load(np.zeros((1, *shape), np.float32))
    with pytest.raises(FeedError, match="batch of"):
        runner.load(np.zeros((runner.batch.max + 1, *shape), np.uint8))


# --- the provider that was asked for


def lacks(provider):
    return pytest.mark.skipif(provider in ort.get_available_providers(), reason=f"this ONNX Runtime has {provider}")


@pytest.mark.parametrize(
    "provider", [pytest.param(name, marks=lacks(name)) for name in (ort_providers.CUDA, ort_providers.TENSORRT)]
)
def test_a_provider_that_is_not_there_is_an_error(bundle, provider):
    """ONNX Runtime itself would warn, and run on the CPU."""
    with pytest.raises(BackendError, match=f"has no {provider}") as caught:
        ort_providers.open_on(provider, bundle.engine_path)
    assert "resnet-deploy[gpu]" in caught.value.hint


def test_a_provider_that_does_not_load_is_an_error(bundle, monkeypatch):
    """ONNX Runtime lists providers that it was built with, whether or not CUDA is there."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [ort_providers.CUDA, CPU_PROVIDER])
    session = SimpleNamespace(get_providers=lambda: [CPU_PROVIDER])
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **__: session)
    with pytest.raises(BackendError, match="CUDAExecutionProvider was asked for, and CPUExecutionProvider would run"):
        ort_providers.open_on(ort_providers.CUDA, bundle.engine_path)


def test_nothing_falls_back_to_the_cpu_node_by_node(bundle, monkeypatch):
    told = {}

    class Options:
        def add_session_config_entry(self, name, value):
            told[name] = value

    monkeypatch.setattr(ort_providers, "session_options", lambda *_: Options())
    monkeypatch.setattr(ort, "get_available_providers", lambda: [ort_providers.CUDA, CPU_PROVIDER])
    session = SimpleNamespace(get_providers=lambda: [ort_providers.CUDA, CPU_PROVIDER])
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **__: session)
    ort_providers.open_on(ort_providers.CUDA, bundle.engine_path)
    assert told == {"session.disable_cpu_ep_fallback": "1"}


def test_that_setting_is_one_that_onnxruntime_knows(bundle):
    """A slip in its name would pass in silence."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with pytest.raises(Exception, match="disabled fallback to the CPU EP"):
        ort.InferenceSession(str(bundle.engine_path), options, providers=["AzureExecutionProvider", CPU_PROVIDER])


takes_plugins = pytest.mark.skipif(
    not hasattr(ort, "register_execution_provider_library"), reason=f"ONNX Runtime {ort.__version__} takes no plugins"
)


def test_an_onnxruntime_from_before_plugins_says_so(bundle, monkeypatch):
    monkeypatch.delattr(ort, "register_execution_provider_library", raising=False)
    with pytest.raises(BackendError, match=f"ONNX Runtime {ort.__version__} takes no plugins") as caught:
        ort_providers.open_on(ort_providers.TENSORRT_RTX, bundle.engine_path)
    assert "resnet-deploy[ort-rtx]" in caught.value.hint


@takes_plugins
def test_the_plugin_of_tensorrt_rtx_is_asked_for_by_name(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    with pytest.raises(BackendError, match="plugin for TensorRT-RTX cannot be imported") as caught:
        ort_providers.open_on(ort_providers.TENSORRT_RTX, bundle.engine_path)
    assert "resnet-deploy[ort-rtx]" in caught.value.hint


@takes_plugins
def test_a_plugin_that_does_not_load_is_an_error(bundle, monkeypatch, tmp_path):
    """With the real call into ONNX Runtime, on a library that is none."""
    library = tmp_path / "libplugin.so"
    library.write_bytes(b"no library")
    plugin = SimpleNamespace(get_library_path=lambda: str(library))
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", plugin)
    with pytest.raises(BackendError, match="plugin for TensorRT-RTX does not load: "):
        ort_providers.open_on(ort_providers.TENSORRT_RTX, bundle.engine_path)


def test_providers_that_compile_are_told_the_batch_sizes():
    batch, shape = BatchRange(1, 8, 64), (32, 32, 3)
    assert ort_providers.profile_options(ort_providers.CUDA, batch, shape) == {}
    assert ort_providers.profile_options(ort_providers.TENSORRT, batch, shape) == {
        "trt_profile_min_shapes": "images:1x32x32x3",
        "trt_profile_opt_shapes": "images:8x32x32x3",
        "trt_profile_max_shapes": "images:64x32x32x3",
    }
    assert list(ort_providers.profile_options(ort_providers.TENSORRT_RTX, batch, shape)) == [
        "nv_profile_min_shapes",
        "nv_profile_opt_shapes",
        "nv_profile_max_shapes",
    ]


# --- backends


def test_every_provider_is_a_backend_of_its_own():
    assert ON_GPUS == ["onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-rtx"]
    assert {find_backend(name).provider for name in ON_GPUS} == {
        ort_providers.CUDA,
        ort_providers.TENSORRT,
        ort_providers.TENSORRT_RTX,
    }


@pytest.mark.parametrize("backend", ON_GPUS)
def test_building_proves_that_the_provider_takes_the_graph(bundle, backend, tmp_path):
    """Here there is none, so that nothing is built."""
    if find_backend(backend).provider in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has the provider")
    with pytest.raises(BackendError):
        find_builder(backend)(
            bundle.engine_path.read_bytes(), BuildSpec(backend=backend, precision="fp32"), tmp_path, Silent()
        )


def test_an_engine_for_a_provider_that_is_not_here_does_not_load(bundle):
    spec = msgspec.structs.replace(bundle.manifest.spec, backend="onnxruntime-cuda")
    if ort_providers.CUDA in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has the provider")
    moved = type(bundle)(bundle.path, msgspec.structs.replace(bundle.manifest, spec=spec))
    with pytest.raises(BackendError, match="has no CUDAExecutionProvider"):
        OrtGpuRunner.open(moved, 1)
