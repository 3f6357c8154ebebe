"""`build --max-drop`: the limit is kept or the build fails, and a search that was killed goes on where it was."""

import json
import shutil
from pathlib import Path

import onnx
import pytest
from command_line import assert_refused, files

from resnet_deploy.pipeline import searching

BUILD = "build engines/resnet18.onnx --int8 --backend onnxruntime --calib calibration -o engine"


@pytest.fixture
def workplace(workplace, slim_model, rewrite):
    """The same with a slim model: a search builds and runs it dozens of times."""
    rewrite(workplace / "engines/resnet18.onnx", slim_model.read_bytes())
    return workplace


@pytest.fixture
def crooked(monkeypatch):
    """Activations of one layer on a grid that covers a fiftieth of them: what a search has to find."""
    from resnet_deploy.quantize import calibrate

    def narrow(self, name):
        tensor = self.tensors[name]
        low, high = tensor.ranges[tensor.method]
        share = 50 if name == "layer2.0.conv1.relu" else 1
        return calibrate.Range(low / share, high / share)

    monkeypatch.setattr(calibrate.Calibration, "range_of", narrow)
    # Calls of a millisecond, on a machine that others use: what a layer costs would decide by chance.
    monkeypatch.setattr(searching._Trial, "_seconds", lambda self, runner: 1.0)


@pytest.fixture
def flat(workplace):
    """The images without labels."""
    Path("flat").mkdir()
    for index, image in enumerate(sorted(Path("data").rglob("*.png"))):
        shutil.copy(image, f"flat/{index:02}.png")


@pytest.fixture
def run(invoke):
    def go(command):
        result = invoke(*command.split())
        assert result.exit_code == 0, result.output
        return result.output

    return go


def kept_in_float(path):
    graph = onnx.load(path).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    return [node.name for node in graph.node if node.op_type == "Conv" and makers.get(node.input[1]) is None]


def test_the_layer_at_fault_is_given_back(run, flat, crooked, workplace, deployment, rewrite):
    """In the network of all channels, where the layer is worth more than the noise of the others."""
    rewrite(workplace / "engines/resnet18.onnx", deployment.model.read_bytes())
    said = run(f"{BUILD} --max-drop 10 --data flat")
    search = json.loads(Path("engine/search.json").read_text())
    assert search["metric"] == "agreement"
    first, *_, last = search["steps"]
    assert first["drop"] > 10 >= last["drop"]
    assert f"{last['drop']:.2f} points of agreement lost on 40 images of flat, 10 allowed" in said
    # layer2.0.conv2 reads the tensor, alone or as a part of its block.
    assert "layer2.0.conv2" in search["steps"][1]["in_float"]
    assert "layer2.0.conv2" in kept_in_float("engine/model.onnx")
    assert len(search["sensitivity"]) == 21 + 8  # layers and blocks of a ResNet-18
    worst = min(search["sensitivity"].values(), key=lambda point: point["noise"])
    assert "layer2.0.conv2" in worst["in_float"]
    assert "cache hit" in run(f"{BUILD} --max-drop 10 --data flat")
    assert (search["dataset"], search["images"]) == ("flat", 40)
    timing = "--seconds 0.05 --rounds 1 --batches 1 --no-html --no-pytorch"
    warning = "its INT8 form was chosen on these very images"
    # The table breaks lines where its other warnings, which hang on the clock, make them long.
    assert warning in " ".join(run(f"bench engine --data flat {timing}").split())
    Path("flat/00.png").unlink()
    assert warning not in " ".join(run(f"bench engine --data flat {timing}").split())
    assert not list(Path().glob("*.search"))


def test_a_limit_that_holds_costs_no_search(run, flat):
    run(f"{BUILD} --max-drop 100 --data flat")
    search = json.loads(Path("engine/search.json").read_text())
    assert (len(search["steps"]), search["sensitivity"]) == (1, {})
    assert kept_in_float("engine/model.onnx") == []
    assert "cache hit" not in run(f"{BUILD} --max-drop 99 --data flat")


def test_costs_are_timed(run, flat):
    run(f"{BUILD} --max-drop 100 --data flat")
    search = json.loads(Path("engine/search.json").read_text())
    assert search["cost"] == "seconds"
    assert 1e-5 < search["steps"][0]["cost"] < 10


def test_labels_make_it_top1(run, workplace):
    assert "points of top-1 lost on 40 images of data" in run(f"{BUILD} --max-drop 100 --data data")


def test_a_killed_search_goes_on_where_it_was(run, invoke, flat, crooked, monkeypatch):
    measured, real = [], searching._Trial.measure

    def measure(self, in_float, with_drop):
        if len(measured) == 5:
            raise KeyboardInterrupt
        measured.append((tuple(in_float), with_drop))
        return real(self, in_float, with_drop)

    monkeypatch.setattr(searching._Trial, "measure", measure)
    assert invoke(*f"{BUILD} --max-drop 10 --data flat".split()).exit_code == 130
    assert Path("engine.search").exists()
    assert not Path("engine").exists()
    again = []
    monkeypatch.setattr(
        searching._Trial,
        "measure",
        lambda self, in_float, with_drop: again.append((tuple(in_float), with_drop)) or real(self, in_float, with_drop),
    )
    run(f"{BUILD} --max-drop 10 --data flat")
    assert len(measured) == 5
    assert not set(again) & set(measured)
    assert not Path("engine.search").exists()


def test_notes_of_another_search_are_not_taken(run, flat, crooked, tmp_path):
    Path("engine.search").write_text('{"key": "other", "points": [{"in_float": [], "noise": 0, "cost": 1, "drop": 0}]}')
    run(f"{BUILD} --max-drop 10 --data flat")
    assert len(json.loads(Path("engine/search.json").read_text())["steps"]) > 1


def test_a_file_that_is_no_search_is_not_replaced(invoke, flat):
    Path("engine.search").write_text("mine")
    result = invoke(*f"{BUILD} --max-drop 11 --data flat".split())
    assert_refused(result, "engine.search holds something else", "move it away")
    assert Path("engine.search").read_text() == "mine"
    assert not Path("engine").exists()


def test_a_limit_that_cannot_be_kept_fails_and_leaves_nothing(invoke, flat, monkeypatch):
    monkeypatch.setattr(searching._Trial, "_drop", lambda *_: 3.0)
    before = files(Path())
    result = invoke(*f"{BUILD} --max-drop 1 --data flat".split())
    assert result.exit_code == 1
    assert "3.00 points are lost even with every layer in floating point, 1 are allowed" in result.stderr
    assert {name for name in files(Path()) if name not in before} == {"engine.search"}
    # What was measured serves the next attempt, which asks for less.
    monkeypatch.setattr(searching._Trial, "measure", lambda *_: pytest.fail("measured again"))
    assert invoke(*f"{BUILD} --max-drop 3 --data flat".split()).exit_code == 0


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        pytest.param("--max-drop 1", "--max-drop and --data go together", "", id="no data"),
        pytest.param("--data data", "--max-drop and --data go together", "", id="no limit"),
        pytest.param("--max-drop -1 --data data", "a drop of -1.0 points", "0.5", id="negative"),
        pytest.param("--max-drop nan --data data", "a drop of nan points", "0.5", id="not a number"),
        pytest.param("--max-drop 1 --data empty", "no images", "", id="empty"),
        pytest.param("--max-drop 1 --data unknown", "unknown", "", id="other labels"),
        pytest.param("--labels-file notes.txt", "--labels-file has no effect without --data", "", id="idle"),
    ],
)
def test_refused(workplace, invoke, options, message, hint):
    before = files(workplace)
    assert_refused(invoke(*f"{BUILD} {options}".split()), message, hint)
    assert files(workplace) == before


def test_other_precisions_take_no_limit(workplace, invoke):
    result = invoke(
        *["build", "engines/resnet18.onnx", "--fp16", "--backend", "onnxruntime", "--max-drop", "1", "--data", "data"]
    )
    assert_refused(result, "fp16 takes no limit of accuracy", "--int8")
