"""locks.py: a folder is one process's at a time, and nobody's once that has ended."""

import fcntl
import signal
import subprocess
import sys

import pytest

from resnet_deploy.locks import locked_folder

HOLDS = """
import subprocess, sys, time
from pathlib import Path
from resnet_deploy.locks import locked_folder
with locked_folder(Path(sys.argv[1])) as is_ours:
    child = subprocess.Popen(["sleep", "60"])
    print(is_ours, child.pid, flush=True)
    time.sleep(60)
"""


def test_one_at_a_time(tmp_path):
    with locked_folder(tmp_path) as first, locked_folder(tmp_path, wait=False) as second:
        assert (first, second) == (True, False)
    with locked_folder(tmp_path, wait=False) as third:
        assert third


def test_it_ends_with_its_process_whatever_becomes_of_the_children(tmp_path):
    from os import kill

    with subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        is_ours, child = other.stdout.readline().split()
        assert is_ours == "True"
        with locked_folder(tmp_path, wait=False) as ours:
            assert not ours
        other.kill()
        other.wait()
        with locked_folder(tmp_path, wait=False) as ours:
            assert ours
        kill(int(child), 0)  # it lives, and holds nothing
        kill(int(child), signal.SIGKILL)


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked_folder(tmp_path, wait=False) as ours:
        assert ours


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError), locked_folder(tmp_path / "gone"):
        pass
