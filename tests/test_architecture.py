"""Rules that the whole package keeps: layers, sizes, what is imported when, and what happens without a library."""

import ast
import importlib
import inspect
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

import resnet_deploy
from resnet_deploy import artifact
from resnet_deploy.backends import BACKENDS
from resnet_deploy.bundle import HashChain, Manifest, Measured, Requirements, write_manifest
from resnet_deploy.cli import COMMANDS, main
from resnet_deploy.driver import GpuProbe
from resnet_deploy.environment import Cpu, Environment
from resnet_deploy.specs import BuildSpec, ModelCard, Preprocess

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "resnet_deploy").rglob("*.py"))

OPTIONAL = (
    *("torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino", "nncf", "tensorrt"),
    *("tensorrt_rtx", "cuda", "pycuda", "plotly", "jinja2", "markupsafe", "safetensors", "google", "mlperf_loadgen"),
    *("pyarrow", "ray"),
)
# Installed with the package, and still too slow to be imported before they are needed.
SLOW = ("numpy", "PIL", "rich")


# --- layers


def lint_imports(root):
    """Run import-linter over the package at ``root``."""
    command = Path(sys.executable).with_name("lint-imports")
    if not command.exists():
        pytest.skip("import-linter is not installed")
    return subprocess.run(
        [command, "--no-cache"], cwd=root, env=alone(root), capture_output=True, text=True, check=False
    )


def alone(root):
    """The environment of a process that finds the package at ``root`` and nowhere else."""
    return os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}


def test_imports_go_one_way():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("specs.py", "from resnet_deploy import bundle"),  # upwards
        ("bench/measure.py", "from resnet_deploy.runners import ort"),  # between siblings
        ("precision.py", "import torch"),
        ("helpers.py", ""),  # a module without a place
    ],
)
def test_imports_that_go_another_way_are_found(tmp_path, module, line):
    shutil.copytree(ROOT / "resnet_deploy", tmp_path / "resnet_deploy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "resnet_deploy" / module).open("a") as file:
        file.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout


# --- sizes


def test_files_are_short_enough_to_read():
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in SOURCES}
    assert len(lengths) > 30
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_functions_are_short_enough_to_read():
    lengths = {
        f"{path.relative_to(ROOT).as_posix()}:{node.name}": node.end_lineno - node.lineno + 1
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(lengths) > 300
    assert {name: length for name, length in lengths.items() if length > 60} == {}


# --- what is imported when

WATCH = """
import sys
from pathlib import Path
try:
    exec(sys.argv[2])
finally:
    Path(sys.argv[1]).write_text("\\n".join({name.partition(".")[0] for name in sys.modules}))
"""


def imported_by(code, tmp_path):
    """Names of the top-level modules that are loaded after ``code`` has run in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", WATCH, tmp_path / "modules", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return set((tmp_path / "modules").read_text().split())


@pytest.mark.parametrize(
    "code",
    [
        "import resnet_deploy",
        "import resnet_deploy; resnet_deploy.__version__",
        *(
            f"from resnet_deploy.cli import main; main({arguments!r})"
            for arguments in (["--help"], ["--version"], *([command, "--help"] for command in COMMANDS))
        ),
    ],
)
def test_nothing_slow_is_imported(tmp_path, code):
    modules = imported_by(code, tmp_path)
    assert "resnet_deploy" in modules
    assert modules & {*OPTIONAL, *SLOW} == set()


def test_what_is_imported_is_seen(tmp_path):
    assert {"numpy", "resnet_deploy"} <= imported_by("import resnet_deploy; resnet_deploy.load", tmp_path)


# --- without the libraries that are extras

WITHOUT = """
import sys
missing = set(sys.argv.pop(1).split(","))
class Without:
    '''A finder that does not find some modules, as if they were not installed.'''
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in missing else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from resnet_deploy.cli import main
main(prog_name="resnet-deploy")
"""


@pytest.fixture
def without(tmp_path):
    """Run the command line in an empty folder with some modules missing."""

    def run(missing, *arguments):
        command = [sys.executable, "-c", WITHOUT, ",".join(missing), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=alone(ROOT), capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_needs_no_library_at_all(without, command):
    done = without([*OPTIONAL, *SLOW], *command.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: resnet-deploy {command}")


def test_doctor_works_without_any_extra(without):
    done = without(OPTIONAL, "doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert 'pip install "resnet-deploy[export,cpu]"' in done.stdout
    assert "can build: yes" not in done.stdout


@dataclass(frozen=True)
class Need:
    """What a command says when some libraries are missing."""

    missing: tuple[str, ...]
    line: str
    message: str
    hint: str

    @property
    def id(self):
        return f"{self.line} without {len(self.missing)}: {self.missing[0]}"


NEEDS = (
    Need(OPTIONAL, "export --weights none", "cannot export: torch, onnx, ", "[export,cpu]"),
    *(
        Need((module,), "export --weights none", f"cannot export: {name} is not installed", "[export]")
        for module, name in (("torch", "torch"), ("onnx_ir", "onnx-ir"), ("onnxscript", "onnxscript"))
    ),
    Need(("safetensors",), "export --weights none", "cannot export: safetensors is not installed", "[export]"),
    Need(("onnxruntime",), "export --weights none", "cannot export: onnxruntime is not installed", "[cpu]"),
    # Found, and it cannot be imported: protobuf is onnx's own dependency.
    Need(("google",), "export --weights none", "cannot export: No module named 'google'", "--force-reinstall"),
    Need(OPTIONAL, "run --calib . --data .", "the HTML report needs ", "[bench]"),
    Need(OPTIONAL, "build a.onnx --fp16", "no backend can build and run here", "resnet-deploy[export,cpu]"),
    Need(OPTIONAL, "build a.onnx --fp16 --backend onnxruntime", "cannot build for onnxruntime", "[export,cpu]"),
    Need(OPTIONAL, "build a.onnx --fp16 --backend tensorrt-rtx", "cannot build for tensorrt-rtx", "rtx"),
    Need(("onnxruntime",), "build a.onnx --fp16 --backend onnxruntime", "onnxruntime is not installed", "[cpu]"),
    Need(OPTIONAL, "bench net", "the HTML report needs ", "[bench]"),
    Need(("plotly",), "bench net", "the HTML report needs plotly", "[bench]"),
    Need(("jinja2",), "report record.json --html a.html", "the HTML report needs jinja2", "[bench]"),
    Need(OPTIONAL, "bench net --no-html", "the PyTorch reference needs ", "[export]"),
    Need(OPTIONAL, "bench net --no-html --no-pytorch", "ONNX Runtime cannot be imported", "resnet-deploy doctor"),
    Need(("mlperf_loadgen",), "loadgen net", "LoadGen needs mlperf_loadgen, which is not installed", "[bench]"),
    Need(OPTIONAL, "verify net", "cannot run graphs: onnx, onnx-ir and onnxruntime are", "[export,cpu]"),
    Need(("onnxruntime",), "verify net", "cannot run graphs: onnxruntime is not installed", "[cpu]"),
    Need(OPTIONAL, "inspect net --layers", "cannot read graphs: onnx and onnx-ir are not installed", "[export]"),
    Need(OPTIONAL, "calibrate a.onnx --calib .", "cannot calibrate: onnx, onnx-ir, safetensors and ", "[export,cpu]"),
    Need(OPTIONAL, "merge a.safetensors -o b.safetensors", "cannot merge: safetensors is not installed", "[export]"),
    Need(("pyarrow",), "predict . --out scores --engine net", "pyarrow cannot be imported", "[parquet]"),
    Need(OPTIONAL, "predict a.png --engine net", "ONNX Runtime cannot be imported", "[cpu]"),
)


@pytest.fixture
def small_bundle(tmp_path):
    """A bundle that is whole but holds no engine that would run, for tests that must not get that far."""
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"no engine")
    contract = Preprocess()
    manifest = Manifest(
        name="net",
        card=ModelCard(
            architecture="resnet18", num_classes=2, weights="x", weights_sha256="0" * 64, preprocess=contract
        ),
        spec=BuildSpec(backend="onnxruntime", precision="fp32"),
        engine="model.onnx",
        files={"model.onnx": artifact.sha256_bytes(b"no engine")},
        chain=HashChain(weights="", onnx="", lowered="", engine=""),
        cache_key="",
        requires=Requirements(library="onnxruntime"),
        toolchain={},
        environment=Environment(
            os="", kernel="", python="", machine="", cpu=Cpu("", 1), memory_bytes=0, gpu=GpuProbe(), libraries=()
        ),
        measured=Measured(by="engine", inputs="synthetic images", images=1, agreement=1, sqnr_db=1, max_difference=0),
    )
    write_manifest(folder, manifest)


@pytest.mark.usefixtures("small_bundle")
@pytest.mark.parametrize("need", NEEDS, ids=lambda one: one.id)
def test_missing_library_is_two_lines_with_the_cure(without, tmp_path, need):
    before = sorted(tmp_path.rglob("*"))
    done = without(need.missing, *need.line.split())
    assert done.returncode == 2, done.stderr
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert need.message in error
    assert hint.startswith("hint: ")
    assert need.hint in hint
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("small_bundle")
def test_a_manifest_is_shown_without_any_extra(without):
    done = without(OPTIONAL, "inspect", "net")
    assert (done.returncode, done.stderr) == (0, "")
    assert "fp32 for onnxruntime" in done.stdout
    assert (
        'layers are not shown: onnx and onnx-ir are not installed; pip install "resnet-deploy[export]"' in done.stdout
    )
    assert without(OPTIONAL, "inspect", "net", "--json").returncode == 0


# --- names


def test_public_names_are_pinned():
    """What is listed here is a promise; anything else may move."""
    raised = ("Backend", "Bundle", "Busy", "Data", "Deadline", "Device", "Feed", "File", "ResnetDeploy", "Spec", "User")
    names = {"Batching", "Engine", "Prediction", "__version__", "load", *(f"{name}Error" for name in raised)}
    assert resnet_deploy.__all__ == sorted(names)
    from resnet_deploy import engine, errors, microbatching, version

    assert resnet_deploy.Engine is engine.Engine
    assert resnet_deploy.Prediction is engine.Prediction
    assert resnet_deploy.load is engine.load
    assert resnet_deploy.Batching is microbatching.Batching
    assert resnet_deploy.__version__ == version.__version__
    assert all(getattr(resnet_deploy, f"{name}Error") is getattr(errors, f"{name}Error") for name in raised)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        resnet_deploy.lode  # noqa: B018


def test_every_command_has_a_file_of_its_name():
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert isinstance(command, click.Command)
        assert command.name == name
        assert command.help
        assert Path(inspect.getfile(command.callback)).name == f"{name}.py"
    assert main.get_command(click.Context(main), "options") is None


def named(kind):
    """The ``module:attribute`` strings of a column of the table, by backend."""
    return {backend.name: getattr(backend, kind) for backend in BACKENDS if getattr(backend, kind)}


@pytest.mark.parametrize("backend", named("builder"))
def test_builders_in_the_table_exist(backend):
    module, _, attribute = named("builder")[backend].partition(":")
    pytest.importorskip("onnxruntime", reason="building needs it, whatever the backend")
    build = getattr(importlib.import_module(module), attribute)
    assert list(inspect.signature(build).parameters) == ["lowered", "spec", "folder", "progress"]


@pytest.mark.parametrize("backend", named("runner"))
def test_runners_in_the_table_exist(backend):
    if backend == "torch":
        pytest.importorskip("torch", reason="its runner is PyTorch")
    module, _, attribute = named("runner")[backend].partition(":")
    runner = getattr(importlib.import_module(module), attribute)
    parameters = list(inspect.signature(runner.open).parameters)
    assert parameters == ["bundle", "threads", *(["graphs"] if hasattr(runner, "graphs") else [])]
    for step in ("load", "enqueue", "synchronize", "fetch", "close"):
        assert callable(getattr(runner, step))


def test_the_table_is_not_empty_and_names_extras_that_exist():
    assert len(named("builder")) >= 2
    assert len(named("runner")) >= 3
    assert len({backend.name for backend in BACKENDS}) == len(BACKENDS)
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for backend in BACKENDS:
        assert bool(backend.module) == bool(backend.extra)
        if backend.extra:
            packages = {
                requirement.split(">")[0].split("[")[0].replace("-", "_").removesuffix("_gpu").removesuffix("_cu13")
                for requirement in extras[backend.extra]
            }
            assert backend.module in packages
