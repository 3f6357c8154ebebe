"""The wheel alone, in an environment of its own, away from the sources.

Needs the package index for the dependencies, as every installation does; skipped with the reason where it cannot be
reached.
"""

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("build", reason="the wheel is built with it")
from resnet_deploy.engine import load
from resnet_deploy.quantize.counting import LIBRARY
from resnet_deploy.version import __version__

ROOT = Path(__file__).parents[1]
SOURCES = ("resnet_deploy", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def clean_environment():
    """The environment without what would let a process find the sources."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


def pip(python, *arguments):
    """Install into the environment of ``python``; skip the test where there is no index to be reached.

    By the pip beside us, as the environment has none, and without compiling what nobody imports: both take long.
    """
    command = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install"]
    command += ["--quiet", "--no-compile", *arguments]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False)
    if re.search(r"connection broken|Temporary failure in name resolution|ConnectionError", done.stderr):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("sources"))


def copy_sources(folder):
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)


def build_wheel(sources, **environment):
    """Build the wheel from a copy of the sources, which stay as they are."""
    copy_sources(sources)
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", sources / "dist", sources]
    if has_setuptools():
        command.append("--no-isolation")
    done = subprocess.run(command, env=clean_environment() | environment, capture_output=True, text=True, check=False)
    if re.search("connection broken|Temporary failure in name resolution", done.stdout + done.stderr):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr
    (path,) = (sources / "dist").glob("*.whl")
    return path


def has_setuptools():
    """Whether the setuptools beside us is the one that pyproject.toml asks for; a newer one is fetched otherwise."""
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel and its dependencies, and a folder far from the sources."""

    python: Path
    folder: Path

    def __call__(self, *arguments):
        command = [self.python.with_name("resnet-deploy"), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=clean_environment(), capture_output=True, text=True, check=False
        )

    def evaluate(self, code):
        """Run Python in the environment; return what it prints."""
        command = [self.python, "-W", "error", "-c", code]
        done = subprocess.run(
            command, cwd=self.folder, env=clean_environment(), capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel with what it depends on and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    command = [sys.executable, "-m", "venv", "--without-pip", folder / "venv"]
    subprocess.run(command, env=clean_environment(), check=True)
    python = folder / "venv" / "bin" / "python"
    pip(python, "--constraint", ROOT / "constraints.txt", wheel)
    (folder / "elsewhere").mkdir()
    return Installed(python, folder / "elsewhere")


@pytest.fixture(scope="module")
def library():
    """What of the wheel is compiled: nothing without a compiler."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    return {LIBRARY.relative_to(ROOT).as_posix()} if shutil.which(compiler) else set()


def test_wheel_holds_the_package_and_nothing_else(wheel, library):
    names = zipfile.ZipFile(wheel).namelist()
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "resnet_deploy").rglob("*.py")}
    assert len(modules) > 50
    packed = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    page = (f"report/{name}" for name in ("template.html", "page.css", "page.js"))
    data = {f"resnet_deploy/{name}" for name in ("py.typed", "data/imagenet_classes.tsv", *page)}
    runtime = {path.relative_to(ROOT).as_posix() for path in (ROOT / "resnet_deploy/cpp").rglob("*") if path.is_file()}
    assert len(runtime) > 20
    assert packed == modules | data | runtime | library
    assert any(name.endswith("licenses/LICENSE") for name in names)
    platform = re.sub(r"\W", "_", sysconfig.get_platform()) if library else "any"
    assert wheel.name == f"resnet_deploy-{__version__}-py3-none-{platform}.whl"


@pytest.mark.parametrize("environment", [{"RESNET_DEPLOY_PURE": "1"}, {"CC": "false"}], ids=["asked", "no compiler"])
def test_without_the_library_a_wheel_fits_every_machine(wheel, library, tmp_path, environment):
    path = build_wheel(tmp_path, **environment)
    assert path.name == f"resnet_deploy-{__version__}-py3-none-any.whl"
    assert set(zipfile.ZipFile(path).namelist()) == set(zipfile.ZipFile(wheel).namelist()) - library


def test_sources_are_enough_for_the_library(library, tmp_path):
    copy_sources(tmp_path)
    command = [sys.executable, "-m", "build", "--sdist", tmp_path, *(["--no-isolation"] if has_setuptools() else [])]
    environment = clean_environment() | {"RESNET_DEPLOY_PURE": "1"}
    subprocess.run(command, env=environment, capture_output=True, check=True)
    (path,) = (tmp_path / "dist").iterdir()
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"setup.py", "resnet_deploy/quantize/counting.c"}
    assert not names & library


def test_installed_package_is_the_wheel_and_has_its_data(installed):
    code = (
        "import resnet_deploy, importlib.resources, importlib.metadata\n"
        "root = importlib.resources.files(resnet_deploy)\n"
        "print(root)\n"
        "print(len((root / 'data/imagenet_classes.tsv').read_text(encoding='utf-8').splitlines()))\n"
        "print('<html' in (root / 'report/template.html').read_text(encoding='utf-8'), (root / 'py.typed').is_file())\n"
        "print(importlib.metadata.version('resnet-deploy') == resnet_deploy.__version__)\n"
    )
    root, classes, data, version = installed.evaluate(code).splitlines()
    assert Path(root).is_relative_to(installed.python.parents[1])
    assert (classes, data, version) == ("1000", "True True", "True")


def test_command_line_works_without_any_extra(installed, library):
    done = installed("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Take a PyTorch ResNet to production" in done.stdout

    done = installed("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"torch +not installed", done.stdout)
    assert re.search("calibration counts in " + ("C" if library else "NumPy"), done.stdout)
    assert "can run: yes" in done.stdout  # the null backend
    assert 'pip install "resnet-deploy[cpu]"' in done.stdout

    done = installed("export")
    assert done.returncode == 2
    libraries = "torch, onnx, onnx-ir, onnxscript, safetensors and onnxruntime"
    assert done.stderr.splitlines() == [
        f"error: cannot export: {libraries} are not installed",
        'hint: pip install "resnet-deploy[export,cpu]"',
    ]
    assert list(installed.folder.iterdir()) == []


def test_cmake_builds_the_example_from_the_wheel(installed, tmp_path):
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    for library in ("openvino", "nlohmann_json"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    done = installed("--cmake-dir")
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).is_relative_to(installed.python.parents[1])
    options = (
        f"-Dresnet-deploy_DIR={done.stdout.strip()}",
        f"-DRESNET_DEPLOY_SITE_PACKAGES={sysconfig.get_path('purelib')}",
        "-DCMAKE_BUILD_TYPE=Debug",  # takes a third of the time
        "-DCMAKE_CXX_FLAGS_DEBUG=-O0",
    )
    for command in (["cmake", "-S", ROOT / "examples/cpp", "-B", tmp_path, *options], ["cmake", "--build", tmp_path]):
        made = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout + made.stderr
    used = subprocess.run([tmp_path / "classify"], capture_output=True, text=True, check=False)
    assert (used.returncode, used.stderr) == (2, "usage: classify BUNDLE (PICTURE.ppm | --golden)\n")


def test_engine_needs_only_the_wheel_and_onnxruntime(installed, deployment):
    path, image = deployment.engines["fp16"], deployment.data / "three" / "1.png"
    with load(path) as engine:
        (expected,) = engine.classify([image], top=3)
    predict = ("predict", image, "--engine", path, "--top", "3")
    done = installed(*predict)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == 'hint: install it with `pip install "resnet-deploy[cpu]"`'

    pip(installed.python, "--constraint", ROOT / "constraints.txt", "onnxruntime")
    done = installed(*predict)
    assert (done.returncode, done.stderr) == (0, "")
    # Percentages with two decimals: what another build of the same library rounds differently does not show.
    assert done.stdout.splitlines()[1:] == [f"  {one.probability:7.2%}  {one.label}" for one in expected]

    code = (
        f"import sys, resnet_deploy\n"
        f"with resnet_deploy.load({str(path)!r}) as engine:\n"
        f"    print(engine([{str(image)!r}]).shape)\n"
        f"print(sorted(sys.modules.keys() & {{'torch', 'onnx', 'onnx_ir', 'onnxscript'}}))\n"
    )
    assert installed.evaluate(code).splitlines() == ["(1, 10)", "[]"]
