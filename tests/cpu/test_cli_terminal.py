"""What a person at a terminal sees: colours they may refuse, and that something is under way."""

import os
import pty
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")

from resnet_deploy.pipeline import backends, building
from resnet_deploy.protocols import Silent

ROOT = Path(__file__).parents[2]


@pytest.fixture
def on_a_terminal(tmp_path):
    """Run the command line with standard error on a terminal, and return what appears there."""

    def run(*arguments, **environment):
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "resnet_deploy", *arguments]
        env = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"} | environment
        subprocess.run(
            command, cwd=tmp_path, env=env, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs, check=False
        )
        os.close(theirs)
        shown = os.read(ours, 1 << 16).decode()
        os.close(ours)
        return shown

    return run


def test_errors_are_red_unless_colours_are_refused(on_a_terminal):
    line = ("report", "gone.json")
    assert on_a_terminal(*line, NO_COLOR="").startswith("\x1b[31merror: gone.json")  # empty is as good as unset
    shown = on_a_terminal(*line, NO_COLOR="1")
    assert shown.startswith("error: gone.json")
    assert "\x1b" not in shown


class Watched(Silent):
    """A progress that knows which tasks are under way."""

    under_way = ()

    @contextmanager
    def task(self, description):
        type(self).under_way += (description,)
        yield
        type(self).under_way = self.under_way[:-1]


def test_build_is_never_silent_for_long(invoke, workplace, monkeypatch):
    """From the look for backends to the look into the cache, something is shown."""
    monkeypatch.setattr("resnet_deploy.cli.terminal.TerminalProgress", Watched)
    shown = {}

    def watch(module, name):
        function = getattr(module, name)

        def watched(*arguments, **options):
            shown[name] = Watched.under_way
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, watched)

    watch(backends, "choose_backend")
    for name in ("read_source", "find_material", "_cache_key", "_cached"):
        watch(building, name)
    result = invoke("build", "engines/resnet18.onnx", "--int8", "--calib", "calibration", "--backend", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert shown.pop("choose_backend") == ("looking for backends",)
    assert len(shown) == 4
    assert set(shown.values()) == {("reading the model and the images",)}
    assert Watched.under_way == ()
