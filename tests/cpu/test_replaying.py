"""Golden vectors replayed by Python."""

import io

import numpy as np
import pytest

from resnet_deploy import load
from resnet_deploy.bundle import GOLDEN, open_bundle
from resnet_deploy.errors import BundleError
from resnet_deploy.pipeline.replaying import read_golden, replay_golden


def rewrite_golden(path, **changes):
    """Give an engine that was copied other golden vectors; None takes one away."""
    images, logits = read_golden(open_bundle(path))
    arrays = {"images": images, "logits": logits} | changes
    (path / GOLDEN).unlink()
    np.savez(path / GOLDEN, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_engine_answers_as_where_it_was_built(deployment, precision):
    with load(deployment.engines[precision]) as engine:
        difference = replay_golden(engine)
    assert difference.agreement == 1
    # The same library on the same machine, of which only the number of threads may differ: FP32 sums of up to 4608
    # products, of logits near 1, in another order.
    assert difference.max_difference.max() <= 1e-5


def test_another_answer_is_seen(copy_engine, reseal):
    path = copy_engine("fp32")
    _, logits = read_golden(open_bundle(path))
    logits[3, 2] += 0.5
    rewrite_golden(path, logits=logits)
    reseal(path, GOLDEN)
    with load(path) as engine:
        difference = replay_golden(engine).max_difference
    assert difference[3] == pytest.approx(0.5, abs=1e-5)
    assert np.delete(difference, 3).max() <= 1e-5


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": None}, "is damaged"),
        ({"images": np.zeros((0, 32, 32, 3), np.uint8), "logits": np.zeros((0, 10), np.float32)}, "card.preprocess"),
        ({"images": np.zeros((8, 32, 32, 3), np.float32)}, "card.preprocess"),
        ({"images": np.zeros((8, 31, 32, 3), np.uint8)}, "card.preprocess"),
        ({"logits": np.zeros((8, 9), np.float32)}, "card.num_classes"),
        ({"logits": np.zeros((8, 10))}, "card.num_classes"),
        ({"logits": np.array([None])}, "is damaged"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(copy_engine, arrays, words):
    path = copy_engine("fp32")
    rewrite_golden(path, **arrays)
    with pytest.raises(BundleError, match=words):
        read_golden(open_bundle(path))


def one_array():
    """An array that is in no archive."""
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def unknown_compression():
    """An archive whose member is compressed as nobody does."""
    file = io.BytesIO()
    np.savez(file, images=np.zeros(3))
    data = bytearray(file.getvalue())
    data[data.rindex(b"PK\x01\x02") + 10] = 77
    return bytes(data)


@pytest.mark.parametrize("data", [b"", b"PK", b"not an archive", one_array(), unknown_compression()])
def test_damaged_archives_are_refused(copy_engine, rewrite, data):
    path = copy_engine("fp32")
    rewrite(path / GOLDEN, data)
    with pytest.raises(BundleError, match=r"golden\.npz is damaged"):
        read_golden(open_bundle(path))


def test_missing_vectors_are_refused(copy_engine):
    path = copy_engine("fp32")
    (path / GOLDEN).unlink()
    with pytest.raises(BundleError, match=r"golden\.npz is damaged"):
        read_golden(open_bundle(path))
