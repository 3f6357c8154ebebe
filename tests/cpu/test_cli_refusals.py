"""What commands refuse: in two lines, with what to do, and nothing is left behind."""

import json
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import BENCH, EXPORT, assert_refused, files

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")
pytest.importorskip("torch", reason="PyTorch is the reference")
pytest.importorskip("plotly", reason="the report has plots")

from resnet_deploy import checkpoints
from resnet_deploy.bundle import open_bundle
from resnet_deploy.cli import COMMANDS


@dataclass(frozen=True)
class Refusal:
    """A command line, and parts of the two lines it ends in."""

    line: str
    message: str
    hint: str


REFUSALS = (
    # Files that are missing or are something else.
    Refusal("build gone.onnx --fp16", "gone.onnx: no such file", "check the path"),
    Refusal("build notes.txt --fp16", "notes.txt is not an ONNX file", "resnet-deploy export"),
    Refusal("build image.png --fp16", "image.png is not an ONNX file", "resnet-deploy export"),
    Refusal("build truncated.onnx --fp16", "truncated.onnx is not an ONNX file, or was cut short", "resnet-deploy"),
    Refusal("build smaller.onnx --fp32", "input images has the shape 32x32x3 per image, not 24x24x3", "do not change"),
    Refusal("build normalised.onnx --fp32", "input images is uint8, not float32", "do not change exported files"),
    Refusal("build empty --fp16", "empty: is a folder, not a file", "give a file"),
    Refusal("build --fp16", "engines/resnet50.onnx does not exist", "engines/resnet18.onnx"),
    Refusal("predict gone.png", "gone.png", "check the path"),
    Refusal("predict notes.txt", "notes.txt: not an image", "replace the file"),
    Refusal("predict corrupt/one/1.png", "corrupt/one/1.png: damaged image", "replace the file"),
    Refusal("predict image.png --engine gone", "gone does not exist", "resnet-deploy build"),
    Refusal("predict image.png --engine empty", "empty has no manifest.json", "resnet-deploy build"),
    Refusal("report gone.json", "gone.json: no such file", "check the path"),
    Refusal("report notes.txt", "notes.txt is no record of `bench`", "`bench`"),
    # Weights.
    Refusal(
        "export --arch resnet34 --weights engines/resnet18.safetensors -o new/a.onnx",
        "resnet18.safetensors is not a checkpoint of resnet34: it looks like resnet18",
        "use --arch resnet18",
    ),
    Refusal("export --arch vgg16", "unknown architecture 'vgg16'", "choose one of: resnet18"),
    Refusal("export --weights gone.pth -o new/a.onnx", "gone.pth: no such file", "check the path"),
    Refusal("export --weights notes.txt -o new/a.onnx", "is not a kind of weights", ".safetensors"),
    Refusal("export --weights damaged.pth -o new/a.onnx", "damaged.pth is not a checkpoint", "again"),
    Refusal("export --arch plain18 -o new/a.onnx", "no imagenet weights are published for plain18", "--weights none"),
    Refusal("export --num-classes 7 -o new/a.onnx", "the imagenet weights have 1000 classes, not 7", "--weights PATH"),
    # Labels.
    Refusal(
        f"{EXPORT} --num-classes 3 --labels few-labels.txt -o new/a.onnx", "2 labels for a model of 3", "one label"
    ),
    Refusal(f"{EXPORT} --labels blank-label.txt -o new/a.onnx", "blank-label.txt: line 2 is blank", "one label"),
    Refusal(f"{EXPORT} --labels no-labels.txt -o new/a.onnx", "no-labels.txt is empty", "one label"),
    Refusal(f"{EXPORT} --labels binary-labels.txt -o new/a.onnx", "binary-labels.txt is not text", "one label"),
    # Numbers out of range.
    Refusal(f"{EXPORT} --num-classes 0 -o new/a.onnx", "0 classes", "positive"),
    Refusal(f"{EXPORT} --num-classes 2000000000 -o new/a.onnx", "number of classes 2000000000 is too large", "100000"),
    Refusal("export --image-size 100000 -o new/a.onnx", "image size 100000 is too large", "at most 2048"),
    Refusal("export --image-size 99999999999999999999 -o new/a.onnx", "image size 9999", "at most 2048"),
    Refusal(f"{EXPORT} --resize 60000 -o new/a.onnx", "resize 60000 is too large", "at most 8192"),
    Refusal("build engines/resnet18.onnx --fp16 --batch 10000000", "batch size 10000000 is too large", "at most 1024"),
    Refusal("bench --batches 1,10000000", "batch size 10000000 is too large", "at most 1024"),
    Refusal(f"{EXPORT} --mean 123.7,116.3,103.5 -o new/a.onnx", "has a value above 1", "divide by 255"),
    Refusal(f"{EXPORT} --num-classes 10 --labels imagenet -o new/a.onnx", "1000 labels for a model of 10", "label"),
    Refusal(f"{EXPORT} --resize 31 -o new/a.onnx", "resize 31 is smaller than the crop 32", "--resize"),
    Refusal(f"{EXPORT} --std 1,1,0 -o new/a.onnx", "is not positive", "positive"),
    Refusal("build engines/resnet18.onnx --fp16 --batch 8:4:1", "batch range 8:4:1 is not ordered", "1:8:64"),
    Refusal("build engines/resnet18.onnx --fp16 --batch many", "batch range 'many' is not", "1:8:64"),
    Refusal(
        "build engines/resnet18.onnx --int8 --calib calibration --calib-percentile 10", "percentile 10.0", "99.999"
    ),
    Refusal("predict image.png --top 0", "top 0 is not positive", "at least one"),
    Refusal("bench --batches 0", "batch sizes [0]", "1,8,32"),
    Refusal("bench --seconds 0", "20 rounds in 0.0 seconds", "positive"),
    # Requests that conflict or cannot be met.
    Refusal("build engines/resnet18.onnx", "no precision was asked for, one is needed", "--fp16"),
    Refusal("build engines/resnet18.onnx --fp16 --int8", "2 precisions were asked for, one is needed", "--fp16"),
    Refusal("build engines/resnet18.onnx --fp16 --calib calibration", "fp16 takes no calibration data", "--int8"),
    Refusal(
        "build engines/resnet18.onnx --int8 --backend onnxruntime",
        "INT8 and FP8 need calibration images",
        "--calib DIR",
    ),
    Refusal(
        "build engines/resnet18.onnx --bf16 --backend onnxruntime", "onnxruntime has no BF16 engines", "tensorrt-rtx"
    ),
    Refusal(
        "build engines/resnet18.onnx --fp8 --calib calibration --backend onnxruntime",
        "onnxruntime has no FP8 engines",
        "--backend tensorrt-rtx or tensorrt, or build with --fp32 or --fp16 or --int8",
    ),
    Refusal("build engines/resnet18.onnx --bf16 --calib calibration", "bf16 takes no calibration data", "--int8"),
    Refusal(
        "build engines/resnet18.onnx --fp8 --calib calibration --calib-method entropy",
        "entropy chooses ranges for the even steps of integers",
        "--calib-method max, percentile or auto",
    ),
    Refusal(
        "build engines/resnet18.onnx --fp8 --calib calibration --data data --max-drop 1",
        "fp8 takes no limit of accuracy",
        "--int8",
    ),
    Refusal(
        "build engines/resnet18.onnx --fp16 --backend tensorflow",
        "unknown backend 'tensorflow'",
        "choose one of: auto, onnxruntime, onnxruntime-cuda, ",
    ),
    Refusal("build engines/resnet18.onnx --fp16 --backend torch", "cannot build for torch", "--backend"),
    Refusal("build engines/resnet18.onnx --fp16 --backend onnxruntime --target=", "is no GPU generation", "sm89"),
    Refusal("build engines/resnet18.onnx --fp16 --backend onnxruntime --workspace=", "'' is no size", "4G"),
    Refusal("build engines/resnet18.onnx --fp16 --backend onnxruntime --timing-cache=", "--timing-cache is empty", ""),
    Refusal("build engines/resnet18.onnx --fp16 --backend onnxruntime --opt-level 3", "has no --opt-level", "tensorrt"),
    Refusal("build engines/resnet18.onnx --bf16 --backend openvino", "openvino", "--backend"),
    Refusal("run --calib data --data data --backend tensorflow", "unknown backend 'tensorflow'", "onnxruntime"),
    # Options that would have no effect.
    Refusal(
        "build engines/resnet18.onnx --fp16 --calib-method max", "--calib-method has no effect with --fp16", "int8"
    ),
    Refusal(
        "build engines/resnet18.onnx --bf16 --calib-method max", "--calib-method has no effect with --bf16", "int8"
    ),
    Refusal("build engines/resnet18.onnx --fp32 --calib-images 3", "--calib-images has no effect with --fp32", "int8"),
    Refusal("build engines/resnet18.onnx --fp16 --calib-percentile 99.999", "--calib-percentile has no effect", "int8"),
    Refusal(
        "build engines/resnet18.onnx --int8 --calib calibration --calib-method max --calib-percentile 99",
        "--calib-percentile has no effect with --calib-method max",
        "--calib-method percentile",
    ),
    Refusal(
        "build engines/resnet18.onnx --int8 --calib random --calib-images 3",
        "--calib-images has no effect with --calib random",
        "folder",
    ),
    Refusal("build engines/resnet18.onnx --fp16 --skip-corrupt", "--skip-corrupt has no effect with", "--samples"),
    Refusal(f"{BENCH} --labels-file labels.txt", "--labels-file has no effect without --data", "--data DIR"),
    Refusal(f"{BENCH} --skip-corrupt", "--skip-corrupt has no effect without --data", "--data DIR"),
    Refusal(f"{BENCH} --no-pytorch --reference engines/resnet18.safetensors", "--reference has no effect", "drop one"),
    # Folders of images.
    Refusal("build engines/resnet18.onnx --int8 --calib gone", "gone: no such file", "check the path"),
    Refusal("build engines/resnet18.onnx --int8 --calib empty", "empty: no images", ".png"),
    Refusal("build engines/resnet18.onnx --int8 --calib corrupt-calibration", "1.png: damaged image", "replace"),
    Refusal(f"{BENCH} --data empty", "empty: no images", ".png"),
    Refusal(f"{BENCH} --data gone", "gone: no such file", "check the path"),
    Refusal(f"{BENCH} --data unknown", "3 of 3 folders do not name exactly one class", "'zero'"),
    Refusal(f"{BENCH} --data corrupt", "corrupt/one/1.png: damaged image", "--skip-corrupt"),
    Refusal("run --calib gone --data data", "gone: no such file", "check the path"),
    Refusal("run --calib data --data empty", "empty: no images", ".png"),
    # Outputs that are taken.
    Refusal(f"{EXPORT} -o empty", "empty is a folder, not a file", "resnet50.onnx"),
    Refusal(f"{EXPORT} -o new/a.safetensors", "new/a.safetensors does not end in .onnx", ".onnx"),
    Refusal("export --arch resnet18 -o new/m.v1", "m.v1 does not end in .onnx", "m.v1.onnx"),  # before the download
    Refusal(f"{EXPORT} -o notes.txt/a.onnx", "a file is where a folder must be", "check the path"),
    Refusal("build engines/resnet18.onnx --fp16 -o data", "data exists and is not an engine bundle", "-o"),
    Refusal("build engines/resnet18.onnx --fp16 -o notes.txt/a", "a file is where a folder must be", "check the path"),
    Refusal("build engines/resnet18.onnx --fp16 -o image.png", "image.png exists and is not an engine bundle", "-o"),
)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda one: one.line)
def test_refused_in_two_lines_and_nothing_is_left_behind(invoke, workplace, refusal):
    before = files(workplace)
    arguments = refusal.line.split()
    if arguments[0] == "build" and "--backend" not in arguments:
        arguments += ["--backend", "onnxruntime"]
    assert_refused(invoke(*arguments), refusal.message, refusal.hint)
    assert files(workplace) == before


def test_options_that_click_refuses(invoke, workplace):
    before = files(workplace)
    for line in ("bench --batches x", "predict image.png --threads -1", "build --int4", "export --std 1,2", "nonsense"):
        assert_refused(invoke(*line.split()), "", "--help`")
    assert_refused(invoke("bench", "--batches", "x"), "invalid value for '--batches'", "`main bench --help`")
    assert_refused(invoke("exprot"), "no such command 'exprot'", "did you mean `main export`?")
    assert_refused(invoke("nonsense"), "no such command 'nonsense'", "see `main --help`")
    assert files(workplace) == before


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_keeps_its_examples_on_lines_of_their_own(invoke, command):
    out = invoke(*command.split(), "--help").stdout
    assert "\\b" not in out
    assert "\x08" not in out
    examples = [line for line in out.splitlines() if line.lstrip().startswith("resnet-deploy ")]
    assert examples or command == "doctor"
    assert all(line.count("resnet-deploy ") == 1 for line in examples)


def test_users_checkpoint_is_not_overwritten(invoke, workplace):
    """`export` keeps the weights beside the model, where the user's own may already be."""
    mine = workplace / "mine.safetensors"
    checkpoints.write_state_dict(mine, checkpoints.read_state_dict(Path("engines/resnet18.safetensors")), {"by": "me"})
    before = files(workplace)
    line = f"{EXPORT} --weights mine.safetensors -o mine.onnx".replace("--weights none ", "")
    assert_refused(invoke(*line.split()), "mine.safetensors was not written by `export`", "-o")
    assert files(workplace) == before


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "manifest.json"])
def test_engine_with_a_flipped_bit(invoke, workplace, flip_bit, name):
    bundle = Path("engines", "resnet18-int8-onnxruntime")
    flip_bit(bundle / name)
    if name == "manifest.json":
        data = (bundle / name).read_bytes()
        (bundle / name).write_bytes(data[:-5])
    before = files(workplace)
    for line in ("predict image.png", BENCH):
        assert_refused(invoke(*line.split()), name, "resnet-deploy build")
    assert files(workplace) == before


def test_no_engines(invoke, workplace):
    shutil.rmtree("engines/resnet18-int8-onnxruntime")
    before = files(workplace)
    assert_refused(invoke("predict", "image.png"), "no engines in engines/", "resnet-deploy build --fp16")
    assert_refused(invoke(*BENCH.split()), "no engines in engines/", "resnet-deploy build --fp16")
    assert files(workplace) == before


def test_more_engines_than_one_to_predict_with(invoke, workplace, copy_engine):
    copy_engine("fp16", to=workplace / "engines" / "another")
    assert_refused(invoke("predict", "image.png"), "2 engines in engines/", "engines/another")


def test_bench_without_the_weights(invoke, workplace):
    Path("engines/resnet18.safetensors").unlink()
    before = files(workplace)
    assert_refused(invoke(*BENCH.split()), "the PyTorch weights of resnet18 are not beside the engines", "--reference")
    assert files(workplace) == before
    result = invoke(*BENCH.split(), "--no-pytorch")
    assert result.exit_code == 0, result.output


def test_damaged_images_may_be_skipped(invoke, workplace):
    result = invoke(*BENCH.split(), "--data", "corrupt", "--skip-corrupt", "-o", "results")
    assert result.exit_code == 0, result.output
    (path,) = Path("results").iterdir()
    dataset = json.loads(path.read_text())["dataset"]
    assert (dataset["images"], dataset["skipped"]) == (1, ["one/1.png"])
    assert "1.png" in result.stdout


@pytest.fixture
def closed_port():
    """A local port that nobody listens on."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def test_weights_that_cannot_be_downloaded(invoke, workplace, monkeypatch, tmp_path, closed_port):
    monkeypatch.setattr(checkpoints, "BASE_URL", f"http://127.0.0.1:{closed_port}/")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "*")
    before = files(workplace)
    result = invoke("export", "--arch", "resnet18")
    assert_refused(result, f"cannot download http://127.0.0.1:{closed_port}/resnet18-f37072fd.pth", "--weights PATH")
    assert files(workplace) == before
    assert [path for path in (tmp_path / "hub").rglob("*") if path.is_file()] == []


# --- disks that take nothing more


def full_and_read_only(mount_tmpfs):
    """A disk of 2 MB, too small for any engine, and one that may not be written."""
    full, frozen = mount_tmpfs("size=2m"), mount_tmpfs("size=2m")
    subprocess.run(["mount", "-o", "remount,ro", frozen], check=True)
    return ((full, "no space left on the device"), (frozen, "the file system is read-only"))


@pytest.mark.parametrize(
    "line",
    [
        f"{EXPORT} -o DISK/a.onnx",
        f"{EXPORT} -o DISK/new/a.onnx",
        "build engines/resnet18.onnx --fp16 --backend onnxruntime -o DISK/a",
        "build engines/resnet18.onnx --int8 --calib calibration --backend onnxruntime -o DISK/a",
    ],
)
def test_disk_that_takes_nothing_more(invoke, workplace, mount_tmpfs, shallow, line):
    for disk, reason in full_and_read_only(mount_tmpfs):
        before = files(workplace)
        assert_refused(invoke(*line.replace("DISK", str(disk)).split()), reason, "-o")
        assert files(workplace) == before
        assert files(disk) == {}


def test_full_disk_does_not_cost_the_old_engine(invoke, workplace, mount_tmpfs, copy_engine):
    disk = mount_tmpfs("size=20m")
    shutil.copytree("engines/resnet18-int8-onnxruntime", disk / "net")
    before = files(disk)
    line = (
        f"build engines/resnet18.onnx --int8 --calib calibration --calib-method max --backend onnxruntime -o {disk}/net"
    )
    assert_refused(invoke(*line.split()), "no space left on the device", "free some space")
    assert files(disk) == before
    open_bundle(disk / "net").verify_files()
