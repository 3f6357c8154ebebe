"""`calibrate`, `merge` and what `build` makes of observations."""

import json

import onnx
import pytest
from command_line import assert_refused, files

BUILD = "build engines/resnet18.onnx --int8 --backend onnxruntime"
CALIBRATE = "calibrate engines/resnet18.onnx --calib calibration"


@pytest.fixture
def run(workplace, invoke):
    def go(command):
        result = invoke(*command.split())
        assert result.exit_code == 0, result.output
        return result.output

    return go


def test_shards_merge_into_what_one_run_writes(run, workplace):
    assert run(CALIBRATE) == "engines/resnet18-observed.safetensors: 30 tensors over 12 images\n"
    for number in (1, 2, 3):
        assert "over 4 images" in run(f"{CALIBRATE} --shard {number}/3")
    shards = [f"engines/resnet18-observed-{number}-of-3.safetensors" for number in (3, 1, 2)]
    assert "30 tensors over 12 images" in run(f"merge {' '.join(shards)} -o merged.safetensors")
    whole = (workplace / "engines/resnet18-observed.safetensors").read_bytes()
    assert (workplace / "merged.safetensors").read_bytes() == whole
    run(f"merge {' '.join(shards[:2])} -o two.safetensors")
    assert (workplace / "two.safetensors").read_bytes() != whole


def test_an_engine_from_observations_is_the_one_from_the_images(run, workplace):
    run(CALIBRATE)
    run(f"{BUILD} --calib engines/resnet18-observed.safetensors --samples data -o observed")
    run(f"{BUILD} --calib calibration --samples data -o images --no-bias-correction")  # which takes images
    one, other = workplace / "observed", workplace / "images"
    for name in ("model.onnx", "observations.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    calibrations = [json.loads((path / "calibration.json").read_text()) for path in (one, other)]
    assert [calibration["spec"].pop("correct_biases") for calibration in calibrations] == [True, False]
    assert calibrations[0] == calibrations[1]
    assert "cache hit" in run(f"{BUILD} --calib engines/resnet18-observed.safetensors --samples data -o observed")
    run(f"{CALIBRATE} --calib-images 6 -o six.safetensors")
    assert "cache hit" not in run(f"{BUILD} --calib six.safetensors --samples data -o observed")


def test_observations_keep_their_images_out_of_the_samples(run, workplace):
    run("calibrate engines/resnet18.onnx --calib calibration --calib-images 4 -o four.safetensors")
    assert "of 8 images" in run(f"{BUILD} --calib four.safetensors --samples calibration -o few")
    run(f"{CALIBRATE} -o all.safetensors")
    assert "calibration images" in run(f"{BUILD} --calib all.safetensors --samples calibration -o all")


def test_auto_says_what_it_chose(run, workplace):
    said = run(f"{BUILD} --calib calibration --calib-method auto -o auto")
    assert "auto chose" in said
    tensors = json.loads((workplace / "auto/calibration.json").read_text())["tensors"]
    for tensor in tensors.values():
        quality = tensor["output_sqnr_db"]
        assert quality[tensor["method"]] == max(quality.values())


def test_damaged_images_are_left_out_when_asked(run, workplace, invoke):
    assert_refused(invoke("calibrate", "engines/resnet18.onnx", "--calib", "corrupt-calibration"), "1.png")
    said = run("calibrate engines/resnet18.onnx --calib corrupt-calibration --skip-corrupt")
    assert "over 1 images, 1 damaged ones left out" in said


@pytest.mark.parametrize(
    ("command", "message", "hint"),
    [
        pytest.param("calibrate missing.onnx --calib data", "missing.onnx: no such file", "", id="model"),
        pytest.param("calibrate engines/resnet18.onnx --calib none", "none", "", id="folder"),
        pytest.param("calibrate engines/resnet18.onnx --calib empty", "no images", "", id="empty folder"),
        pytest.param(f"{CALIBRATE} --shard 0/3", "shard 0/3", "count from 1", id="shard 0"),
        pytest.param(f"{CALIBRATE} --shard 4/3", "shard 4/3", "count from 1", id="shard beyond"),
        pytest.param(f"{CALIBRATE} --shard two", "not of the form 2/8", "count from 1", id="shard in words"),
        pytest.param(f"{CALIBRATE} --shard 13/13", "of 12 images is empty", "fewer shards", id="empty shard"),
        pytest.param(f"{CALIBRATE} -o x.json", "does not end in .safetensors", "x.json.safetensors", id="suffix"),
        pytest.param("merge notes.safetensors -o all.safetensors", "no such file", "", id="merge missing"),
        pytest.param(
            "merge engines/resnet18.safetensors -o all.safetensors", "holds no observations", "calibrate", id="weights"
        ),
        pytest.param(f"{BUILD} --calib none.safetensors", "no such file", "", id="build missing"),
        pytest.param(f"{BUILD} --calib engines/resnet18.safetensors", "holds no observations", "", id="build weights"),
        pytest.param(
            f"{BUILD} --calib x.safetensors --calib-images 4", "--calib-images has no effect", "folder", id="idle"
        ),
        pytest.param(
            f"{BUILD} --calib x.safetensors --skip-corrupt", "--skip-corrupt has no effect", "", id="idle too"
        ),
        pytest.param(f"{BUILD} --calib x.safetensors --calib-method auto", "auto measures on images", "", id="auto"),
    ],
)
def test_refused(workplace, invoke, command, message, hint):
    before = files(workplace)
    assert_refused(invoke(*command.split()), message, hint)
    assert files(workplace) == before


def test_observations_of_another_model_are_refused(run, invoke, workplace):
    model = onnx.load("engines/resnet18.onnx")
    model.doc_string = "another file of the same weights"
    onnx.save(model, "other.onnx")
    run("calibrate other.onnx --calib calibration -o other.safetensors")
    result = invoke(*f"{BUILD} --calib other.safetensors -o x".split())
    assert_refused(result, "the observations are of another model: onnx_sha256 differs", "this very model")
    assert not (workplace / "x").exists()


def test_a_full_disk_leaves_nothing_half_written(invoke, workplace, mount_tmpfs):
    disk = mount_tmpfs("size=64k")
    result = invoke(*f"{CALIBRATE} -o {disk}/observed.safetensors".split())
    assert_refused(result, "no space left", "free some space")
    assert files(disk) == {}
