"""images.py against hand-worked numbers, an independent statement of the rule, and torchvision where installed."""

import hashlib
import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_deploy.contract import MLPERF_MEAN, MLPERF_STD
from resnet_deploy.errors import DataError, FileError
from resnet_deploy.images import (
    FORMATS,
    batch_from_images,
    crop_offset,
    decode,
    preprocess_image,
    resized_size,
    rgb_from_image,
    tensor_from_source,
)
from resnet_deploy.specs import IMAGENET_MEAN, IMAGENET_STD, Preprocess

FLOAT32 = Preprocess(dtype="float32", layout="NCHW")
SMALL = Preprocess(image_size=12, resize=16)


def noise(width, height, seed=0):
    """A picture in which every pixel and channel differs, so that a shift or a swap shows."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@dataclass(frozen=True)
class Geometry:
    """One size, worked by hand: width x height, resized, and the corner of a 224 crop of resize 256."""

    size: tuple[int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]


GEOMETRIES = [
    Geometry((500, 375), (341, 256), (58, 16)),  # 256*500/375 = 341.33; (341-224)/2 = 58.5, to the even 58
    Geometry((375, 500), (256, 341), (16, 58)),
    Geometry((500, 333), (384, 256), (80, 16)),  # 384.38
    Geometry((500, 334), (383, 256), (80, 16)),  # 383.23; 79.5, to the even 80
    Geometry((333, 500), (256, 384), (16, 80)),
    Geometry((401, 301), (341, 256), (58, 16)),  # 341.05
    Geometry((299, 300), (256, 256), (16, 16)),  # 256.86 is cut, not rounded
    Geometry((256, 256), (256, 256), (16, 16)),
    Geometry((31, 17), (466, 256), (121, 16)),  # enlarged: 466.82
    Geometry((1, 1), (256, 256), (16, 16)),
]


@pytest.mark.parametrize("case", GEOMETRIES, ids=lambda case: "x".join(map(str, case.size)))
def test_sizes_and_offsets_worked_by_hand(case):
    assert resized_size(case.size, 256) == case.resized
    assert tuple(crop_offset(length, 224) for length in case.resized) == case.corner


def test_the_hand_worked_sizes_tell_truncation_and_bankers_rounding_from_their_neighbours():
    def rounded(size):
        width, height = size
        return (round(256 * width / height), 256) if width > height else (256, round(256 * height / width))

    assert any(rounded(case.size) != case.resized for case in GEOMETRIES)
    assert any((case.resized[0] - 224) // 2 != case.corner[0] for case in GEOMETRIES)  # always down
    assert any((case.resized[0] - 224 + 1) // 2 != case.corner[0] for case in GEOMETRIES)  # always up


def weights_of_triangle(source, target):
    """Pillow's antialiased bilinear filter as documented: a triangle as wide as the reduction; one row per output."""
    scale = source / target
    support = max(scale, 1.0)
    rows = np.zeros((target, source))
    for out in range(target):
        centre = (out + 0.5) * scale
        distance = np.abs(np.arange(source) + 0.5 - centre) / support
        row = np.maximum(0.0, 1.0 - distance)
        rows[out] = row / row.sum()
    return rows


def restated(image, spec):
    """The documented rule, once more and from other parts: exact fractions and a matrix product for the resize."""
    pixels = np.asarray(image).astype(np.float64)
    height, width = pixels.shape[:2]
    short = min(width, height)
    new_height, new_width = (int(Fraction(spec.resize * length, short)) for length in (height, width))
    across = np.einsum("ow,hwc->hoc", weights_of_triangle(width, new_width), pixels)
    resized = np.einsum("oh,hwc->owc", weights_of_triangle(height, new_height), np.floor(across + 0.5))
    side = spec.image_size
    top, left = (int(np.rint((length - side) / 2)) for length in (new_height, new_width))
    return np.floor(resized + 0.5)[top : top + side, left : left + side]


@pytest.mark.parametrize("size", [(53, 37), (37, 53), (41, 40), (16, 16), (9, 13)], ids=str)
def test_follows_the_restated_rule(size):
    image = noise(*size)
    ours = preprocess_image(image, SMALL)
    theirs = restated(image, SMALL)
    assert ours.shape == theirs.shape == SMALL.shape
    # Pillow's weights have 22 bits; only a tie can round the other way.
    assert np.abs(ours - theirs).max() <= 1
    assert np.mean(ours != theirs) < 0.01


def test_each_wrong_variant_differs_from_the_rule():
    image = noise(53, 37)
    right = preprocess_image(image, SMALL).astype(int)
    plain = np.asarray(image)[np.arange(16) * 37 // 16][:, np.arange(22) * 53 // 22]
    thumbnail = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR))[2:14, 2:14]
    for name, wrong in {
        "BGR": right[..., ::-1],
        "mirrored": right[:, ::-1],
        "not antialiased": plain[2:14, 5:17],
        "squashed to a square": thumbnail,
        "bicubic": preprocess_image(image, Preprocess(image_size=12, resize=16, interpolation="bicubic")),
        "crop one to the right": np.asarray(image.resize((22, 16), Image.Resampling.BILINEAR))[2:14, 6:18],
    }.items():
        assert wrong.shape == right.shape
        assert np.abs(wrong - right).max() > 8, name
    same = np.asarray(image.resize((22, 16), Image.Resampling.BILINEAR))[2:14, 5:17]
    np.testing.assert_array_equal(right, same)


def test_resize_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::4] = 255  # one column in four; their mean is 64
    spec = Preprocess(image_size=8, resize=16)
    assert np.abs(preprocess_image(Image.fromarray(stripes), spec).astype(int) - 64).max() <= 1
    nearest = preprocess_image(
        Image.fromarray(stripes), Preprocess(image_size=8, resize=16, interpolation="nearest")
    ).astype(int)
    assert np.abs(nearest - 64).min() > 60


def test_uint8_is_rgb_height_width_channel():
    picture = np.zeros((300, 300, 3), np.uint8)
    picture[:, :, 0] = 200
    picture[150:, :, 2] = 90
    tensor = preprocess_image(Image.fromarray(picture), Preprocess())
    assert (tensor.shape, tensor.dtype) == ((224, 224, 3), np.uint8)
    assert tensor.flags.c_contiguous
    assert tensor.flags.writeable
    assert tensor[0, 0].tolist() == [200, 0, 0]
    assert tensor[-1, 0].tolist() == [200, 0, 90]


def test_float32_is_normalised_channel_height_width():
    picture = np.full((256, 256, 3), (255, 128, 0), np.uint8)
    tensor = preprocess_image(Image.fromarray(picture), FLOAT32)
    assert (tensor.shape, tensor.dtype) == ((3, 224, 224), np.float32)
    assert tensor.flags.c_contiguous
    # (255/255 - 0.485) / 0.229, (128/255 - 0.456) / 0.224, (0 - 0.406) / 0.225; 1e-6 is a few float32 steps at 2.2.
    np.testing.assert_allclose(tensor[:, 0, 0], [2.2489083, 0.2051821, -1.8044444], atol=1e-6)
    bgr = preprocess_image(Image.fromarray(picture[..., ::-1].copy()), FLOAT32)
    assert np.abs(bgr[:, 0, 0] - tensor[:, 0, 0]).max() > 1


def test_float32_is_the_uint8_tensor_normalised():
    image = noise(301, 257)
    pixels = preprocess_image(image, Preprocess()).astype(np.float64)
    expected = ((pixels / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)
    np.testing.assert_allclose(preprocess_image(image, FLOAT32), expected, atol=1e-6)  # float32 steps at 2.6
    swapped = ((pixels / 255 - IMAGENET_MEAN[::-1]) / IMAGENET_STD[::-1]).transpose(2, 0, 1)
    assert np.abs(preprocess_image(image, FLOAT32) - swapped).max() > 0.1


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(500, 375), (333, 500), (299, 300), (31, 17), (256, 256)], ids=str)
def test_equals_torchvision_to_the_bit(size, interpolation):
    transforms = pytest.importorskip("torchvision.transforms")
    image = noise(*size)
    mode = transforms.InterpolationMode[interpolation.upper()]
    pixels = transforms.Compose([transforms.Resize(256, mode), transforms.CenterCrop(224)])
    floats = transforms.Compose([transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    spec = Preprocess(interpolation=interpolation)
    np.testing.assert_array_equal(preprocess_image(image, spec), np.asarray(pixels(image)))
    spec = Preprocess(interpolation=interpolation, dtype="float32", layout="NCHW")
    np.testing.assert_array_equal(preprocess_image(image, spec), floats(pixels(image)).numpy())


# SHA-256, its first 16 digits, of what Pillow 10.1 and 12.3 make of noise(40, 130) in one call.
TALL = {"nearest": "16c65acc81c007bf", "bilinear": "33fb81f17b525539", "bicubic": "0f5fffd53d27ecee"}


@pytest.mark.parametrize("interpolation", TALL)
def test_tall_images_do_not_depend_on_the_release_of_pillow(interpolation):
    image = noise(40, 130)
    pixels = preprocess_image(image, Preprocess(image_size=24, resize=26, interpolation=interpolation))
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == TALL[interpolation]
    if interpolation != "nearest":  # which does not round
        step = Image.Resampling[interpolation.upper()]
        columns_first = image.resize((40, 84), step).resize((26, 84), step).crop((1, 30, 25, 54))
        assert not np.array_equal(pixels, np.asarray(columns_first))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "RGB"])
def test_modes_become_rgb_as_pillow_converts_them(mode):
    image = noise(20, 20).convert(mode)
    rgb = rgb_from_image(image)
    assert (rgb.mode, rgb.size) == ("RGB", (20, 20))
    np.testing.assert_array_equal(rgb, image.convert("RGB"))


def test_decode_returns_rgb_of_a_closed_file(tmp_path):
    noise(40, 30).convert("L").save(tmp_path / "grey.png")
    image = decode(tmp_path / "grey.png")
    (tmp_path / "grey.png").unlink()
    assert image.getpixel((39, 29)) == 3 * image.getpixel((39, 29))[:1]


def test_transparency_of_a_palette_is_dropped_without_a_warning(tmp_path):
    image = noise(20, 20).convert("P")
    image.save(tmp_path / "p.png", transparency=bytes([0, 128, 255]))
    expected = image.convert("RGB")
    decoded = decode(tmp_path / "p.png")  # pytest turns Pillow's warning into an error
    np.testing.assert_array_equal(decoded, expected)
    with pytest.warns(UserWarning, match="Transparency"), Image.open(tmp_path / "p.png") as naive:
        naive.convert("RGB")


@pytest.mark.parametrize("suffix", ["png", "tif", "ppm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 255, 256, 0x8000, 0xFFFF]], np.uint16)
    path = tmp_path / f"wide.{suffix}"
    if suffix == "ppm":
        path.write_bytes(b"P5 5 1 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    assert np.asarray(decode(path))[0, :, 1].tolist() == [0, 0, 1, 128, 255]
    with Image.open(path) as naive:
        assert np.asarray(naive.convert("RGB"))[0, :, 1].tolist() != [0, 0, 1, 128, 255]


def test_values_without_a_range_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"float\.tif: pixels of mode F"):
        decode(tmp_path / "float.tif")
    with pytest.raises(DataError, match="mode La cannot"):
        preprocess_image(Image.new("La", (4, 4)), Preprocess())


def test_exif_orientation_is_not_applied(tmp_path):
    image = noise(40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by a quarter turn to display
    image.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(decode(tmp_path / "turned.png"), image)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileError, match=r"gone\.jpg: no such file") as caught:
        decode(tmp_path / "gone.jpg")
    assert caught.value.hint
    with pytest.raises(FileError, match="is a folder, not a file"):
        decode(tmp_path)


def assert_one_line(error, path):
    assert str(path) in error.message
    assert "\n" not in error.message + error.hint
    assert error.hint


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "ppm", "tif"])
def test_truncated_files_are_named(tmp_path, suffix):
    path = tmp_path / f"half.{suffix}"
    noise(64, 64).save(path)
    decode(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError) as caught:
        decode(path)
    assert_one_line(caught.value, path)


@pytest.mark.parametrize(
    "data", [b"", b"<html>not found</html>", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n" + bytes(64)]
)
def test_what_is_no_image_is_named(tmp_path, data):
    path = tmp_path / "page.jpg"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        decode(path)
    assert_one_line(caught.value, path)


@pytest.mark.parametrize("form", FORMATS)
def test_formats_are_read_by_their_bytes(form):
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow was built without {form}")
    file = io.BytesIO()
    noise(20, 30).save(file, form)
    assert decode(Path("x.jpg"), file.getvalue()).size == (20, 30)


@pytest.mark.parametrize("form", ["PCX", "ICO", "SGI", "EPS"])
def test_a_format_that_is_not_read_is_named(form):
    file = io.BytesIO()
    noise(20, 30).save(file, form)
    with pytest.raises(DataError, match=f"x.jpg: looks like {form}, a format that is not read") as caught:
        decode(Path("x.jpg"), file.getvalue())
    assert "PNG" in caught.value.hint


@pytest.mark.parametrize("fault", [MemoryError(), ValueError()], ids=repr)
def test_short_memory_is_not_put_on_the_file(monkeypatch, fault):
    """A mock of the decoder: the error of the machine comes through, that of a damaged file is one of data."""

    def give_up(*_):
        raise fault

    image = noise(8, 8)
    file = io.BytesIO()
    image.save(file, "PNG")
    expected = MemoryError if isinstance(fault, MemoryError) else DataError
    monkeypatch.setattr("resnet_deploy.images.rgb_from_image", give_up)
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", give_up)
    with pytest.raises(expected):
        decode(Path("sound.png"), file.getvalue())
    with pytest.raises(expected):
        preprocess_image(image, Preprocess(interpolation="area", mean=MLPERF_MEAN, std=MLPERF_STD))


def test_flipped_bytes_never_escape_as_another_error(tmp_path):
    rng = np.random.default_rng(0)
    outcomes = set()
    for suffix in ("jpg", "png", "tif", "webp"):
        path = tmp_path / f"image.{suffix}"
        noise(32, 32).save(path)
        sound = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            damaged = sound.copy()
            damaged[rng.integers(0, min(200, sound.size), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            try:
                decode(path)
                outcomes.add("decoded")
            except DataError as error:
                outcomes.add("refused")
                assert_one_line(error, path)
    assert outcomes == {"decoded", "refused"}


def png_header(width, height):
    """A PNG that promises a size it does not hold."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# Pillow raises beyond twice its limit of 89 million pixels, and merely warns below that.
@pytest.mark.parametrize("side", [10_000, 30_000])
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_decompression_bombs_are_refused_however_warnings_are_filtered(tmp_path, side, action):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter(action, Image.DecompressionBombWarning)
        with pytest.raises(DataError, match="pixels") as caught:
            decode(path)
    assert_one_line(caught.value, path)


def test_an_image_that_resizing_would_blow_up_is_refused(tmp_path):
    Image.new("RGB", (500_000, 1)).save(tmp_path / "line.png")
    with pytest.raises(DataError, match=r"line\.png: too elongated.*128000000x256"):
        tensor_from_source(tmp_path / "line.png", Preprocess())
    assert preprocess_image(Image.new("RGB", (400, 2)), Preprocess()).shape == (224, 224, 3)


def test_batch_takes_paths_images_and_arrays_alike(tmp_path):
    image = noise(30, 20)
    image.save(tmp_path / "a.png")
    batch = batch_from_images([tmp_path / "a.png", image, np.asarray(image), noise(30, 20, seed=1)], SMALL)
    assert (batch.shape, batch.dtype) == ((4, 12, 12, 3), np.uint8)
    np.testing.assert_array_equal(batch[0], batch[1])
    np.testing.assert_array_equal(batch[0], batch[2])
    assert (batch[0] != batch[3]).any()


def test_batch_of_floats_and_of_nothing():
    spec = Preprocess(image_size=12, resize=16, dtype="float32", layout="NCHW")
    batch = batch_from_images([noise(30, 20)], spec)
    assert (batch.shape, batch.dtype) == ((1, 3, 12, 12), np.float32)
    np.testing.assert_array_equal(batch[0], preprocess_image(noise(30, 20), spec))
    assert batch_from_images([], SMALL).shape == (0, 12, 12, 3)


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
    ids=["grey", "chw", "float", "empty"],
)
def test_arrays_that_are_no_rgb_image_are_refused(array):
    with pytest.raises(DataError, match="is not an image") as caught:
        batch_from_images([array], SMALL)
    assert "RGB" in caught.value.hint
