"""The C++ runtime's JSON and files: the decisions of Python, on the same bytes; and the C interface."""

import io
import json
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
from core_factory import CLASSES, CPP, SIDE, compile_cpp, make_bundle, sums
from hypothesis import given, settings
from hypothesis import strategies as st
from make_seeds import all_seeds

from resnet_deploy import bundle as python
from resnet_deploy.errors import BundleError, FileError
from resnet_deploy.onnx_wire import has_external_tensors
from resnet_deploy.version import __version__

HERE = Path(__file__).parent
FUZZED = 3000


def test_by_hand_worked_examples(doctest_main, tmp_path):
    program = compile_cpp(tmp_path / "tests", HERE / "core_tests.cpp", doctest_main)
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"test cases: +(\d+)", done.stdout)[1]) >= 12


# --- the canonical form

# msgspec would take integers of more than 64 bits, of which readers differ.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)


def spellings(value):
    """Write a value in several ways that mean the same."""
    return (
        msgspec.json.encode(value),
        json.dumps(value, ensure_ascii=True, indent=1).encode(),
        json.dumps(value, ensure_ascii=False).encode(),
    )


@settings(max_examples=15, deadline=None)
@given(values=st.lists(VALUES, min_size=10, max_size=25))
def test_the_canonical_form_is_msgspecs(driver, values):
    texts = [text for value in values for text in spellings(value)]
    expected = ["ok " + msgspec.json.encode(msgspec.json.decode(text), order="sorted").hex() for text in texts]
    assert driver("canonical", texts) == expected


def test_numbers_are_written_as_msgspec_does(driver):
    draw = random.Random(0)
    bits = [draw.getrandbits(64) for _ in range(20_000)]
    numbers = [number for number in np.array(bits, np.uint64).view(np.float64).tolist() if np.isfinite(number)]
    numbers += [
        sign * digits * 10.0**power for power in range(-30, 30) for digits in (1, 1.5, 9.999) for sign in (1, -1)
    ]
    assert len(numbers) > 15_000
    lines = driver("canonical", [json.dumps(numbers).encode(), json.dumps([numbers[0], 0.5]).encode()])
    assert lines[0] == "ok " + msgspec.json.encode(numbers).hex()
    assert lines[1] != "ok " + msgspec.json.encode([numbers[0], 0.25]).hex()  # the comparison can fail


# --- files


def test_a_sound_bundle_is_opened(driver, tmp_path):
    path = make_bundle(tmp_path / "bundle")
    digest = json.loads((path / python.MANIFEST).read_text())["sha256"]
    assert driver("bundle", (), path) == [f"ok net-int8 {digest} 2"]
    python.open_bundle(path).verify_files()


def replace(path, make):
    path.unlink()
    make(path)


# What is done to a bundle, the code, words of the message, and whether Python refuses it too.
ACCIDENTS = {
    "no folder": (shutil.rmtree, 2, "is not an engine bundle", True),
    "a file": (lambda path: (shutil.rmtree(path), path.touch()), 2, "is not an engine bundle", True),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), 2, "manifest.json is missing", True),
    "a folder as the manifest": (
        lambda path: replace(path / "manifest.json", Path.mkdir), 2, "manifest.json is not a regular file", True),
    "a FIFO as the manifest": (
        lambda path: replace(path / "manifest.json", os.mkfifo), 2, "manifest.json is not a regular file", True),
    "a device as the manifest": (
        lambda path: replace(path / "manifest.json", lambda at: at.symlink_to("/dev/zero")), 2, "is a link", True),
    "an empty manifest": (lambda path: (path / "manifest.json").write_bytes(b""), 3, "it is no JSON", True),
    "a huge manifest": (lambda path: os.truncate(path / "manifest.json", 1 << 40), 3, "larger than 32 MiB", True),
    "no engine": (lambda path: (path / "model.plan").unlink(), 3, "model.plan is missing", True),
    "an engine cut short": (lambda path: os.truncate(path / "model.plan", 4), 3, "model.plan was altered", True),
    "an engine of another byte": (
        lambda path: (path / "model.plan").write_bytes(b"an Engine"), 3, "differs from files.model.plan", True),
    "a huge engine": (lambda path: os.truncate(path / "model.plan", 1 << 40), 3, "larger than 4 GiB", None),
    "a folder as the engine": (
        lambda path: replace(path / "model.plan", Path.mkdir), 3, "model.plan is not a regular file", True),
    "a FIFO as the engine": (
        lambda path: replace(path / "model.plan", os.mkfifo), 3, "model.plan is not a regular file", True),
    "a link out of the folder": (
        lambda path: ((path / "model.plan").rename(path.parent / "plan"), (path / "model.plan").symlink_to("../plan")),
        3, "model.plan is a link", False),
    "a link to itself": (
        lambda path: replace(path / "model.plan", lambda at: at.symlink_to(at)), 3, "model.plan is a link", True),
}  # fmt: skip


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_accidents_to_files_are_told(driver, tmp_path, accident):
    happen, code, words, python_too = ACCIDENTS[accident]
    path = make_bundle(tmp_path / "bundle")
    happen(path)
    (line,) = driver("bundle", (), path)
    assert line.startswith(f"{code} ")
    assert words in line
    if python_too is None:  # it would read a terabyte
        return
    try:
        python.open_bundle(path).verify_files()
    except (BundleError, FileError):
        assert python_too
    else:
        assert not python_too


def shaped(dtype=np.uint8, images=(2, SIDE, SIDE, 3), logits=(2, CLASSES)):
    return {"images": np.zeros(images, dtype), "logits": np.zeros(logits, np.float32)}


GOLDEN = {
    "no images": ({"logits": np.zeros((2, CLASSES), np.float32)}, "it has 0 images"),
    "none": (shaped(images=(0, SIDE, SIDE, 3), logits=(0, CLASSES)), "it has 0 images"),
    "another dtype": (shaped(np.float32), "its images do not fit card.preprocess"),
    "another size": (shaped(images=(2, SIDE, SIDE + 1, 3)), "its images do not fit card.preprocess"),
    "other classes": (shaped(logits=(2, CLASSES + 1)), "its logits do not fit card.num_classes"),
    "other images": (shaped(logits=(3, CLASSES)), "its logits do not fit card.num_classes"),
    "doubles": (shaped(np.float64), "an array is neither uint8 nor float32"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_vectors_that_do_not_fit_are_refused(driver, tmp_path, name):
    arrays, words = GOLDEN[name]
    (line,) = driver("bundle", (), make_bundle(tmp_path / "bundle", golden=arrays))
    assert line.startswith("3 ")
    assert words in line


def test_archives_of_another_kind_are_refused(driver, tmp_path):
    compressed = io.BytesIO()
    np.savez_compressed(compressed, **shaped())
    for number, (data, words) in enumerate(
        [(compressed.getvalue(), "compressed"), (b"", "no archive"), (b"PK\x05\x06" + bytes(18), "0 images")]
    ):
        path = make_bundle(tmp_path / str(number), files={"golden.npz": data})
        (line,) = driver("bundle", (), path)
        assert line.startswith("3 ")
        assert words in line


# --- nothing crashes


def mutated(seed, draw):
    """Damage a seed in a few places, as files are damaged, and as a fuzzer would."""
    data = bytearray(seed)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(1, len(data) + 1)
        kind = draw.randrange(5)
        if kind == 0:
            data[at : at + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            del data[at : at + draw.choice((1, 2, 8, 64))]
        elif kind == 2:
            data[at:at] = data[at : at + draw.choice((1, 16, 256))]
        elif kind == 3:
            data[at:at] = draw.choice((b"[", b"{", b'"', b"1e9", b"\\u0000", b"\xff\xff\xff\xff", b"\0\0\0\0"))
        else:
            del data[at:]
    return bytes(data)


def test_nothing_that_is_read_crashes(driver, tmp_path):
    """A short pass, the same each time; tests/cpp/README.md says how to run the real one."""
    seeds = list(all_seeds([make_bundle(tmp_path / "bundle")]))
    draw = random.Random(0)
    frames = seeds + [mutated(draw.choice(seeds), draw) for _ in range(FUZZED)]
    assert driver("fuzz", frames) == ["ok "] * len(frames)


def test_weights_in_other_files_are_found_as_python_finds_them(driver):
    """In every place that ONNX has for a tensor, and in what is left of such files."""
    onnx_places = pytest.importorskip("onnx_places", reason="onnx writes the models")
    tensors = [onnx_places.tensor(elsewhere=elsewhere) for elsewhere in (True, False)]
    whole = [place(one).SerializeToString() for place in onnx_places.PLACES for one in tensors]
    cut = [whole[0][:length] for length in range(len(whole[0]))]
    draw = random.Random(0)
    damaged = [mutated(draw.choice(whole), draw) for _ in range(1000)]
    frames = whole + cut + damaged + [b"\x3blocation", b"\x02\x08location", b"\x0a" + b"\xff" * 10 + b"\x01location"]
    answers = driver("external", frames)
    assert answers[: len(whole)] == ["ok 1", "ok 0"] * (len(whole) // 2)
    assert answers == list(map(asked, frames))


def asked(frame):
    """What Python says of it, as the driver writes it."""
    try:
        return f"ok {int(has_external_tensors(frame))}"
    except ValueError as error:
        return f"3 {error}"


# A model with a graph with an initializer with an entry of external data, whose key is `location`.
ELSEWHERE = b"\x3a\x10\x2a\x0e\x6a\x0c\x0a\x08location\x12\x00"


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (ELSEWHERE, "keeps its weights in other files"),
        (ELSEWHERE.replace(b"\x10", b"\x7f"), "is a damaged ONNX file: it was cut short"),
    ],
)
def test_an_engine_with_weights_that_no_digest_covers_is_refused(driver, tmp_path, engine, words):
    def run_it(fields):
        fields["engine"] = "model.onnx"

    path = make_bundle(tmp_path / "bundle", change=run_it, files={"model.onnx": engine})
    assert driver("bundle", (), path) == [f"3 {path}: model.onnx {words}"]
    with pytest.raises(BundleError, match=words):
        python.open_bundle(path).verify_files()


def test_a_crash_would_be_seen(driver, tmp_path):
    """The twin of the above: a sanitizer ends the process, which is what the driver is asked for."""
    source = tmp_path / "crash.cpp"
    source.write_text("int main(int count, char**) { int some[2] = {}; return some[count + 1]; }")
    program = compile_cpp(tmp_path / "crash", source)
    assert subprocess.run([program], capture_output=True, check=False).returncode != 0


# --- the C interface


def test_the_c_interface(tmp_path):
    images = np.arange(2 * SIDE * SIDE * 3, dtype=np.uint8).reshape(2, SIDE, SIDE, 3)
    wrong = sums(images)
    wrong[1, 2] += 0.5
    paths = [
        make_bundle(tmp_path / "sound"),
        make_bundle(tmp_path / "wrong", golden={"images": images, "logits": wrong}),
        *(
            make_bundle(tmp_path / name, change=lambda fields, name=name: fields.update(name=name))
            for name in ("bad_alloc", "exception", "number")
        ),
        tmp_path / "missing",
    ]
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    test = tmp_path / "test.o"
    flags = (
        "-std=c11",
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Wconversion",
        "-Werror",
        "-g1",
        "-fsanitize=address,undefined",
    )
    subprocess.run(
        [compiler, *flags, f"-I{CPP / 'include'}", "-c", HERE / "c_interface_test.c", "-o", test], check=True
    )
    program = compile_cpp(
        tmp_path / "program", test, CPP / "src" / "resnet_deploy.cpp", includes=(HERE / "stub_engine",)
    )
    done = subprocess.run([program, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == __version__


def test_the_codes_of_c_are_those_of_cpp():
    header = (CPP / "include" / "resnet_deploy.h").read_text()
    errors = (CPP / "include" / "resnet_deploy" / "errors.hpp").read_text()
    c = {name.lower(): int(code) for name, code in re.findall(r"RESNET_DEPLOY_(\w+) = (\d+),? +/\*|$^", header) if name}
    cpp = {name: int(code) for name, code in re.findall(r"^  (\w+) = (\d+),", errors, re.MULTILINE)}
    cpp.pop("ok")
    codes = {name: code for name, code in c.items() if name not in ("uint8", "float32")}
    assert codes == cpp
    assert len(cpp) == 9
