"""The examples in docstrings, and the page on the Python API, on a small engine."""

import doctest
import os
import re
from pathlib import Path

import pytest

from resnet_deploy import engine, microbatching
from resnet_deploy.driver import probe_gpu

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.fixture
def place(deployment, tmp_path, monkeypatch):
    """A folder with what the examples take for granted: an engine, two photographs."""
    engines = tmp_path / "engines"
    engines.mkdir()
    (engines / "resnet50-int8-onnxruntime").symlink_to(deployment.engines["int8"])
    pictures = sorted(deployment.data.rglob("*.png"))
    for name, picture in zip(("cat.jpg", "dog.jpg"), pictures, strict=False):
        os.link(picture, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("module", [engine, microbatching], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 3
    assert result.failed == 0


@pytest.mark.usefixtures("place")
def test_examples_on_the_page():
    """In order and in one namespace, as a reader goes through them; without a GPU, what needs one is left out."""
    pytest.importorskip("torch")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 8
    namespace, left_out = {}, 0
    for block in blocks:
        if "cuda" in block and not probe_gpu().gpus:
            left_out += 1
            compile(block, str(PAGE), "exec")
        else:
            exec(compile(block, str(PAGE), "exec"), namespace)
    assert left_out <= 1
    namespace["engine"].close()
