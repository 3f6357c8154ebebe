"""The C++ runtime's bundles: the decisions of Python, on the same files; and the C interface."""

import copy
import io
import json
import os
import random
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from core_factory import CLASSES, CPP, SIDE, compile_cpp, make_bundle, manifest_fields, sums
from hypothesis import given, settings
from hypothesis import strategies as st
from make_seeds import all_seeds

from resnet_deploy import bundle as python
from resnet_deploy.errors import BundleError, FileError
from resnet_deploy.version import __version__

HERE = Path(__file__).parent
FUZZED = 3000


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """Compile the program that answers questions: (command, frames or paths) to lines."""
    program = compile_cpp(tmp_path_factory.mktemp("driver") / "driver", HERE / "core_driver.cpp")

    def ask(command, frames=(), *paths):
        data = b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)
        done = subprocess.run([program, command, *paths], input=data, capture_output=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        lines = done.stdout.decode(errors="replace").splitlines()
        assert len(lines) == len(frames or paths)
        return lines

    return ask


@pytest.fixture
def ask_python(tmp_path):
    """Ask Python what it makes of a manifest's text: None where it takes it, its words where it does not."""

    def ask(text):
        (tmp_path / python.MANIFEST).write_bytes(text)
        try:
            python.open_bundle(tmp_path)
        except BundleError as error:
            return error.message
        return None

    return ask


def test_by_hand_worked_examples(tmp_path):
    if not Path("/usr/include/doctest/doctest.h").exists():
        pytest.skip("doctest is not installed (Debian: doctest-dev)")
    program = compile_cpp(tmp_path / "tests", HERE / "core_tests.cpp")
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"test cases: +(\d+)", done.stdout)[1]) >= 10


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
@given(values=st.lists(VALUES, min_size=20, max_size=60))
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


# --- manifests that were altered


@dataclass(frozen=True)
class Alteration:
    """A sound manifest with one change."""

    name: str
    fields: dict


REPLACEMENTS = (None, True, "", "x", -1, 0, 1, 3, 10**6, 0.5, -1.5, 1e300, [], ["x"], [1], {})


def places(value, path=()):
    """Yield the path of every value in a tree."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def altered(path, change):
    """Change the container of what is at ``path``, in a copy of a sound manifest."""
    fields = manifest_fields()
    container = fields
    for key in path[:-1]:
        container = container[key]
    change(container, path[-1])
    return fields


def every_alteration():
    """Yield every field missing, of another value or type, and beside one that is not known."""
    for path in places(manifest_fields()):
        name = ".".join(map(str, path))
        if isinstance(path[-1], str):
            yield Alteration(f"{name} missing", altered(path, lambda container, key: container.pop(key)))
        for value in REPLACEMENTS:
            change = lambda container, key, value=value: container.__setitem__(key, copy.copy(value))  # noqa: E731
            yield Alteration(f"{name}={value!r}", altered(path, change))
        add = lambda container, key: isinstance(container[key], dict) and container[key].update(unknown="1")  # noqa: E731
        yield Alteration(f"{name} with an unknown field", altered(path, add))


def field_named_by(words):
    """Find the field that Python's words are about, as the other side spells it."""
    spec_errors = {
        "image size": "image_size", "resize": "resize", "batch range": "batch range", "batch size": "batch size",
        "profile": "profiles", "calibration images": "max_images", "percentile": "percentile", "dtype": "dtype",
        "labels for a model": "labels", "folders for a model": "folders", "classes": "num_classes", "std (": "std",
        "mean (": "mean", "area goes": "interpolation", "compute capability": "targets", "targets": "targets",
        "a workspace": "workspace_bytes", "optimization level": "optimization_level", "calibration data": "precision",
        "a drop of": "max_drop", "no limit": "max_drop", "stripped": "strip_weights", "even steps": "method",
        "--workspace": "workspace_bytes", "--opt-level": "optimization_level", "--timing-cache": "timing_cache",
        "--hardware-compat": "hardware_compatibility", "--version-compatible": "version_compatible",
        "--strip-weights": "strip_weights", "--refittable": "refittable", "--target": "targets",
        "schema_version is": "schema_version", "no digest for": "no digest for", "which is not a file": "names",
    }  # fmt: skip
    if found := re.search(r"field `(\w+)`", words):
        return found[1]
    if found := re.search(r"at `\$\.([\w.\[\]]+)`", words):
        return re.sub(r"\[.*?\]", "", found[1]).split(".")[-1]
    return next(field for phrase, field in spec_errors.items() if phrase in words)


def test_what_python_refuses_is_refused_with_the_same_field(driver, ask_python):
    alterations = list(every_alteration())
    texts = [python.seal(alteration.fields) for alteration in alterations]
    refused = 0
    for alteration, text, line in zip(alterations, texts, driver("manifest", texts), strict=True):
        words = ask_python(text)
        if words is None:
            assert line.startswith("ok "), (alteration.name, line)
            continue
        refused += 1
        assert line.startswith("3 "), (alteration.name, words, line)
        assert field_named_by(words) in line, (alteration.name, words, line)
    assert len(alterations) > 1500
    assert refused > 1000


SPECIAL = {
    "sound": lambda fields: None,
    "later schema": lambda fields: fields.update(schema_version=2),
    "engine elsewhere": lambda fields: fields.update(engine="../model.plan"),
    "file elsewhere": lambda fields: fields["files"].update({"a/b": "0"}),
    "folder": lambda fields: fields["files"].update({"..": "0"}),
    "zero byte": lambda fields: fields["files"].update({"a\0b": "0"}),
    "no digest of the engine": lambda fields: fields["files"].pop("model.plan"),
    "large image": lambda fields: fields["card"]["preprocess"].update(image_size=2049, resize=3000),
    "large resize": lambda fields: fields["card"]["preprocess"].update(resize=8193),
    "other layout": lambda fields: fields["card"]["preprocess"].update(layout="NCHW"),
    "area": lambda fields: fields["card"]["preprocess"].update(interpolation="area"),
    "MLPerf's area": lambda fields: fields["card"]["preprocess"].update(
        interpolation="area", mean=[123.68 / 255, 116.78 / 255, 103.94 / 255], std=[1 / 255] * 3
    ),
    "too many classes": lambda fields: fields["card"].update(num_classes=100_001, labels=[], folders=[]),
    "no classes": lambda fields: fields["card"].update(num_classes=0, labels=[], folders=[]),
    "gap of profiles": lambda fields: fields["spec"].update(
        profiles=[{"min": 1, "opt": 4, "max": 4}, {"min": 6, "max": 16}]
    ),
    "repeated profile": lambda fields: fields["spec"].update(profiles=[{"min": 1, "opt": 4, "max": 16}] * 2),
    "profiles of a CPU": lambda fields: fields["spec"].update(backend="openvino", trt={}),
    "options of a CPU": lambda fields: fields["spec"].update(backend="openvino", profiles=[]),
    "options of another flavour": lambda fields: fields["spec"].update(backend="tensorrt-rtx"),
    "targets": lambda fields: fields["spec"].update(backend="tensorrt-rtx", trt={"targets": ["8.9", "12.0"]}),
    "unknown target": lambda fields: fields["spec"].update(backend="tensorrt-rtx", trt={"targets": ["9.0"]}),
    "repeated target": lambda fields: fields["spec"].update(backend="tensorrt-rtx", trt={"targets": ["8.9", "8.9"]}),
    "FP8 by entropy": lambda fields: fields["spec"].update(precision="fp8", max_drop=None),
    "FP16 with calibration": lambda fields: fields["spec"].update(precision="fp16", max_drop=None),
    "FP16 with a limit": lambda fields: fields["spec"].update(precision="fp16", calibration=None),
    "INT8 without calibration": lambda fields: fields["spec"].update(calibration=None),
    "unknown backend": lambda fields: fields["spec"].update(backend="abacus", trt={}, profiles=[]),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_rules_that_join_fields(driver, ask_python, name):
    fields = manifest_fields()
    SPECIAL[name](fields)
    text = python.seal(fields)
    words, (line,) = ask_python(text), driver("manifest", [text])
    assert line.startswith("ok " if words is None else "3 "), (words, line)
    assert words is None or field_named_by(words) in line, (words, line)
    assert (words is None) == (name in ("sound", "MLPerf's area", "targets", "unknown backend"))


def digested(text):
    """Put a manifest's digest, as Python has it, into a text that lacks one."""
    sealed = python.seal(msgspec.json.decode(text))
    return text[:-1] + b',"sha256":"' + msgspec.json.decode(sealed)["sha256"].encode() + b'"}'


def test_the_digest_is_over_values_and_not_over_their_spelling(driver, ask_python):
    plain = msgspec.json.encode(manifest_fields())
    texts = {
        "as it is": digested(plain),
        "escaped": digested(plain.replace("🐕".encode(), b"\\ud83d\\udc15")),
        "another number": digested(plain.replace(b"0.875", b"8.75e-1")),
        "one label": digested(plain).replace(b"cat", b"dog"),
        "one digit": digested(plain).replace(b"0.875", b"0.876"),
        "no digest": plain,
        "number as a digest": plain[:-1] + b',"sha256":1}',
    }
    verdicts = {
        name: (ask_python(text), line)
        for (name, text), line in zip(texts.items(), driver("manifest", list(texts.values())), strict=True)
    }
    accepted = {name for name, (words, line) in verdicts.items() if words is None and line.startswith("ok ")}
    refused = {
        name for name, (words, line) in verdicts.items() if words and "was altered" in words and "was altered" in line
    }
    assert accepted == {"as it is", "escaped", "another number"}
    assert refused == set(texts) - accepted


def test_json_that_is_none(driver, ask_python):
    sound = digested(msgspec.json.encode(manifest_fields()))
    texts = [sound[:size] for size in range(0, len(sound), 37)]
    texts += [b"[" * depth + b"]" * depth for depth in (65, 2000, 200_000)]
    texts += [sound[:-1] + b',"x":' + b"[" * 2000 + b"]" * 2000 + b"}"]
    texts += [sound.replace(b"cat", junk) for junk in (b"\xff", b"\xed\xa0\x80", b"\\ud800", b"a\x00b", b"\t")]
    texts += [sound.replace(b"0.875", number) for number in (b"1e999", b"0x1", b"NaN", b"-", b"1" * 400)]
    texts += [b"\xef\xbb\xbf" + sound, sound + b"\x00", sound + b"{}", b"\x00", b"null", b"[]", b'"x"', b"1"]
    for text, line in zip(texts, driver("manifest", texts), strict=True):
        assert ask_python(text) is not None
        assert line.startswith("3 "), (text[:60], line)


def test_what_only_this_side_refuses(driver, ask_python):
    """Readers of JSON differ in these, so that one that is strict is the safer; no manifest that is built has them."""
    plain = msgspec.json.encode(manifest_fields())
    texts = {
        "is given twice": digested(plain.replace(b'"name":"net-int8"', b'"name":"x","name":"net-int8"')),
        "out of range": digested(plain.replace(b'"workspace_bytes":1073741824', b'"workspace_bytes":' + b"9" * 20)),
        "nested too deeply": digested(plain[:-1] + b',"x":' + b"[" * 64 + b"]" * 64 + b"}"),
    }
    for (words, text), line in zip(texts.items(), driver("manifest", list(texts.values())), strict=True):
        assert ask_python(text) is None
        assert line.startswith("3 ")
        assert words in line


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
    "a huge manifest": (lambda path: os.truncate(path / "manifest.json", 1 << 40), 3, "larger than 32 MiB", None),
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
