"""The C++ preprocessing against Python's, to the bit; compiled once, as hostile to exactness as flags can be."""

import shutil
import struct
import subprocess
from pathlib import Path

import cpp_preprocess
import msgspec
import numpy as np
import pytest
from PIL import Image, ImageOps
from preprocess_driver import INCLUDE, Driver, RefusedError, compile_driver

from resnet_deploy.contract import INTERPOLATIONS, MLPERF_MEAN, MLPERF_STD, Preprocess
from resnet_deploy.errors import DataError, SpecError
from resnet_deploy.images import decode, preprocess_image

ARGUMENT, DATA = 1, 4  # errors.hpp
DTYPES = ("uint8", "float32")

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    # Products may be fused with sums wherever this CPU can; arithmetic on whole numbers that overflows ends the test.
    flags = ("-O2", "-march=native", "-ffp-contract=fast", "-fsanitize=undefined", "-fno-sanitize-recover=all")
    return Driver(compile_driver(tmp_path_factory.mktemp("driver"), "g++", flags))


def contract(interpolation, dtype="uint8", **sizes):
    numbers = {"mean": MLPERF_MEAN, "std": MLPERF_STD} if interpolation == "area" else {}
    layout = "NHWC" if dtype == "uint8" else "NCHW"
    return Preprocess(interpolation=interpolation, dtype=dtype, layout=layout, **numbers, **sizes)


def noise(width, height, seed=0, padding=0):
    """Rows that lie ``padding`` pixels apart."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width + padding, 3), np.uint8)
    return pixels[:, :width]


def python_of(pixels, spec):
    return preprocess_image(Image.fromarray(pixels), spec)


def assert_equal(driver, pixels, spec):
    expected, found = python_of(pixels, spec), driver.preprocess(pixels, spec)
    np.testing.assert_array_equal(found, expected, err_msg=f"{pixels.shape} by {spec}")
    assert found.tobytes() == expected.tobytes()  # the sign of a zero too


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_any_size_equals_python_to_the_bit(driver, interpolation, dtype):
    random = np.random.default_rng(INTERPOLATIONS.index(interpolation))
    compared = 0
    while compared < 150:
        side = int(random.integers(1, random.choice([4, 40, 160])))
        resize = side + int(random.integers(0, random.choice([1, 3, 40])))
        width, height = (int(random.integers(1, random.choice([5, 40, 200, 700]))) for _ in range(2))
        whole = random.integers(4)
        if whole == 0:  # exact multiples, the same or not in both directions
            width, height = (resize * int(times) for times in random.integers(1, 6, 2))
        elif whole == 1:  # that side as it is
            width = resize
        if max(width, height) / min(width, height) * resize**2 > 1e6:
            continue
        spec = contract(interpolation, dtype, image_size=side, resize=resize)
        if interpolation != "area":
            mean, std = random.uniform(0, 1, 3), random.uniform(0.01, 1, 3)
            spec = msgspec.structs.replace(spec, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
        assert_equal(driver, noise(width, height, compared, padding=int(random.integers(3))), spec)
        compared += 1


EXTREMES = [
    (1, 1),
    (1, 300),
    (300, 1),
    (2, 3),
    (256, 256),
    (256, 341),
    (224, 224),
    (512, 512),
    (768, 512),
    (513, 511),
    (500, 375),
    (374, 501),
    (400, 1000),  # more than twice as tall as wide
    (255, 257),
    (1921, 1080),
]


@pytest.mark.parametrize("size", EXTREMES, ids=lambda size: "x".join(map(str, size)))
def test_the_usual_crop_equals_python_to_the_bit(driver, size):
    for interpolation in INTERPOLATIONS:
        assert_equal(driver, noise(*size), contract(interpolation))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_stay_as_they_are(driver, interpolation, value):
    stripes = np.full((90, 70, 3), 255 - value, np.uint8)
    stripes[::3, ::2] = value  # where bicubic leaves 0..255 on both sides, and is cut off
    assert_equal(driver, stripes, contract(interpolation, image_size=100, resize=120))
    plain = np.full((90, 70, 3), value, np.uint8)
    assert (driver.preprocess(plain, contract(interpolation, image_size=30, resize=32)) == value).all()


def test_huge_blocks_equal_python(driver):
    pixels = noise(2903, 2903) | 0xF0  # a sum beyond 2^31
    assert_equal(driver, pixels, contract("area", image_size=1, resize=1))


def test_photographs_and_digits_equal_python_to_the_bit(driver):
    datasets = pytest.importorskip("sklearn.datasets")
    photographs = datasets.load_sample_images().images  # a temple and a flower, 640x427
    digits = datasets.load_digits().images[:20].astype(np.uint8) * 15
    random = np.random.default_rng(0)
    images = [np.repeat(digit[..., None], 3, axis=2) for digit in digits]
    for number in range(80):
        photograph = photographs[number % 2]
        top, left = int(random.integers(0, 300)), int(random.integers(0, 500))
        images.append(
            photograph[top : top + int(random.integers(50, 427)), left : left + int(random.integers(50, 640))]
        )
    assert len(images) == 100
    for number, image in enumerate(images):
        assert_equal(driver, image, contract(INTERPOLATIONS[number % 4], DTYPES[number // 4 % 2], resize=232))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_the_comparison_sees_what_differs(driver, interpolation):
    pixels, spec = noise(121, 80), contract(interpolation, image_size=32, resize=40)  # resized to 60x40
    found = driver.preprocess(pixels, spec)
    larger = python_of(pixels, msgspec.structs.replace(spec, image_size=34))
    wrong = {
        "crop one to the left": larger[1:-1, :-2],
        "crop one up": larger[:-2, 1:-1],
        "one count": found ^ np.eye(32, dtype=np.uint8)[..., None],
        "mirrored": python_of(pixels[:, ::-1].copy(), spec),
    }
    for other in set(INTERPOLATIONS) - {interpolation}:
        wrong[other] = python_of(pixels, contract(other, image_size=32, resize=40))
    for name, tensor in wrong.items():
        assert tensor.shape == found.shape
        assert not np.array_equal(tensor, found), name
    np.testing.assert_array_equal(larger[1:-1, 1:-1], found)


def test_a_preprocessor_serves_one_size_after_another(driver):
    images = [noise(60, 50, 1), noise(60, 50, 2), noise(50, 60, 3), noise(40, 40, 4), noise(60, 50, 5)]
    for interpolation in INTERPOLATIONS:
        spec = contract(interpolation, image_size=20, resize=40)
        np.testing.assert_array_equal(driver.preprocess_many(images, spec), python_of(images[-1], spec))


@pytest.mark.parametrize("threads", [1, 3, 64])
def test_a_batch_is_its_images(driver, threads):
    images = [noise(30 + 7 * (number % 3), 40, number) for number in range(11)]
    spec = contract("bilinear", "float32", image_size=24, resize=28)
    expected = np.stack([python_of(image, spec) for image in images])
    np.testing.assert_array_equal(driver.preprocess_batch(images, spec, threads), expected)
    assert driver.preprocess_batch([], spec, threads).shape == (0, 3, 24, 24)


def test_a_batch_names_the_first_image_that_it_refuses(driver):
    images = [noise(30, 40), noise(1, 5000), noise(5000, 1)]
    spec = contract("bilinear", image_size=150, resize=150)
    with pytest.raises(DataError) as python:
        python_of(images[1], spec)
    with pytest.raises(RefusedError) as cpp:
        driver.preprocess_batch(images, spec, 2)
    assert cpp.value.args == (DATA, f"image 1: {python.value.message}", python.value.hint)
    with pytest.raises(RefusedError) as cpp:
        driver.preprocess_batch(images, spec, 0)
    assert cpp.value.args[:2] == (ARGUMENT, "0 threads")


@pytest.mark.parametrize("size", [(1, 2000), (3000, 1), (7, 90000)], ids=str)
def test_elongated_images_are_refused_in_pythons_words(driver, size):
    for interpolation in INTERPOLATIONS:
        spec = contract(interpolation, resize=300)
        with pytest.raises(DataError) as python:
            python_of(noise(*size), spec)
        with pytest.raises(RefusedError) as cpp:
            driver.preprocess(noise(*size), spec)
        assert cpp.value.args == (DATA, python.value.message, python.value.hint)


def test_the_limit_is_pythons_to_the_pixel(driver):
    # 8192 * 10922 pixels are just within 89478485, 8192 * 10923 are not: int(8192 * 4 / 3), int(8192 * 10801 / 8100)
    assert_equal(driver, noise(4, 3), contract("nearest", image_size=2, resize=8192))
    with pytest.raises(RefusedError, match="10923x8192 pixels"):
        driver.preprocess_view((1, 10801, 8100, 0), contract("nearest", image_size=2, resize=8192))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pillow's own, short of an error
def test_large_images_are_refused_in_the_words_of_pythons_decoder(driver, tmp_path):
    width, height = 8192, 10923
    assert width * height - height <= Image.MAX_IMAGE_PIXELS < width * height
    path = tmp_path / "large.bmp"
    with path.open("wb") as file:  # a header that promises them; nothing that is read
        file.write(
            struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54)
            + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)
        )
    with pytest.raises(DataError) as python:
        decode(path)
    with pytest.raises(RefusedError) as cpp:
        driver.preprocess_view((1, width, height, 0), contract("area"))
    assert cpp.value.args == (DATA, python.value.message.removeprefix(f"{path}: "), python.value.hint)
    with pytest.raises(RefusedError, match="a stride of 1 bytes"):  # the next check: one row fewer is let through
        driver.preprocess_view((1, width, height - 1, 1), contract("area"))


VIEWS = [
    ((1, 0, 5, 0), DATA, "the image has no pixels"),
    ((1, 5, 0, 0), DATA, "the image has no pixels"),
    ((1, -5, 5, 0), DATA, "the image has no pixels"),
    ((1, 5, -(2**31), 0), DATA, "the image has no pixels"),
    ((None, 5, 5, 0), ARGUMENT, "the image's data is null"),
    ((1, 5, 5, 14), ARGUMENT, "a stride of 14 bytes is less than a row of 15"),
    ((1, 5, 5, -15), ARGUMENT, "a stride of -15 bytes is less than a row of 15"),
    ((1, 2**26, 1, 2**26), ARGUMENT, "a stride of 67108864 bytes is less than a row of 201326592"),
    ((1, 2**26, 1, 0), DATA, "too elongated: it would be resized to 17179869184x256 pixels"),
    ((1, 2**31 - 1, 2**31 - 1, 0), DATA, "2147483647x2147483647 pixels are more than the limit of 89478485"),
]


@pytest.mark.parametrize(("view", "code", "message"), VIEWS, ids=[message for *_, message in VIEWS])
def test_views_of_nothing_are_refused_before_they_are_read(driver, view, code, message):
    for interpolation in INTERPOLATIONS:
        with pytest.raises(RefusedError) as error:
            driver.preprocess_view(view, contract(interpolation))
        assert error.value.args[:2] == (code, message)
        assert error.value.args[2]


SIZES = [
    {"image_size": 0},
    {"image_size": -3},
    {"image_size": 2049, "resize": 2049},
    {"resize": 8193},
    {"image_size": 257},
    {"resize": -(2**31)},
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_contracts_are_refused_in_pythons_words(driver, sizes):
    with pytest.raises(SpecError) as python:
        Preprocess(**sizes)
    spec = Preprocess()
    for name, value in sizes.items():
        msgspec.structs.force_setattr(spec, name, value)
    with pytest.raises(RefusedError) as cpp:
        driver.preprocess_view((1, 5, 5, 0), spec)
    assert cpp.value.args[:2] == (ARGUMENT, python.value.message)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_what_pillow_does_and_mlperfs_rule_wants(driver, orientation):
    pixels = noise(50, 31, padding=2)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    turned = driver.upright(pixels, orientation)
    np.testing.assert_array_equal(turned, np.asarray(ImageOps.exif_transpose(image)))
    spec = contract("area", image_size=20, resize=24)
    expected = preprocess_image(image, spec)
    np.testing.assert_array_equal(driver.preprocess(turned, spec), expected)
    assert orientation == 1 or not np.array_equal(driver.preprocess(pixels, spec), expected)


def test_unknown_orientations_are_refused(driver):
    for orientation in (0, 9):
        with pytest.raises(RefusedError, match=f"unknown orientation {orientation}"):
            driver.upright(noise(3, 3), orientation)


@pytest.mark.parametrize("flag", ["-ffast-math", "-Ofast", "-funsafe-math-optimizations"])
def test_flags_that_reorder_arithmetic_are_refused(flag):
    command = ["g++", "-std=c++17", f"-I{INCLUDE}", "-x", "c++", "-fsyntax-only", "-"]
    source = '#include "resnet_deploy/lanes.hpp"\n'
    assert subprocess.run(command, input=source, text=True, capture_output=True, check=False).returncode == 0
    refused = subprocess.run([*command, flag], input=source, text=True, capture_output=True, check=False)
    assert refused.returncode != 0
    assert "exact to the bit" in refused.stderr


def test_nothing_is_read_or_written_beyond_its_end(tmp_path):
    program = tmp_path / "fuzz"
    source = Path(__file__).parent / "fuzz_preprocess.cpp"
    flags = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DRESNET_DEPLOY_FUZZ_ROUNDS=500")
    command = ["g++", "-std=c++17", *flags, f"-I{INCLUDE}", "-pthread", source, "-o", program]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    if "asan" in compiled.stderr and "cannot find" in compiled.stderr:
        pytest.skip("needs the sanitizers' libraries")
    assert compiled.returncode == 0, compiled.stderr
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "500 rounds\n"


def test_the_benchmark_compares_what_is_equal(driver, monkeypatch):
    monkeypatch.setattr(cpp_preprocess, "ROUND_S", 0.001)
    case = cpp_preprocess.measure(driver, "bilinear", (300, 280), rounds=2)
    assert {way: len(rates) for way, rates in case.rates.items()} == {"pillow": 2, "cpp": 2, "cpp, other sizes": 2}
    # By hand: 300x280 to 274x256 takes 2 * 300/274 and 2 * 280/256 taps; the crop needs 224 columns of 247.19 rows.
    whole = 274 * 280 * 600 / 274 + 274 * 256 * 2.1875
    cropped = 224 * 247.1875 * 600 / 274 + 224 * 224 * 2.1875
    assert case.products == (round(whole), round(cropped))
    monkeypatch.setattr(cpp_preprocess, "preprocess_image", lambda image, spec: python_of(noise(300, 280, 1), spec))
    with pytest.raises(AssertionError, match="not equal"):
        cpp_preprocess.measure(driver, "bilinear", (300, 280), rounds=2)
