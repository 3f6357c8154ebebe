"""The README's commands and its Python are run, in order, in one empty folder.

What a reader has and this machine has not is stood in for: the published weights by an untrained network on a local
HTTP server, ImageNet by generated pictures in synset folders. What is called a ResNet has one block in each of its four
stages, for speed. The commands themselves are taken from the page as they are; only `bench` and `loadgen` are told to
measure for a shorter time.
"""

import hashlib
import http.server
import importlib
import re
import shlex
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

torch = pytest.importorskip("torch")

from resnet_deploy import checkpoints, models  # noqa: E402
from resnet_deploy.cli import COMMANDS, main  # noqa: E402
from resnet_deploy.imagenet import imagenet_classes  # noqa: E402

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHORTER = {"bench": ["--seconds", "0.05", "--rounds", "1", "--batches", "1"], "loadgen": ["--seconds", "0.3"]}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def shell_lines() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture
def served_weights(shallow: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An untrained ResNet-50 under a name that carries its hash, as published checkpoints have."""
    served = tmp_path / "served"
    served.mkdir()
    torch.save(models.create_model("resnet50").state_dict(), served / "weights")
    digest = hashlib.sha256((served / "weights").read_bytes()).hexdigest()
    file = f"resnet50-{digest[:8]}.pth"
    (served / "weights").rename(served / file)
    handler = partial(QuietHandler, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(checkpoints, "BASE_URL", f"http://127.0.0.1:{server.server_port}/")
    published = {("resnet50", "imagenet"): checkpoints.Published(file, resize=232)}
    monkeypatch.setattr(checkpoints, "PUBLISHED", published)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    yield
    server.shutdown()
    thread.join()
    server.server_close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the README takes for granted: ImageNet folders, two pictures, a checkpoint and its labels."""
    folder = tmp_path / "reader"
    generator = np.random.default_rng(0)

    def picture(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((300, 250), Image.Resampling.BICUBIC).save(path)

    synsets = [synset for synset, _ in imagenet_classes()[::250]]
    for synset in synsets:
        picture(folder / "imagenet/val" / synset / "ILSVRC2012_val_1.JPEG")
        picture(folder / "imagenet/train-subset" / synset / f"{synset}_1.JPEG")
    picture(folder / "cat.jpg")
    picture(folder / "dog.jpg")
    network = models.create_model("resnet18", 3)
    checkpoints.write_state_dict(folder / "mine.safetensors", network.state_dict(), {})
    (folder / "classes.txt").write_text("cat\ndog\nother\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.usefixtures("served_weights")
def test_every_command_and_the_python_run(
    readers_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnet_deploy.pipeline.loadgen_session._NULL_SECONDS", 0.02)
    ran = []
    for words in shell_lines():
        if words[0] != "resnet-deploy":
            continue
        arguments = [*words[1:], *SHORTER.get(words[1], [])]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, f"{' '.join(words)}\n{result.output}\n{result.exception!r}"
        ran.append(words[1])
    # `make demo` runs the first two; `compare` needs two runs of some length, and has its own tests.
    assert set(ran) == (set(COMMANDS) - {"run", "report", "compare"}) | {"--cmake-dir"}
    assert len(ran) == 25
    assert (readers_folder / "engines/resnet50-fp16-onnxruntime/manifest.json").is_file()
    assert len(list((readers_folder / "benchmarks/results").glob("*.html"))) >= 1

    (snippet,) = blocks("python")
    capsys.readouterr()
    exec(compile(snippet, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert re.fullmatch(r"\d+\.\d%  \S.*", printed[0])


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"`?make (\w+)", README)
    assert {"demo", "test", "setup"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_extras_exist() -> None:
    declared = re.search(
        r"\[project.optional-dependencies\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.DOTALL
    )
    assert declared is not None
    names = set(re.findall(r"^(\w+) = \[", declared[1], re.MULTILINE))
    mentioned = {name for group in re.findall(r"resnet-deploy\[([\w,]+)\]", README) for name in group.split(",")}
    assert mentioned
    assert mentioned <= names


def test_linked_files_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert len(links) >= 4
    for link in links:
        path = ROOT / link
        assert path.is_dir() or path.stat().st_size > 200, link


def test_demo_table_is_filled_in() -> None:
    (table,) = re.findall(r"<!-- demo -->\n```\n(.*?)```\n<!-- /demo -->", README, re.DOTALL)
    rows = [line.split()[:2] for line in table.splitlines() if re.match(r"(pytorch|resnet50-\w+-onnxruntime) ", line)]
    assert [row[1] for row in rows] == ["fp32", "fp32", "fp16", "int8"]


def test_benchmarks_page_is_what_its_records_give() -> None:
    pytest.importorskip("onnx_ir")
    readme = importlib.import_module("readme")
    page = (ROOT / "benchmarks/README.md").read_text()
    assert readme.render() == page
    for link in re.findall(r"\]\((results/[^)]+)\)", page):
        assert (ROOT / "benchmarks" / link).is_file(), link


def test_a_figure_that_was_changed_by_hand_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx_ir")
    readme = importlib.import_module("readme")
    page = (ROOT / "benchmarks/README.md").read_text()
    figure = re.search(r"\| (\d\.\d{3}) \|", page)
    assert figure is not None
    (tmp_path / "README.md").write_text(page[: figure.start(1)] + "0.001" + page[figure.end(1) :])
    monkeypatch.setattr(readme, "PAGE", tmp_path / "README.md")
    result = CliRunner().invoke(readme.main, ["--check"])
    assert result.exit_code == 1
    assert f"{figure[1]} |" in result.output
    assert "run benchmarks/readme.py" in result.output
