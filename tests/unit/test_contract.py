"""The named contracts: torchvision's as ever, and MLPerf's against its own steps in OpenCV."""

import hashlib
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from PIL import Image

from resnet_deploy.contract import CONTRACTS, MLPERF_MEAN, MLPERF_STD, Preprocess
from resnet_deploy.images import preprocess_image, tensor_from_source
from resnet_deploy.specs import ExportSpec, ModelCard

MLPERF = Preprocess(interpolation="area", mean=MLPERF_MEAN, std=MLPERF_STD)
MLPERF_FLOAT = msgspec.structs.replace(MLPERF, dtype="float32", layout="NCHW")
# What `export` wrote before contracts had names.
OLD_CARD = b"""{"architecture":"resnet18","num_classes":2,"weights":"none","weights_sha256":"00","labels":[],
"folders":[],"preprocess":{"image_size":224,"resize":232,"interpolation":"bilinear","mean":[0.485,0.456,0.406],
"std":[0.229,0.224,0.225],"color":"RGB","dtype":"uint8","layout":"NHWC"}}"""


def test_names():
    assert CONTRACTS == ("torchvision", "mlperf")
    assert Preprocess().name == "torchvision"
    assert Preprocess(resize=232, image_size=200).name == "torchvision"
    assert MLPERF.name == "mlperf"
    for change in ({"interpolation": "bicubic"}, {"mean": (0.5, 0.5, 0.5)}, {"std": (1.0, 1.0, 1.0)}):
        assert Preprocess(**change).name == "custom"


def test_old_artifacts_are_read_and_keep_their_digest():
    contract = msgspec.json.decode(OLD_CARD, type=ModelCard).preprocess
    assert contract.name == "torchvision"
    # Computed by the release that wrote it.
    assert contract.digest == "9f739ecb3a531d4ead428719716038e67f870d2324dc02728ccb5f5470ad2200"


def test_the_new_contract_has_a_digest_of_its_own():
    """Every artifact carries it, as the other's in test_specs.py."""
    assert MLPERF.digest == "b981c11d1d6fe498817f2b9f0563f985d82d90e793cba23e1db7a139159fc4db"


def test_means_are_mlperfs_in_single_precision_on_every_way_to_them():
    theirs = np.array([123.68, 116.78, 103.94], np.float32)
    stored = np.array(MLPERF_MEAN)
    np.testing.assert_array_equal((stored * 255).astype(np.float32), theirs)  # images.py
    np.testing.assert_array_equal(stored.astype(np.float32) * np.float32(255), theirs)  # the graph
    np.testing.assert_array_equal(1 / (np.array(MLPERF_STD, np.float32) * np.float32(255)), np.ones(3, np.float32))


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (32, 36), (299, 341)])
def test_export_takes_mlperfs_resize(size, resize):
    spec = ExportSpec(image_size=size, interpolation="area", mean=MLPERF_MEAN, std=MLPERF_STD)
    assert spec.preprocess(232) == msgspec.structs.replace(MLPERF, image_size=size, resize=resize)


# --- MLPerf's steps, restated with OpenCV


@dataclass(frozen=True)
class Steps:
    """The reference's preprocessing of what ``cv2.imread`` delivers; other values are mistakes that happen."""

    channels: int = -1  # the step that makes BGR RGB
    interpolation: str = "INTER_AREA"
    rounds_crop: bool = False
    means: tuple[float, float, float] = (123.68, 116.78, 103.94)

    def run(self, path, side=224):
        cv2 = pytest.importorskip("cv2", reason="OpenCV is what MLPerf's reference uses")
        image = cv2.imread(str(path))[..., :: self.channels]
        height, width = image.shape[:2]
        short = int(100.0 * side / 87.5)
        size = (short, int(short * height / width)) if height > width else (int(short * width / height), short)
        resized = cv2.resize(np.ascontiguousarray(image), size, interpolation=getattr(cv2, self.interpolation))
        cut = round if self.rounds_crop else int
        top, left = (cut((length - side) / 2) for length in resized.shape[:2])
        pixels = resized[top : top + side, left : left + side].astype(np.float32)
        return (pixels - np.array(self.means, np.float32)).transpose(2, 0, 1)


def photograph(path, size=(500, 375), mode="RGB", seed=0, **options):
    """Save smooth colour noise with some grain."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = draw.integers(-20, 21, (size[1], size[0], 3))
    pixels = np.clip(np.asarray(coarse).astype(int) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


# 500x375 leaves (341-224)/2 = 58.5, which both rules take for 58; 500x341 leaves 75.5, where torchvision takes 76.
SIZES = ((500, 375), (375, 500), (500, 334), (500, 341), (512, 512), (200, 150), (257, 999))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_is_mlperfs_reference_to_the_bit(tmp_path, size):
    path = photograph(tmp_path / "a.jpg", size, quality=90)
    ours = tensor_from_source(path, MLPERF_FLOAT)
    assert (ours.dtype, ours.shape) == (np.float32, (3, 224, 224))
    np.testing.assert_array_equal(ours, Steps().run(path))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_uint8_leaves_the_same_subtraction_to_the_graph(tmp_path, size):
    path = photograph(tmp_path / "a.jpg", size, quality=90)
    pixels = tensor_from_source(path, MLPERF)
    mean = np.array(MLPERF_MEAN, np.float32) * np.float32(255)
    np.testing.assert_array_equal((pixels.astype(np.float32) - mean).transpose(2, 0, 1), Steps().run(path))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("grey.jpg", {"mode": "L"}),
        ("full-colour.jpg", {"subsampling": 0}),
        ("progressive.jpg", {"progressive": True}),
        ("plain.png", {}),
        ("transparent.png", {"mode": "RGBA"}),
    ],
)
def test_other_files_decode_as_opencv_has_them(tmp_path, name, options):
    path = photograph(tmp_path / name, **options)
    np.testing.assert_array_equal(tensor_from_source(path, MLPERF_FLOAT), Steps().run(path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_by_exif_as_opencv_does(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = photograph(tmp_path / "a.jpg", exif=exif)
    ours = tensor_from_source(path, MLPERF_FLOAT)
    np.testing.assert_array_equal(ours, Steps().run(path))
    flat = photograph(tmp_path / "b.jpg")
    assert np.array_equal(ours, tensor_from_source(flat, MLPERF_FLOAT)) == (orientation == 1)
    np.testing.assert_array_equal(  # torchvision's rule does not turn
        tensor_from_source(path, Preprocess()), tensor_from_source(flat, Preprocess())
    )


MISTAKES = {
    "channels left as BGR": Steps(channels=1),
    "bilinear": Steps(interpolation="INTER_LINEAR"),
    "crop rounded to even": Steps(rounds_crop=True),
    "ImageNet's mean": Steps(means=(0.485 * 255, 0.456 * 255, 0.406 * 255)),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_the_comparison_finds_each_mistake(tmp_path, mistake):
    path = photograph(tmp_path / "a.jpg", (500, 341), quality=90)
    assert not np.array_equal(tensor_from_source(path, MLPERF_FLOAT), mistake.run(path))


def test_torchvisions_contract_is_another(tmp_path):
    path = photograph(tmp_path / "a.jpg", quality=90)
    ours, theirs = (tensor_from_source(path, spec).astype(int) for spec in (MLPERF, Preprocess()))
    difference = np.abs(ours - theirs)
    assert 0.5 < difference.mean() < 10  # of 255, with grain of 20; tenths of a point of top-1


def test_is_what_it_was_without_opencv_too():
    """Of a picture in memory, so that no decoder has a part in it; checked against OpenCV by the tests above."""
    draw = np.random.default_rng(7).integers(0, 256, (375, 500, 3), np.uint8)
    ours = preprocess_image(Image.fromarray(draw), MLPERF_FLOAT)
    assert (
        hashlib.sha256(ours.tobytes()).hexdigest() == "645d3c54c20e0484bfafaa95252193927ffd7725513ac788b5028f2edfb2f69b"
    )
