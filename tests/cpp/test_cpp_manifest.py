"""Manifests that were altered: what Python refuses is refused by the C++ runtime, which names the same field."""

import copy
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from core_factory import manifest_fields

from resnet_deploy import bundle as python


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


def test_manifests_of_earlier_versions_are_read_and_those_of_later_ones_told_by_their_number(driver, ask_python):
    """The first is real (see tests/unit/test_schemas.py); the second has nothing but a later number in common."""
    first = (Path(__file__).parents[1] / "unit" / "schemas" / "manifest-1.json").read_bytes()
    later = python.seal({"schema_version": 2, "all": "new"})
    assert (ask_python(first), driver("manifest", [first])) == (None, ["ok r-int8-onnxruntime"])
    (line,) = driver("manifest", [later])
    assert "schema_version is 2, this version reads up to 1" in ask_python(later)
    assert line.startswith("3 ")
    assert "schema_version is 2, this version reads up to 1" in line


VERSIONS = (
    "", "abc", "def", ".", "10", "10.", "010", "10.9.1", "10.16.1", "10.8.9", "11.0.0", "10.9.1.post1", "8.9", "8.10",
    "12.0", "²", "10.²", "\uff11\uff10.9.1", "-10", "+10", " 10", "1_0", "9" * 18, "9" * 19, "9" * 5000, "10\0",
)  # fmt: skip


def test_versions_are_compared_as_in_python(driver):
    pairs = [(required, here) for required in VERSIONS for here in VERSIONS]
    lines = driver("versions", ["\n".join(pair).encode() for pair in pairs])
    takes = 0
    for (required, here), line in zip(pairs, lines, strict=True):
        exact, later, least = (
            python.Requirements(library="x", **fields)
            for fields in (
                {"version": required},
                {"version": required, "later_versions": True},
                {"least_compute_capability": required},
            )
        )
        verdicts = (exact.takes_version(here), later.takes_version(here), not least.takes_gpu(here))
        assert line == "ok " + "".join(str(int(verdict)) for verdict in verdicts), (required, here)
        takes += later.takes_version(here) and not exact.takes_version(here)
    assert takes > 5
    assert not python.Requirements(library="x", version="abc", later_versions=True).takes_version("def")


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
