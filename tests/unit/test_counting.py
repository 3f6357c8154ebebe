"""Counting in C and in NumPy: the same extremes and the same counts, whatever the values, however compiled."""

import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_deploy.quantize import counting
from resnet_deploy.quantize.counting import BINS, HALF, NativeCounter, NumpyCounter
from resnet_deploy.quantize.observers import Histogram

SOURCE = Path(counting.__file__).with_name("counting.c")
# As it is installed, and what only other processors or compilers would make of it.
WAYS = {
    "as installed": ("gcc", "-O3"),
    "for any processor": ("gcc", "-O3", "-DFOR_EACH_PROCESSOR="),
    "not optimized": ("gcc", "-O0", "-DFOR_EACH_PROCESSOR="),
    "by clang": ("clang", "-O3"),
}
LARGEST = float(np.finfo(np.float32).max)
values_of_all_sizes = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40)


def compiled(source, folder, compiler, *flags):
    """Compile, warnings being errors; skip where there is no such compiler."""
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    library = folder / "counting.so"
    command = [compiler, *flags, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, source]
    subprocess.run(command, check=True)
    return NativeCounter(library)


@pytest.fixture(scope="module", params=WAYS)
def native(request, tmp_path_factory):
    return compiled(SOURCE, tmp_path_factory.mktemp("native"), *WAYS[request.param])


def look_at(counter, values):
    """Extremes and counts of a piece, over the smallest range that holds it."""
    low, high = counter.extremes(values)
    counts = np.zeros(BINS, np.int64)
    exponent = max(math.frexp(max(-low, high))[1], -60)
    counter.add(values, math.ldexp(HALF, -exponent), counts)
    return low, high, counts


def assert_equal(counter, values):
    low, high, counts = look_at(counter, values)
    expected_low, expected_high, expected = look_at(NumpyCounter(), values)
    assert (low, high) == (expected_low, expected_high)
    assert counts.tolist() == expected.tolist()
    assert counts.sum() == len(values)


@given(values=values_of_all_sizes)
@settings(deadline=None, max_examples=50)
def test_same_as_numpy(native, values):
    assert_equal(native, np.array(values, np.float32))


# Around a block, the tables that take turns in it, and NumPy's largest piece.
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 1023, 1024, 1025, 1027, 4099, NumpyCounter.piece])
def test_same_as_numpy_at_every_length(native, size):
    values = np.random.default_rng(size).standard_normal(size, dtype=np.float32)
    assert_equal(native, values)
    assert_equal(native, np.maximum(values, 0))


def test_a_count_that_forgets_the_rest_of_a_block_is_noticed(tmp_path):
    code = SOURCE.read_text()
    broken = tmp_path / "broken.c"
    broken.write_text(code.replace("for (; i < size; i++)", "for (; 0;)"))
    assert broken.read_text() != code
    counter = compiled(broken, tmp_path, "gcc", "-O1")
    assert_equal(counter, np.ones(1024, np.float32))
    with pytest.raises(AssertionError):
        assert_equal(counter, np.ones(1025, np.float32))


@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF])
@pytest.mark.parametrize("place", [0, 500, 1026])
def test_what_is_not_finite_is_an_extreme(native, bits, place):
    values = np.random.default_rng(0).standard_normal(1027, dtype=np.float32)
    assert all(map(math.isfinite, native.extremes(values)))
    values.view(np.uint32)[place] = bits
    assert not all(map(math.isfinite, native.extremes(values)))


@pytest.mark.parametrize("scale", [1.0, LARGEST, math.inf, math.nan])
def test_values_beyond_the_range_are_not_counted_elsewhere_in_memory(native, scale):
    around = np.zeros(3 * BINS, np.int64)
    values = np.array([LARGEST, -LARGEST, 1e4, -1e4, 0, math.inf, -math.inf, math.nan], np.float32)
    native.add(np.tile(values, 100), scale, around[BINS : 2 * BINS])
    assert around[BINS : 2 * BINS].sum() == 800
    assert not around[:BINS].any()
    assert not around[2 * BINS :].any()


def test_histograms_are_equal_across_pieces(native, monkeypatch):
    values = np.random.default_rng(1).standard_normal(NativeCounter.piece + 5, dtype=np.float32)
    values[-1] = 1000  # the range grows in the last piece of both
    digests = []
    for counter in (native, NumpyCounter()):
        monkeypatch.setattr(counting, "COUNTER", counter)
        histogram = Histogram()
        histogram.update(values)
        digests.append(histogram.digest)
    assert digests[0] == digests[1]
    assert histogram.total == len(values)


class TestWhichOneIsTaken:
    def test_the_one_in_c_where_it_was_compiled(self):
        assert isinstance(counting.COUNTER, NativeCounter if counting.LIBRARY.exists() else NumpyCounter)

    @pytest.mark.parametrize("content", [None, b"", b"\x7fELF of another processor"])
    def test_numpy_where_it_is_missing_or_does_not_load(self, content, tmp_path, monkeypatch):
        library = tmp_path / "library.so"
        if content is not None:
            library.write_bytes(content)
        monkeypatch.setattr(counting, "LIBRARY", library)
        assert isinstance(counting.find_counter(), NumpyCounter)

    def test_a_library_that_lacks_a_function(self, tmp_path, monkeypatch):
        source = tmp_path / "other.c"
        source.write_text("int other(void);\nint other(void) { return 0; }\n")
        with pytest.raises(AttributeError):
            compiled(source, tmp_path, "gcc")
        monkeypatch.setattr(counting, "LIBRARY", tmp_path / "counting.so")
        assert isinstance(counting.find_counter(), NumpyCounter)
