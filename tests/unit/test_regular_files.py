"""What is no regular file is refused at once, whoever reads it; a reader that waited for a pipe is interrupted."""

import faulthandler
import os
import socket
from functools import partial

import pytest

from resnet_deploy import artifact
from resnet_deploy.bundle import open_bundle
from resnet_deploy.errors import BundleError, FileError
from resnet_deploy.fleet import read_fleet
from resnet_deploy.regular_files import open_regular, read_regular
from resnet_deploy.specs import ModelCard, Preprocess

SPEC = Preprocess(image_size=8, resize=8)
LONGEST_S = 60  # after which the whole run ends: a read that waits for a pipe in C cannot be interrupted otherwise


@pytest.fixture(autouse=True)
def no_waiting():
    faulthandler.dump_traceback_later(LONGEST_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


KINDS = {"pipe": os.mkfifo, "device": partial(os.symlink, "/dev/zero"), "socket": make_socket, "folder": os.mkdir}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = artifact.Path("x")
    KINDS[kind](path)
    with pytest.raises(OSError, match=r"regular|directory|such device"):
        open_regular(path)
    for read in (artifact.read_bytes, artifact.sha256_file):
        with pytest.raises(FileError, match=r"^x: "):
            read(path)


def test_links_to_regular_files_are_followed(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    assert read_regular(tmp_path / "b") == b"abc"
    with open_regular(tmp_path / "b") as file:
        assert (file.read(1), file.seek(0), file.read()) == (b"a", 0, b"abc")


def read_labels(path):
    from resnet_deploy.labels import labels_from_file

    card = ModelCard(architecture="x", num_classes=1, weights="", weights_sha256="", labels=("a",), preprocess=SPEC)
    labels_from_file(path, ["a.png"], card)


def decode(path):
    from resnet_deploy.images import decode

    decode(path)


def read_weights(path):
    pytest.importorskip("torch")
    from resnet_deploy.checkpoints import read_state_dict

    read_state_dict(path)


def read_observations(path):
    from resnet_deploy.quantize.observations import read_observations

    read_observations(path)


def read_record(path):
    from resnet_deploy.bench.record_files import kind_of

    kind_of(path)


READERS = {
    "a.png": decode,
    "labels.csv": read_labels,
    "net.pth": read_weights,
    "net.safetensors": read_weights,
    "observations.safetensors": read_observations,
    "record.json": read_record,
    "index.json": lambda path: read_fleet(path.parent),
    "manifest.json": lambda path: open_bundle(path.parent),
}


@pytest.mark.parametrize(("name", "read"), READERS.items(), ids=READERS)
def test_readers_do_not_wait_for_pipes(tmp_path, name, read):
    os.mkfifo(tmp_path / name)
    with pytest.raises((FileError, BundleError)) as caught:
        read(tmp_path / name)
    assert name in caught.value.message
