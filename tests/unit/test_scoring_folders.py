"""Folders of images and scores: of this machine, and behind file systems of pyarrow's and fsspec's."""

import io
import sys
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="it is what reads and writes by URI")

from PIL import Image

from resnet_deploy.contract import Preprocess
from resnet_deploy.errors import BackendError, DataError, FileError, SpecError
from resnet_deploy.integrations import pyarrow as adapter
from resnet_deploy.pipeline.scoring_folders import LocalFolder, absolute, is_uri, open_folder
from resnet_deploy.pipeline.scoring_shard import _sound_images

SPEC = Preprocess(image_size=8, resize=8)


def files(folder):
    return sorted(folder.rglob("*"))


def picture():
    file = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(params=["path", "file", "memory"])
def place(request, tmp_path):
    """An empty folder, by path or URI."""
    if request.param == "memory":
        fsspec = pytest.importorskip("fsspec", reason="memory:// is its")
        yield f"memory://{tmp_path.name}"
        fsspec.filesystem("memory").store.clear()
    else:
        yield str(tmp_path / "x") if request.param == "path" else f"file://{tmp_path}/x"


def test_what_is_written_is_there(place):
    folder = open_folder(place)
    assert folder.names("") == []
    for name in ("one.png", "b/two.PNG", "b/c/three.png", "b/.four.png", ".hidden/five.png", "six.txt"):
        folder.write(name, picture())
    folder.require()
    assert folder.image_names() == ["b/c/three.png", "b/two.PNG", "one.png"]
    assert sorted(folder.names("")) == ["one.png", "six.txt"]
    assert sorted(folder.names("b")) == [".four.png", "two.PNG"]
    assert folder.names("nowhere") == []
    assert folder.tensor("b/two.PNG", SPEC).shape == SPEC.shape
    folder.write("six.txt", b"again")
    with folder.open_file("six.txt") as file:
        file.seek(1)
        assert bytes(file.read()) == b"gain"
    folder.remove("six.txt")
    folder.remove("six.txt")
    assert folder.names("") == ["one.png"]


def test_what_is_missing_or_damaged(place):
    folder = open_folder(place)
    with pytest.raises(FileError):
        folder.require()
    with pytest.raises(FileError):
        folder.image_names()
    folder.write("bad.png", b"no image")
    with pytest.raises(DataError, match="not an image"):
        folder.tensor("bad.png", SPEC)
    with pytest.raises(FileError) as raised:
        folder.tensor("gone.png", SPEC)
    assert isinstance(raised.value.__cause__, FileNotFoundError)
    folder.remove("bad.png")
    folder.write("notes.txt", b"")
    with pytest.raises(DataError, match="no images"):
        folder.image_names()


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path):
    folder = adapter.RemoteFolder.open(f"file://{tmp_path}/x")
    folder.write("name", b"old")
    before = files(tmp_path)
    with pytest.raises(TypeError):
        folder.write("name", None)
    assert (tmp_path / "x" / "name").read_bytes() == b"old"
    assert files(tmp_path) == before


def test_a_footer_with_any_bit_flipped_is_damaged_or_read():
    metadata = {"bad": "1", "scoring_sha256": "0" * 64}
    sound = adapter.errors_to_parquet({"a.jpg": "not an image"}, metadata)
    assert adapter.read_footer(io.BytesIO(sound)) == (1, metadata)
    damaged = 0
    start = len(sound) - 8 - int.from_bytes(sound[-8:-4], "little")
    for bit in range(8 * start, 8 * len(sound), 7):  # every byte, in one bit or two
        flipped = bytearray(sound)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged += adapter.read_footer(io.BytesIO(flipped)) is None
    assert damaged > 20
    for length in range(0, len(sound), 11):
        assert adapter.read_footer(io.BytesIO(sound[:length])) is None


def test_a_footer_that_cannot_be_read_is_no_damage():
    class Broken(io.BytesIO):
        def read(self, size=-1):
            raise OSError("the line is cut")  # as an object store says it, without a number

    with pytest.raises(OSError, match="the line is cut"):
        adapter.read_footer(Broken(bytes(100)))


def test_places():
    assert is_uri("s3://bucket/x")
    assert not is_uri("photos/s3:/x")
    assert absolute("s3://bucket/x") == "s3://bucket/x"
    assert absolute("x") == str(Path.cwd() / "x")
    assert isinstance(open_folder("x"), LocalFolder)
    with pytest.raises(SpecError, match="nonsense://x"):
        open_folder("nonsense://x")


def test_without_pyarrow_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.fs", None)
    with pytest.raises(BackendError, match="pyarrow cannot be imported") as raised:
        open_folder("file:///tmp")
    assert raised.value.hint == 'install it with `pip install "resnet-deploy[parquet]"`'


def test_an_image_is_filed_as_bad_but_not_where_memory_is_short(tmp_path):
    def failing(error):
        future = Future()
        future.set_exception(error)
        return [("a.png", future)]

    bad = {}
    assert list(_sound_images(failing(DataError("damaged")), bad, LocalFolder(tmp_path))) == []
    assert bad == {"a.png": "damaged"}
    bad = {}
    with pytest.raises(MemoryError):
        list(_sound_images(failing(MemoryError()), bad, LocalFolder(tmp_path)))
    assert bad == {}
