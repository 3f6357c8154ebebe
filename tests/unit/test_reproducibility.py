"""Files held against each other: that what differs is told, and where."""

import pytest
import reproducibility
from reproducibility import Difference, ReproducibilityRecord

from resnet_deploy import environment


@pytest.fixture
def pair(tmp_path):
    def write(first, other, name="model.onnx"):
        paths = [tmp_path / folder / name for folder in ("first", "other")]
        for path, data in zip(paths, (first, other), strict=True):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        return reproducibility.compare_files(*paths, "again")

    return write


def test_identical_files(pair):
    found = pair(b"12345", b"12345")
    assert (found.is_identical, found.size, found.differing, found.size_change) == (True, 5, 0, 0)


def test_one_bit(pair):
    data = bytearray(1000)
    data[700] ^= 4
    found = pair(bytes(1000), bytes(data))
    assert (found.is_identical, found.differing, found.size_change) == (False, 1, 0)


def test_another_length(pair):
    found = pair(b"12345", b"123")
    assert (found.is_identical, found.differing, found.size_change) == (False, 0, -2)


def test_fields_of_json(pair):
    found = pair(b'{"a": {"b": 1, "c": [1]}, "d": 2}', b'{"a": {"b": 3, "c": [1, 2]}, "e": 2}', "manifest.json")
    assert found.fields == ("a.b", "a.c", "d", "e")
    assert pair(b'{"a": 1}', b'{"a":1}', "manifest.json").fields == ()


def test_a_file_that_one_build_lacks(tmp_path):
    first, other = tmp_path / "first", tmp_path / "other"
    for path, data in ((first / "a" / "both", b"1"), (other / "a" / "both", b"1"), (first / "empty.json", b"")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (other / "more").write_bytes(b"123")
    found = {one.file: one for one in reproducibility.compare_folders(first, other, "again")}
    assert {name: (one.is_identical, one.only_in, one.size_change) for name, one in found.items()} == {
        "both": (True, "", 0),
        "empty.json": (False, "first", 0),
        "more": (False, "again", 3),
    }


def test_cases_hold_the_same_images_written_in_another_order(tmp_path):
    images = tmp_path / "train"
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(name.encode())
    copy = reproducibility.cases(images, tmp_path / "place")["files in another order"]["images"]
    assert copy.name == images.name
    assert {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*.png")} == {
        path.relative_to(images): path.read_bytes() for path in images.rglob("*.png")
    }


def test_the_table_tells_what_differs():
    def difference(file, case, **changes):
        return Difference(file=file, case=case, size=1000, **{"size_change": 0, "differing": 0} | changes)

    record = ReproducibilityRecord(
        created="2026-01-01T00:00:00Z",
        environment=environment.collect(),
        architecture="resnet18",
        images=20,
        differences=(
            difference("model.onnx", "again"),
            difference("model.onnx", "one core"),
            difference("manifest.json", "again", differing=7, fields=("measured.latency_s",)),
            difference("manifest.json", "one core"),
            difference("notes.txt", "one core", only_in="again"),
            difference("compiled", "onnxruntime", logit=0.0, classes=0),
            difference("compiled", "openvino", logit=0.0, classes=0),
            difference("compiled", "openvino", differing=12, size_change=4, logit=0.25, classes=1),
            difference("compiled", "tensorrt-rtx", differing=12),
        ),
    )
    lines = reproducibility.table(record)
    assert "| model.onnx | under all conditions | none |  |" in lines
    assert "| manifest.json | again | fields measured.latency_s |  |" in lines
    assert "| notes.txt | one core | only in the other build |  |" in lines
    assert "| what onnxruntime compiles | 1 times | none | at most 0; 0 of 64 classes |" in lines
    differing = "in 1 of 2: up to 12 of 1,000, +4 in length"
    assert f"| what openvino compiles | 2 times | {differing} | at most 0.25; 1 of 64 classes |" in lines
    assert "| what tensorrt-rtx compiles | 1 times | in 1 of 1: up to 12 of 1,000 |  |" in lines
