"""The C++ runtime, compiled once, and Python, asked the same."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from core_factory import compile_cpp

from resnet_deploy import bundle as python
from resnet_deploy.errors import BundleError


@pytest.fixture(scope="session")
def driver(once):
    """Compile the program that answers questions: (command, frames or paths) to lines."""
    source = Path(__file__).with_name("core_driver.cpp")
    program = once("core-driver", lambda folder: compile_cpp(folder / "driver", source))

    def ask(command, frames=(), *paths):
        data = b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)
        done = subprocess.run([program, command, *paths], input=data, capture_output=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        lines = done.stdout.decode(errors="replace").splitlines()
        assert len(lines) == len(frames or paths)
        return lines

    return ask


@pytest.fixture(scope="session")
def doctest_main(once):
    """Compile doctest's own part, which takes as long as a program's checks, once and without sanitizers."""
    if not Path("/usr/include/doctest/doctest.h").is_file():
        pytest.skip("doctest is not installed (Debian's doctest-dev)")
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")

    def make(folder):
        source = b"#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN\n#include <doctest/doctest.h>\n"
        command = [compiler, "-std=c++17", "-O0", "-x", "c++", "-c", "-", "-o", folder / "main.o"]
        subprocess.run(command, input=source, check=True)
        return folder / "main.o"

    return once("doctest", make)


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
