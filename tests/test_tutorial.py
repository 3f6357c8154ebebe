"""The tutorial's commands and its Python are run, in order, in one empty folder.

Its training is stood in for by an untrained network under the name, and with the recipe, that the training leaves: the
command finds it and returns. What is called a ResNet-50 has one block in each of its four stages, for speed. Everything
else runs as it is written; `bench` is told to measure for a shorter time.
"""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("sklearn", reason="the digits are in scikit-learn")

from resnet_deploy import models
from resnet_deploy.checkpoints import write_state_dict
from resnet_deploy.cli import main

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text()
SHORTER = {"bench": ["--seconds", "0.05", "--rounds", "1", "--batches", "1"], "verify": ["--images", "8"]}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def training(monkeypatch):
    """The example that trains, as a module."""
    spec = importlib.util.spec_from_file_location("digits_training", ROOT / "examples" / "digits" / "train.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_every_command_and_the_python_run(training, shallow, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    untrained = models.create_model("resnet50", 10).state_dict()
    write_state_dict(
        Path("digits", training.WEIGHTS_FILE), untrained, {"recipe": training.Recipe().digest, "top1": "-"}
    )
    ran = []
    for line in "".join(blocks("sh")).splitlines():
        command, *arguments = shlex.split(line)
        if command == "python":
            result = CliRunner().invoke(training.main, arguments[1:])
            assert "is there already" in result.output
        else:
            result = CliRunner().invoke(main, [*arguments, *SHORTER.get(arguments[0], [])])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
        ran.append(arguments[0])
    assert ran == ["examples/digits/train.py", "export", "build", "build", "bench", "verify"]
    assert len(list(Path("benchmarks/results").glob("*.html"))) == 1

    (snippet,) = blocks("python")
    capsys.readouterr()
    exec(compile(snippet, "tutorial.md", "exec"), {})
    assert re.fullmatch(r"class \d \d+\.\d%\n", capsys.readouterr().out)
