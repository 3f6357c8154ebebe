"""The images that stand in for real ones."""

import numpy as np
import pytest
from PIL import Image

from resnet_deploy.pipeline.calibrating import _RANDOM_IMAGES, _noise
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.specs import MAX_RESIZE, ModelCard, Preprocess

SMALL = Preprocess(image_size=32, resize=36)


def test_images_fit_the_contract_and_are_no_two_alike():
    images = synthetic_images(SMALL, 5)
    assert (images.shape, images.dtype) == ((5, 32, 32, 3), np.uint8)
    assert len(np.unique(images.reshape(5, -1), axis=0)) == 5
    np.testing.assert_array_equal(images, synthetic_images(SMALL, 5))
    assert (images != synthetic_images(SMALL, 5, seed=1)).any()


def test_neighbouring_pixels_resemble_each_other():
    images = synthetic_images(SMALL, 16).astype(float)
    steps, spread = np.abs(np.diff(images, axis=1)).mean(), images.std()
    assert spread > 40  # independent values of 0..255 have 74, and a smooth surface through them less
    assert steps < spread / 2  # independent values differ by 85 on average


def test_normalised_images_are_the_same_images():
    contract = Preprocess(image_size=32, resize=36, dtype="float32", layout="NCHW")
    pixels = synthetic_images(contract, 3).transpose(0, 2, 3, 1) * contract.std + contract.mean
    np.testing.assert_allclose(pixels * 255, synthetic_images(SMALL, 3), atol=0.01)  # FP32 rounding of 0..255


@pytest.fixture
def largest_picture(monkeypatch):
    """Pixels of the largest picture that Pillow made by resizing."""
    seen, resize = [0], Image.Image.resize

    def note(self, size, *arguments, **options):
        seen[0] = max(seen[0], size[0] * size[1])
        return resize(self, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", note)
    return seen


def test_no_picture_is_larger_than_what_becomes_of_it(largest_picture):
    images = synthetic_images(Preprocess(image_size=32, resize=MAX_RESIZE), 3)
    assert largest_picture[0] == 32 * 32
    assert images.std(axis=(1, 2)).min() > 20  # and what becomes of it is no even surface


def test_noise_comes_image_by_image():
    card = ModelCard(architecture="resnet18", num_classes=2, weights="", weights_sha256="", preprocess=SMALL)
    batches = list(_noise(card))
    assert [batch.shape for batch in batches] == [(1, 32, 32, 3)] * _RANDOM_IMAGES
    assert len(np.unique(np.concatenate(batches).reshape(_RANDOM_IMAGES, -1), axis=0)) == _RANDOM_IMAGES
