"""journal.py: what is left of a file that was cut off anywhere, and who may write it."""

import fcntl
from pathlib import Path

import pytest

from resnet_deploy.bench.journal import Journal
from resnet_deploy.errors import FileError

LINES = [b"{}", b"", b"one two", "\N{MICRO SIGN}".encode(), b"x" * 300]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "work.journal"


def write(path, lines=LINES):
    with Journal(path) as journal:
        for line in lines:
            journal.append(line)
    return path.read_bytes()


def read(path):
    with Journal(path) as journal:
        return list(journal)


def test_lines_come_back_in_order(path):
    write(path)
    assert read(path) == LINES


def test_cut_off_anywhere_the_whole_lines_are_left_and_work_goes_on(path):
    data = write(path)
    ends = [number + 1 for number, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        with Journal(path) as journal:
            assert list(journal) == LINES[:whole]
            journal.append(b"new")
            assert list(journal) == [*LINES[:whole], b"new"]


def test_a_damaged_line_ends_it(path):
    data = bytearray(write(path))
    data[data.index(b"one")] ^= 1
    path.write_bytes(data)
    assert read(path) == LINES[:2]
    assert read(path) == LINES[:2]
    path.write_bytes(write(path) + bytes(100))  # what a file system may leave when the machine stops
    assert read(path)[:2] == LINES[:2]


def test_looking_at_the_first_line_keeps_the_others(path):
    write(path)
    with Journal(path) as journal:
        assert next(iter(journal)) == LINES[0]
    assert read(path) == LINES


def test_one_process_at_a_time(path):
    with Journal(path), pytest.raises(FileError, match="another process is writing it"):
        Journal(path)
    Journal(path).close()


def test_one_that_was_removed_before_it_could_be_locked_is_made_anew(path, monkeypatch):
    """Whoever had it open was done just then."""
    lock, calls = fcntl.flock, []

    def finish_first(file, how):
        if how != fcntl.LOCK_UN:
            calls.append(how)
        if len(calls) == 1:
            path.unlink(missing_ok=True)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", finish_first)
    write(path)
    assert len(calls) == 2
    assert read(path) == LINES


def test_a_file_system_without_locks(path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    write(path)
    assert read(path) == LINES


def test_an_empty_one_is_not_left_behind(path):
    Journal(path).close()
    assert not path.exists()
    write(path)
    with Journal(path) as journal:
        journal.clear()
    assert not path.exists()


def test_where_there_is_no_writing(tmp_path):
    with pytest.raises(FileError, match="no such file or folder"):
        Journal(tmp_path / "gone" / "a.journal")


def test_a_full_disk_is_said(path, monkeypatch):
    with Journal(path) as journal:
        journal.append(b"first")
        full = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115 - closed below
        real, journal._file = journal._file, full
        with pytest.raises(FileError, match="no space left on the device"):
            journal.append(b"second")
        full.close()
        journal._file = real
    assert read(path) == [b"first"]
