"""Commands that are told to end while they work, as processes of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import files

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")

from resnet_deploy.bundle import open_bundle

ROOT = Path(__file__).parents[2]
# The command line, with a build that comes to a halt when its folder has been begun.
STALLED = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells take from what they start in the background
from resnet_deploy.pipeline import lowering
def stall(*arguments):
    Path("stalled").touch()
    time.sleep(60)
lowering.lower = stall
from resnet_deploy.cli import main
main(prog_name="resnet-deploy")
"""
LINE = ("build", "engines/resnet18.onnx", "--fp16", "--backend", "onnxruntime", "-o", "new/net")


@pytest.fixture
def stalled(workplace):
    """Start a build and wait until it has begun its folder: (command to start it by) -> process."""
    started = []
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which is ignored where `nohup` runs the tests

    def start(*by):
        process = subprocess.Popen(
            [*by, sys.executable, "-c", STALLED, *LINE],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        deadline = time.monotonic() + 120
        while not Path("stalled").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        Path("stalled").unlink()
        assert len(list(Path("new").glob(".net.*.tmp"))) == 1
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    signal.signal(signal.SIGHUP, hang_up)


ENDS = [(signal.SIGTERM, 143, b""), (signal.SIGHUP, 129, b""), (signal.SIGINT, 130, b"interrupted\n")]


@pytest.mark.parametrize(("number", "status", "last_word"), ENDS)
def test_told_to_end_leaves_nothing_behind(stalled, workplace, number, status, last_word):
    before = files(workplace)
    process = stalled()
    process.send_signal(number)
    assert process.communicate(timeout=30) == (b"", last_word)
    assert process.returncode == status
    assert files(workplace) == before


def test_hang_up_that_is_ignored_stays_ignored(stalled):
    """As `nohup` has it."""
    process = stalled("sh", "-c", """trap "" HUP; exec "$@" """, "sh")
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)


def test_what_a_killed_build_leaves_the_next_removes(stalled, invoke):
    process = stalled()
    process.kill()
    process.wait()
    assert [path.name.split(".")[1] for path in Path("new").iterdir()] == ["net"]
    assert invoke(*LINE).exit_code == 0
    assert list(Path("new").iterdir()) == [Path("new/net")]
    open_bundle(Path("new/net")).verify_files()


def test_what_a_living_build_has_begun_the_next_leaves(stalled, invoke):
    stalled()
    (begun,) = Path("new").iterdir()
    assert invoke(*LINE).exit_code == 0
    assert sorted(Path("new").iterdir()) == [begun, Path("new/net")]
