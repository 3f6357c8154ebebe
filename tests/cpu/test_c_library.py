"""The C interface as a shared library on OpenVINO, called from Python, held against Python's own engine."""

import ctypes
import shutil

import numpy as np
import pytest

from resnet_deploy import load
from resnet_deploy.bundle import GOLDEN, open_bundle
from resnet_deploy.pipeline.replaying import read_golden, replay_golden

# Both sides ask the same library for the same kernels; only the number of threads, and with it the order in which sums
# of up to 4608 products are taken, may differ. The logits are near 1.
TOLERANCE = 1e-5
OK, ARGUMENT, UNSUPPORTED, ACCURACY = 0, 1, 5, 9


class Pixels(ctypes.Structure):
    """resnet_deploy_pixels"""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("stride", ctypes.c_ssize_t),
    )


@pytest.fixture(scope="module")
def library(c_library):
    """Load the shared library."""
    loaded = ctypes.CDLL(str(c_library))
    loaded.resnet_deploy_last_error.restype = ctypes.c_char_p
    return loaded


@pytest.fixture(scope="module")
def bundle(openvino_engine):
    """An FP32 engine for OpenVINO."""
    return openvino_engine


@pytest.fixture
def opened(library, bundle):
    """A handle of that engine."""
    engine = ctypes.c_uint64()
    code = library.resnet_deploy_open(str(bundle).encode(), 0, 1, ctypes.byref(engine))
    assert code == OK, library.resnet_deploy_last_error()
    yield engine
    assert library.resnet_deploy_close(engine) == OK


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


def test_both_replay_the_same_golden_vectors(library, opened, bundle):
    worst = ctypes.c_double(-1)
    assert library.resnet_deploy_check_golden(opened, ctypes.c_double(TOLERANCE), ctypes.byref(worst)) == OK
    with load(bundle) as engine:
        ours = replay_golden(engine).max_difference.max()
    assert 0 <= worst.value <= TOLERANCE
    assert abs(worst.value - ours) <= TOLERANCE


def test_both_give_the_same_logits(library, opened, bundle):
    images = np.random.default_rng(0).integers(0, 256, (67, 32, 32, 3), dtype=np.uint8)  # a batch of 64 and three
    logits = np.zeros((67, 10), np.float32)
    sizes = (ctypes.c_uint64(images.nbytes), ctypes.c_int32(67), pointer(logits), ctypes.c_uint64(logits.size))
    assert library.resnet_deploy_infer(opened, pointer(images), *sizes) == OK, library.resnet_deploy_last_error()
    with load(bundle) as engine:
        expected = engine(images)
    assert np.abs(logits - expected).max() <= TOLERANCE
    assert np.abs(logits[::-1] - expected).max() > 100 * TOLERANCE  # images of others are told apart


def test_both_preprocess_the_same(library, opened, bundle, deployment):
    from PIL import Image

    paths = sorted(deployment.data.rglob("*.png"))[:5]
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    views = (Pixels * 5)(*(Pixels(array.ctypes.data, array.shape[1], array.shape[0], 0) for array in arrays))
    logits = np.zeros((5, 10), np.float32)
    code = library.resnet_deploy_infer_pixels(opened, views, 5, pointer(logits), ctypes.c_uint64(logits.size))
    assert code == OK, library.resnet_deploy_last_error()
    prepared = np.zeros((32, 32, 3), np.uint8)
    size = ctypes.c_uint64(prepared.nbytes)
    assert library.resnet_deploy_preprocess(opened, ctypes.byref(views[3]), pointer(prepared), size) == OK
    with load(bundle) as engine:
        assert np.array_equal(prepared, engine.prepare(paths)[3])
        assert np.abs(logits - engine(paths)).max() <= TOLERANCE


def test_other_answers_are_beyond_the_tolerance(library, bundle, tmp_path, reseal):
    path = shutil.copytree(bundle, tmp_path / "altered")
    images, logits = read_golden(open_bundle(path))
    np.savez(path / GOLDEN, images=images, logits=logits + np.eye(8, 10, dtype=np.float32) / 4)
    reseal(path, GOLDEN)
    engine, worst = ctypes.c_uint64(), ctypes.c_double()
    assert library.resnet_deploy_open(str(path).encode(), 0, 1, ctypes.byref(engine)) == OK
    code = library.resnet_deploy_check_golden(engine, ctypes.c_double(TOLERANCE), ctypes.byref(worst))
    assert code == ACCURACY
    assert worst.value == pytest.approx(0.25, abs=TOLERANCE)
    assert library.resnet_deploy_close(engine) == OK


def test_a_backend_that_is_not_in_is_told(library, deployment):
    engine = ctypes.c_uint64()
    code = library.resnet_deploy_open(str(deployment.engines["fp32"]).encode(), 0, 1, ctypes.byref(engine))
    assert code == UNSUPPORTED
    assert b"onnxruntime" in library.resnet_deploy_last_error()
