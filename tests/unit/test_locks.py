"""locks.py: a file is one process's at a time, and nobody's once that has ended."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_deploy.locks import locked_file

HOLDS = """
import subprocess, sys, time
from pathlib import Path
from resnet_deploy.locks import locked_file
with locked_file(Path(sys.argv[1])) as is_ours:
    child = subprocess.Popen(["sleep", "60"])
    print(is_ours, child.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


def test_one_at_a_time(path):
    with locked_file(path) as first, locked_file(path, wait=False) as second:
        assert (first, second) == (True, False)
    with locked_file(path, wait=False) as third:
        assert third
        assert path.exists()
    assert not path.exists()


def test_it_ends_with_its_process_whatever_becomes_of_the_children(path):
    with subprocess.Popen([sys.executable, "-c", HOLDS, path], stdout=subprocess.PIPE, text=True) as other:
        is_ours, child = other.stdout.readline().split()
        assert is_ours == "True"
        with locked_file(path, wait=False) as ours:
            assert not ours
        other.kill()
        other.wait()
        with locked_file(path, wait=False) as ours:
            assert ours
        os.kill(int(child), 0)  # it lives, and holds nothing
        os.kill(int(child), signal.SIGKILL)


def test_a_file_system_without_locks(path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked_file(path, wait=False) as ours:
        assert ours


def test_in_a_folder_that_is_not_there(path):
    with pytest.raises(FileNotFoundError), locked_file(path.parent / "gone" / "lock"):
        pass


def test_it_ends_with_its_block_whatever_becomes_of_a_forked_child(path):
    """A child that was forked has a copy of the handle, and the system holds the lock for as long as any is open."""
    with locked_file(path):
        child = subprocess.Popen(["sleep", "60"], pass_fds=held(path))
        handle = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(handle)
        child.kill()
        child.wait()


def held(path):
    """List this process's handles of a file."""
    handles = [int(link.name) for link in Path("/proc/self/fd").iterdir()]
    return [handle for handle in handles if os.path.realpath(f"/proc/self/fd/{handle}") == str(path)]


def test_one_that_was_removed_while_another_waited_is_made_anew(path, monkeypatch):
    """Else the one that waited and the next to come would both have it."""
    lock, waited = fcntl.flock, []

    def remove_first(handle, how):
        lock(handle, how)
        if how == fcntl.LOCK_EX and not waited:
            waited.append(handle)
            path.unlink()
            path.touch()

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with locked_file(path) as first, locked_file(path, wait=False) as second:
        assert (first, second) == (True, False)
    assert waited


def test_that_of_others_in_a_folder_that_was_made_anew_is_left(path):
    with locked_file(path):
        path.unlink()
        path.touch()
    assert path.exists()


def test_one_that_a_killed_process_left_is_taken_over(path):
    path.touch()
    with locked_file(path, wait=False) as ours:
        assert ours
    assert not path.exists()
