"""What export makes of a labels file, before it touches PyTorch."""

import codecs

import pytest

from resnet_deploy.errors import DataError, FileError
from resnet_deploy.pipeline.exporting import read_labels


@pytest.fixture
def read(tmp_path):
    def run(data: bytes):
        (tmp_path / "labels.txt").write_bytes(data)
        return read_labels(tmp_path / "labels.txt")

    return run


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"cat\ndog", id="no newline at the end"),
        pytest.param(b"cat\ndog\n\n  \n", id="blank lines at the end"),
        pytest.param(b"cat\r\ndog\r\n", id="lines as Windows ends them"),
        pytest.param(codecs.BOM_UTF8 + b"cat\r\ndog\r\n", id="byte-order mark"),
        pytest.param(b"  cat\t\n dog \n", id="space around"),
    ],
)
def test_one_label_per_line(read, data):
    assert read(data) == ("cat", "dog")


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_a_label_ends_at_the_end_of_its_line_and_nowhere_else(read, inside):
    assert read(f"grey{inside}seal\ndog\n".encode()) == (f"grey{inside}seal", "dog")


def test_what_no_list_of_labels_has_is_refused_unread(tmp_path):
    with (tmp_path / "labels.txt").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte that takes no room
    with pytest.raises(FileError, match=r"labels\.txt is larger than 16 MiB"):
        read_labels(tmp_path / "labels.txt")


def test_a_byte_order_mark_alone_is_an_empty_file(read):
    with pytest.raises(DataError, match="is empty"):
        read(codecs.BOM_UTF8)


def test_a_blank_line_is_named_by_its_number(read):
    with pytest.raises(DataError, match="line 2 is blank"):
        read(b"grey\xe2\x80\xa8seal\r\n\r\ndog\r\n")
