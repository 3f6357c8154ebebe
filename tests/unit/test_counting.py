"""Counting in C and in NumPy: the same extremes and the same counts, whatever the values, however compiled."""

import contextlib
import ctypes
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
# What is installed, and what other compilers, or processors, would make of the source.
WAYS = {
    "installed": (),
    "by gcc": ("gcc", "-O3"),
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
    if request.param == "installed":
        if counting.NOT_NATIVE:
            pytest.skip(counting.NOT_NATIVE)
        return counting.COUNTER
    return compiled(SOURCE, tmp_path_factory.mktemp("native"), *WAYS[request.param])


def look_at(counter, values):
    """Extremes and counts of a piece, over the smallest range that holds it."""
    counts = np.zeros(BINS, np.int64)
    _, low, high = counter.count(values, 1.0, counts.copy())
    exponent = max(math.frexp(max(-low, high))[1], -60)
    counted, *again = counter.count(values, math.ldexp(HALF, -exponent), counts)
    assert counted == len(values) == counts.sum()
    assert [low, high] == again
    return low, high, counts


def assert_equal(counter, values):
    low, high, counts = look_at(counter, values)
    expected_low, expected_high, expected = look_at(NumpyCounter(), values)
    assert (low, high) == (expected_low, expected_high)
    assert counts.tolist() == expected.tolist()


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
@pytest.mark.parametrize("exponent", [-60, 4, 128])
def test_what_is_not_finite_is_an_extreme(native, bits, place, exponent):
    values = np.random.default_rng(0).standard_normal(1027, dtype=np.float32)
    scale, counts = math.ldexp(HALF, -exponent), np.zeros(BINS, np.int64)
    assert all(map(math.isfinite, native.count(values, scale, counts)))
    values.view(np.uint32)[place] = bits
    for counter in (native, NumpyCounter()):
        assert not all(map(math.isfinite, counter.count(values, scale, counts)))


@pytest.mark.parametrize("beyond", [8.0, -8.0, 8.5, LARGEST, -LARGEST])
@pytest.mark.parametrize("place", [0, 1023, 1024, 3000])
def test_counts_up_to_where_the_range_is_left_and_looks_at_all(native, beyond, place):
    values = np.random.default_rng(0).uniform(-7, 7, 4000).astype(np.float32)
    values[-1], values[place] = 7.9, beyond
    counts, scale = np.zeros(BINS, np.int64), HALF / 8
    counted, *extremes = native.count(values, scale, counts)
    assert extremes == [values.min(), values.max()]
    assert counted <= place
    assert counts.sum() == counted
    values[place] = 0
    rest, *_ = native.count(values[counted:], scale, counts)
    expected = np.zeros(BINS, np.int64)
    assert NumpyCounter().count(values, scale, expected)[0] == 4000
    assert rest == 4000 - counted
    assert counts.tolist() == expected.tolist()


@pytest.mark.parametrize("scale", [1.0, 2.0**-116, 2.0**72, math.inf, math.nan, 0.0, -1.0])
def test_nothing_is_counted_elsewhere_in_memory(native, scale):
    around = np.zeros(3 * BINS, np.int64)
    values = np.array([LARGEST, -LARGEST, 1e4, -1e4, 0, math.inf, -math.inf, math.nan], np.float32)
    counted = sum(native.count(part, scale, around[BINS : 2 * BINS])[0] for part in (np.tile(values, 100), values[:5]))
    assert around[BINS : 2 * BINS].sum() == counted
    assert not around[:BINS].any()
    assert not around[2 * BINS :].any()


def test_counts_of_another_kind_are_refused(native):
    """C would write over what lies beside them."""
    values, whole = np.zeros(10, np.float32), np.zeros(2 * BINS, np.int64)
    read_only = whole[:BINS]
    read_only.flags.writeable = False
    for counts in (whole[::2], whole[: BINS - 1], whole.astype(">i8")[:BINS], whole[:BINS].astype(np.int32), read_only):
        with pytest.raises(ctypes.ArgumentError):
            native.count(values, 1.0, counts)
    for other in (values[::2], values.astype(np.float64), values.astype(">f4"), values.reshape(2, 5)):
        with pytest.raises(ctypes.ArgumentError):
            native.count(other, 1.0, whole[BINS:])
    assert not whole.any()


ROWS = np.random.default_rng(2).integers(-100, 100, (6, 10)).astype(np.float32)
UNALIGNED = np.frombuffer(b"\0" + ROWS.tobytes(), np.uint8)[1:].view(np.float32)


@pytest.mark.parametrize(
    "same",
    [
        *(ROWS.astype(dtype) for dtype in (np.float64, np.float16, ">f4", np.int8)),
        *(ROWS.T, UNALIGNED, ROWS[::-1, ::-1], np.repeat(ROWS, 2, 1)[:, ::2]),
    ],
    ids=["float64", "float16", "big-endian", "int8", "transposed", "unaligned", "reversed", "strided"],
)
def test_histograms_take_arrays_of_any_kind(native, monkeypatch, same):
    monkeypatch.setattr(counting, "COUNTER", native)
    first, second = Histogram(), Histogram()
    first.update(ROWS)
    second.update(same)
    assert first.digest == second.digest
    assert first.total == ROWS.size
    second.update(same[:1])
    assert first.digest != second.digest


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
    @pytest.fixture
    def found(self, tmp_path, monkeypatch):
        """Look for a counter where the library is what was made of a source, or is some file, or is not there."""

        def run(content):
            monkeypatch.setattr(counting, "LIBRARY", tmp_path / "counting.so")
            if isinstance(content, str):
                (tmp_path / "other.c").write_text(content)
                with contextlib.suppress(OSError):
                    compiled(tmp_path / "other.c", tmp_path, "gcc")
            elif content is not None:
                counting.LIBRARY.write_bytes(content)
            return counting.find_counter()

        return run

    def test_the_one_in_c_where_it_is_sound(self, found):
        counter, reason = found(SOURCE.read_text())
        assert isinstance(counter, NativeCounter)
        assert reason == ""

    def test_numpy_where_it_is_missing(self, found):
        counter, reason = found(None)
        assert isinstance(counter, NumpyCounter)
        assert reason == "the package was built without a C compiler"

    @pytest.mark.parametrize("content", [b"", b"\x7fELF of another processor"])
    def test_numpy_where_it_does_not_load(self, found, content):
        counter, reason = found(content)
        assert isinstance(counter, NumpyCounter)
        assert reason.startswith("the library does not load: ")

    @pytest.mark.parametrize(
        ("before", "after"),
        [("HALF = 4096", "HALF = 2048"), ("interface = 2", "interface = 1"), ("interface =", "i =")],
    )
    def test_numpy_where_it_is_of_another_version(self, found, before, after):
        source = SOURCE.read_text()
        assert before in source
        counter, reason = found(source.replace(before, after))
        assert isinstance(counter, NumpyCounter)
        assert reason.endswith("was compiled from another version's source")
