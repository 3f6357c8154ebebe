"""The C++ runtime, compiled once, and Python, asked the same."""

import struct
import subprocess
from pathlib import Path

import pytest
from core_factory import compile_cpp

from resnet_deploy import bundle as python
from resnet_deploy.errors import BundleError


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """Compile the program that answers questions: (command, frames or paths) to lines."""
    program = compile_cpp(tmp_path_factory.mktemp("driver") / "driver", Path(__file__).with_name("core_driver.cpp"))

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
