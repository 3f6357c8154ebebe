"""Paths that the system refuses: every command answers in two lines, whatever the path is for."""

import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import BENCH, EXPORT, assert_refused, files

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")
pytest.importorskip("torch", reason="the command line exports with PyTorch")
pytest.importorskip("plotly", reason="the report has plots")

BUILD = "build engines/resnet18.onnx --fp16 --backend onnxruntime"
NOBODY = 65534


# --- names that are not UTF-8

ODD = os.fsdecode(b"odd\xff")
SHOWN = r"odd\xff"


@pytest.mark.parametrize(
    "line",
    [
        f"{BENCH} engines/resnet18-int8-onnxruntime --data ODD",
        "evaluate engines/resnet18-int8-onnxruntime --data ODD -o new",
        "verify engines/resnet18-int8-onnxruntime --data ODD",
        "calibrate engines/resnet18.onnx --calib ODD -o new.safetensors",
        "build engines/resnet18.onnx --int8 --backend onnxruntime --calib ODD -o new",
        "export --arch resnet18 --image-size 32 --weights ODD.safetensors -o new/a.onnx",
        "predict ODD.png --engine engines/resnet18-int8-onnxruntime",
    ],
)
def test_names_that_are_no_text_are_taken_and_shown(invoke, workplace, line):
    first = next(Path("data").rglob("*.png"))
    first.rename(first.with_name(f"{ODD}.png"))
    shutil.copytree("data", ODD)
    for name in ("engines/resnet18.safetensors", "image.png"):
        shutil.copy(name, f"{ODD}{Path(name).suffix}")
    before = files(workplace)
    result = invoke(*line.replace("ODD", ODD).split())
    assert result.exit_code == 0
    written = (workplace / name for name in files(workplace).keys() - before.keys())
    kept = b"".join(path.read_bytes() for path in written if path.is_file())
    assert SHOWN in result.stdout or re.search(rb"odd\\+xff", kept)  # a backslash more for each JSON around it


def test_a_model_whose_name_is_no_text_is_built(invoke, workplace):
    shutil.copy("engines/resnet18.onnx", f"{ODD}.onnx")
    assert invoke(*f"build {ODD}.onnx --fp32 --backend onnxruntime -o new".split()).exit_code == 0


@pytest.mark.parametrize(
    "line",
    [
        f"{BUILD} -o new-ODD",
        "build engines/resnet18.onnx --fp32 --backend openvino -o new-ODD",
        "predict image.png --engine engines/ODD",
        "loadgen engines/resnet18-int8-onnxruntime --data ODD --seconds 0.1",
    ],
)
def test_names_that_a_library_does_not_take_are_refused(invoke, workplace, line):
    if "openvino" in line:
        pytest.importorskip("openvino")
    if "loadgen" in line:
        pytest.importorskip("mlperf_loadgen")
    shutil.copytree("data", ODD)
    shutil.copytree("engines/resnet18-int8-onnxruntime", f"engines/{ODD}")
    before = files(workplace)
    assert_refused(invoke(*line.replace("ODD", ODD).split()), SHOWN, "rename it")
    assert files(workplace) == before


# --- names that are too long

LONG = "n" * 300


@pytest.mark.parametrize(
    "line",
    [
        f"{BENCH} LONG",
        f"{BENCH} --data LONG",
        f"{BENCH} --data data --labels-file LONG",
        f"{BENCH} --reference LONG.safetensors",
        "predict LONG.png",
        "predict image.png --engine LONG",
        "build LONG.onnx --fp16 --backend onnxruntime",
        f"{BUILD} -o LONG",
        f"{BUILD} --samples LONG",
        "build engines/resnet18.onnx --int8 --backend onnxruntime --calib LONG",
        f"{EXPORT} -o LONG.onnx",
        f"{EXPORT} -o LONG/a.onnx",
        f"{EXPORT} --labels LONG -o new/a.onnx",
        "export --arch resnet18 --weights LONG.pth -o new/a.onnx",
        "report LONG.json",
        "run --calib data --data LONG",
    ],
)
def test_name_that_is_too_long(invoke, workplace, line):
    before = files(workplace)
    result = invoke(*line.replace("LONG", LONG).split())
    assert_refused(result, f"{LONG}")
    assert "name" in result.stderr.lower().splitlines()[0].replace(LONG, "")
    assert files(workplace) == before


def test_weights_whose_name_is_too_long_beside_a_model_whose_is_not(invoke, workplace):
    """`a.onnx` of 255 bytes can be written, and the `a.safetensors` that goes beside it cannot."""
    before = files(workplace)
    assert_refused(invoke(*EXPORT.split(), "-o", "n" * 250 + ".onnx"), "the name is too long", "shorter")
    assert files(workplace) == before


# --- paths that are empty, as a variable of the shell that is not set


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("build engines/resnet18.onnx --int8 --calib EMPTY", "--calib"),
        ("build engines/resnet18.onnx --fp16 --samples EMPTY", "--samples"),
        ("build engines/resnet18.onnx --fp16 -o EMPTY", "-o"),
        ("build EMPTY --fp16", "MODEL"),
        ("bench EMPTY", "ENGINES"),
        ("bench --data EMPTY", "--data"),
        ("bench --data data --labels-file EMPTY", "--labels-file"),
        ("bench --reference EMPTY", "--reference"),
        ("bench -o EMPTY", "-o"),
        ("predict image.png EMPTY", "IMAGES"),
        ("predict image.png --engine EMPTY", "--engine"),
        ("report EMPTY", "RECORD"),
        ("report record.json --html EMPTY", "--html"),
        (f"{EXPORT} -o EMPTY", "-o"),
        (f"{EXPORT} --labels EMPTY", "--labels"),
        ("export --weights EMPTY", "--weights"),
        ("run --calib EMPTY --data data", "--calib"),
        ("run --calib data --data EMPTY", "--data"),
        ("run --calib data --data data -o EMPTY", "-o"),
    ],
)
def test_path_that_is_empty(invoke, workplace, line, name):
    before = files(workplace)
    result = invoke(*("" if word == "EMPTY" else word for word in line.split()))
    assert_refused(result, f"error: {name} is empty", "variable of the shell")
    assert files(workplace) == before


# --- places without permission


@pytest.fixture
def public_place(workplace, monkeypatch):
    """The workplace where anybody may go: pytest's own folders are closed to other users."""
    folder = Path(tempfile.mkdtemp(prefix="resnet-deploy-test-"))
    shutil.copytree(workplace, folder, dirs_exist_ok=True)
    (folder / "locked").mkdir()
    shutil.copytree(workplace / "engines" / "resnet18-int8-onnxruntime", folder / "locked" / "net")
    folder.chmod(0o777)
    monkeypatch.chdir(folder)
    yield folder
    for name in ("locked", "engines"):
        (folder / name).chmod(0o700)
    monkeypatch.undo()
    shutil.rmtree(folder)


@contextmanager
def as_ordinary_user():
    """Give up what root may do: no permission stops root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("mode", [0o000, 0o444], ids=oct)
@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("predict image.png --engine locked/net", "locked/net"),
        (f"{BENCH} locked/net", "locked/net"),
        (f"{BENCH} -o locked", "locked"),
        (f"{BENCH} -o locked/new", "locked/new"),
        (f"{BUILD} -o locked/a", "locked/a"),
        (f"{EXPORT} -o locked/a.onnx", "locked/a.onnx"),
        ("export --arch resnet18 --weights locked/a.pth -o new/a.onnx", "locked/a.pth"),
        ("report locked/a.json", "locked/a.json"),
        (f"{BENCH} --data locked", "locked"),
        ("predict image.png", "engines"),
        (BENCH, "engines"),
        ("build --fp16 --backend onnxruntime", "engines/resnet50.onnx"),
    ],
)
def test_folder_without_permission(invoke, public_place, line, named, mode):
    before = files(public_place)
    for name in ("locked", "engines") if named.startswith("engines") else ("locked",):
        (public_place / name).chmod(mode)
    with as_ordinary_user():
        result = invoke(*line.split())
    assert_refused(result, "ermission denied", "permissions")
    assert named in result.stderr
    for name in ("locked", "engines"):
        (public_place / name).chmod(0o755)
    assert files(public_place) == before


def test_weights_cache_without_permission(invoke, public_place, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(public_place / "locked"))
    (public_place / "locked").chmod(0)
    with as_ordinary_user():
        result = invoke("export", "--arch", "resnet18", "-o", "new/a.onnx")
    assert_refused(result, "permission denied", "permissions")
