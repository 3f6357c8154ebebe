"""`verify` as its user types it: the rungs, the layer that is named, the limits, and every refusal."""

import json
import re
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from command_line import assert_refused
from onnx import numpy_helper

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")
pytest.importorskip("torch", reason="PyTorch is the first rung")

import resnet_deploy
from resnet_deploy import artifact
from resnet_deploy.bundle import CORRECTIONS, MANIFEST, seal
from resnet_deploy.onnx_files import initializers_digest, onnx_from_bytes
from resnet_deploy.parity import first_divergence
from resnet_deploy.pipeline import searching
from resnet_deploy.pipeline.building import BuildInputs, build
from resnet_deploy.pipeline.source import read_source
from resnet_deploy.pipeline.verifying import compared_graph, read_lowered
from resnet_deploy.protocols import Silent
from resnet_deploy.quantize.bias import correct_biases, read_corrections
from resnet_deploy.quantize.divergence import compare_steps
from resnet_deploy.quantize.search import Point, Search
from resnet_deploy.report.wording import NOTHING

ENGINE = "engines/resnet18-int8-onnxruntime"


@pytest.fixture
def reseal(rewrite):
    """Give a bundle other files, with a manifest that agrees: (folder, {name: bytes}, change of the manifest)."""

    def run(folder, contents, change=lambda manifest: None):
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, data in contents.items():
            if (folder / name).exists():
                rewrite(folder / name, data)
            else:
                (folder / name).write_bytes(data)
            manifest["files"][name] = artifact.sha256_bytes(data)
        change(manifest)
        rewrite(folder / MANIFEST, seal(manifest))

    return run


def damaged(path, name, how):
    """The bytes of a model whose constant ``name`` went through ``how``."""
    model = onnx.load(path)
    (tensor,) = (one for one in model.graph.initializer if one.name == name)
    tensor.CopyFrom(numpy_helper.from_array(how(numpy_helper.to_array(tensor)), name))
    return model.SerializeToString()


def rows(output):
    """Figures of each rung, by its name."""
    figure = rf" +({NOTHING}|[-\d.]+)"
    found = re.findall(rf"^(\S.*?) {figure * 4} *$", output, re.MULTILINE)
    return {name: figures for name, *figures in found}


# --- the rungs


def test_every_rung_of_a_sound_engine(invoke, workplace):
    result = invoke("verify", ENGINE, "--data", "data", "--images", 12)
    assert result.exit_code == 0, result.output
    assert "12 images of data" in result.output
    found = rows(result.output)
    assert list(found) == ["PyTorch, FP32", "exported ONNX, FP32", "lowered to int8, simulated", "onnxruntime engine"]
    top1, *others = zip(*found.values(), strict=True)
    assert all(0 <= float(one) <= 100 for one in top1)
    assert all(column[0] == NOTHING for column in others)  # the first is compared with nothing
    sqnr = [float(one) for one in others[1][1:]]
    # Export keeps FP32's 24 bits but for the order of sums; INT8 leaves 8 bits or 7 of each of 21 layers.
    assert sqnr[0] > 100
    assert 20 < sqnr[1] < 60
    assert 20 < sqnr[2] < 60
    assert "no layer diverges, on 8 images" in result.output
    assert "largest loss of one: " in result.output


def test_without_data_it_says_what_that_proves(invoke, workplace):
    result = invoke("verify", ENGINE, "--no-pytorch")
    assert result.exit_code == 0, result.output
    assert "kept in the bundle" in result.output
    assert "prove numerics and not accuracy" in result.output
    assert next(iter(rows(result.output))) == "exported ONNX, FP32"


def test_an_engine_that_cannot_run_here_leaves_the_graph_it_was_compiled_from(invoke, workplace, reseal):
    graph = Path(ENGINE, "model.onnx").read_bytes()

    def change(manifest):
        manifest["engine"], manifest["spec"]["backend"] = "model.plan", "tensorrt-rtx"
        manifest["requires"] = {"library": "tensorrt-rtx"}

    reseal(Path(ENGINE), {"lowered.onnx": graph, "model.plan": b"a plan"}, change)
    result = invoke("verify", ENGINE, "--no-pytorch")
    assert result.exit_code == 0, result.output
    assert rows(result.output)["lowered to int8, simulated"][1] != NOTHING
    assert rows(result.output)["tensorrt-rtx engine"] == [NOTHING, NOTHING, NOTHING, NOTHING]
    assert re.search(r"tensorrt-rtx engine: not run: \S", result.output)


# --- the layer


@pytest.mark.parametrize(
    ("constant", "layer"),
    [
        ("layer2.1.conv1.weight.scale", "layer2.1.conv1: its weights"),
        ("layer3.0.conv1.relu.scale", "layer3.0.conv1.relu: the 8-bit grid of its result"),
    ],
)
def test_the_damaged_layer_is_named_and_limits_fail(invoke, workplace, reseal, constant, layer):
    sound = invoke("verify", ENGINE, "--no-pytorch", "--min-sqnr", 20)
    assert sound.exit_code == 0, sound.output
    changed = damaged(f"{ENGINE}/model.onnx", constant, lambda array: array / array.dtype.type(16))
    reseal(Path(ENGINE), {"model.onnx": changed})
    result = invoke("verify", ENGINE, "--no-pytorch")
    assert result.exit_code == 0, result.output
    assert f"first layer to diverge, on 8 images: {layer}" in result.output
    result = invoke("verify", ENGINE, "--no-pytorch", "--min-sqnr", 20)
    assert result.exit_code == 1
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: lowered to int8, simulated: SQNR ")
    assert hint.startswith(f"hint: the first layer to diverge is {layer}")


def test_lost_top1_fails_where_that_is_asked(invoke, workplace, deployment, reseal):
    images = sorted(Path("calibration").iterdir())
    with resnet_deploy.load(deployment.engines["fp32"]) as engine:
        answers = [best[0].label for best in engine.classify(images, top=1)]
    # Labelled with what FP32 answers, the exported model is always right.
    labels = "".join(f"{image.name} {answer}\n" for image, answer in zip(images, answers, strict=True))
    Path("labels.txt").write_text(labels)
    line = ("verify", ENGINE, "--no-pytorch", "--data", "calibration", "--labels-file", "labels.txt", "--max-drop", 50)
    sound = invoke(*line)
    assert sound.exit_code == 0, sound.output
    assert rows(sound.output)["exported ONNX, FP32"][0] == "100.00"
    # The best class becomes the worst.
    reseal(Path(ENGINE), {"model.onnx": damaged(f"{ENGINE}/model.onnx", "fc.weight.quantized", np.negative)})
    result = invoke(*line)
    assert result.exit_code == 1
    assert "points below exported ONNX, FP32, more than --max-drop 50" in result.stderr
    assert "hint: the first layer to diverge is logits: its weights" in result.stderr


# --- channels that were rescaled


def unbalanced(path):
    """The bytes of a model of the same function, every third channel between two convolutions 256 times as large."""
    model = onnx.load(path)
    constants = {one.name: one for one in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    factors = np.where(np.arange(64) % 3 == 0, 256, 1).astype(np.float32)
    made, read = nodes["layer1.0.conv1"].input, nodes["layer1.0.conv2"].input
    scaled = [(made[1], factors[:, None, None, None]), (read[1], 1 / factors[:, None, None])]
    for name, by in scaled + [(bias, factors) for bias in made[2:]]:
        array = numpy_helper.to_array(constants[name]) * by
        constants[name].CopyFrom(numpy_helper.from_array(array, name))
    card = json.loads(model.metadata_props[0].value)
    graph = onnx_from_bytes(model.SerializeToString(), name="it").graph
    model.metadata_props[0].value = json.dumps(card | {"initializers_sha256": initializers_digest(graph)})
    return model.SerializeToString()


def test_rescaled_channels_are_compared_with_rescaled_ones(invoke, workplace, deployment):
    Path("unbalanced.onnx").write_bytes(unbalanced("engines/resnet18.onnx"))
    inputs = BuildInputs(Path("unbalanced.onnx"), calib="calibration")
    engine = build(inputs, deployment.int8_spec, Silent()).bundle
    assert any("rescaled" in note for note in engine.manifest.notes)
    result = invoke("verify", engine.path, "--no-pytorch", "--model", "unbalanced.onnx")
    assert result.exit_code == 0, result.output
    assert "no layer diverges" in result.output
    # Against the graph as it was exported, the layer would be blamed that is the first to be rescaled.
    source, lowered = read_source(Path("unbalanced.onnx")), onnx_from_bytes(read_lowered(engine), name="it")
    images = np.load(engine.golden_path)["images"][:1]
    wrong = first_divergence(compare_steps(source.model, lowered, [images]))
    assert wrong is not None
    assert wrong.layer == "layer1.0.conv1"
    assert first_divergence(compare_steps(compared_graph(source, deployment.int8_spec), lowered, [images])) is None


def test_a_layer_left_in_floating_point_is_held_against_the_bias_it_has(invoke, workplace, deployment, monkeypatch):
    kept = Point(in_float=("layer2.0.conv2",), noise=0.0, cost=1.0, drop=0.0)
    about = {"metric": "top-1", "cost": "seconds", "dataset": "data", "dataset_sha256": "", "images": 40}
    found = Search(max_drop=10, sensitivity={}, steps=(kept,), **about)
    monkeypatch.setattr(searching, "search_precision", lambda *given: found)
    spec = msgspec.structs.replace(deployment.int8_spec, max_drop=10)
    inputs = BuildInputs(Path("engines/resnet18.onnx"), Path("engines/limited"), "calibration", data=Path("data"))
    limited = build(inputs, spec, Silent()).bundle
    applied = read_corrections(limited.path / CORRECTIONS)
    measured = read_corrections(deployment.engines["int8"] / CORRECTIONS)
    assert measured.keys() - applied.keys() == {"layer2.0.conv2"}
    result = invoke("verify", limited.path, "--no-pytorch")
    assert result.exit_code == 0, result.output
    assert "no layer diverges" in result.output
    # With the correction that it was not given, it would be blamed.
    model, lowered = read_source(deployment.model).model, onnx_from_bytes(read_lowered(limited), name="it")
    images = np.load(limited.golden_path)["images"][:1]
    wrong = first_divergence(compare_steps(model, lowered, [images], corrected=correct_biases(model, measured)))
    assert wrong is not None
    assert wrong.layer == "layer2.0.conv2"


# --- refusals


def refusals(place):
    return {
        "verify engines/absent": ("engines/absent does not exist", "resnet-deploy build"),
        "verify engines": ("has no manifest.json", "name an engine in it: resnet18-int8-onnxruntime"),
        f"verify {ENGINE} --model absent.onnx": ("absent.onnx", ""),
        f"verify {ENGINE} --model smaller.onnx": ("is not what its model card says", ""),
        f"verify {ENGINE} --reference damaged.pth": ("damaged.pth", ""),
        f"verify {ENGINE} --data absent": ("absent", ""),
        f"verify {ENGINE} --data empty": ("empty", ""),
        f"verify {ENGINE} --data corrupt": ("corrupt/one/1.png", ""),
        f"verify {ENGINE} --data calibration --max-drop 1": ("has no labels to hold --max-drop to", "--labels-file"),
        f"verify {ENGINE} --data data --images 0": ("0 images", ""),
        f"verify {ENGINE} --images 3": ("--images has no effect", "--data"),
        f"verify {ENGINE} --max-drop 1": ("--max-drop has no effect without --data", "--data"),
        f"verify {ENGINE} --skip-corrupt": ("--skip-corrupt has no effect", "--data"),
        f"verify {ENGINE} --labels-file notes.txt": ("--labels-file has no effect", "--data"),
        f"verify {ENGINE} --reference a.pth --no-pytorch": ("--reference has no effect", "drop one"),
        f"verify {ENGINE} --min-sqnr nan": ("--min-sqnr nan", "decibels"),
        f"verify {ENGINE} --data data --max-drop -1": ("--max-drop -1", "points"),
    }


@pytest.mark.parametrize("line", refusals(None), ids=lambda line: line[7:].replace(ENGINE, "E"))
def test_what_is_refused(invoke, workplace, line):
    assert_refused(invoke(*line.split()), *refusals(workplace)[line])


def test_another_model_is_refused(invoke, workplace):
    Path("other.onnx").write_bytes(Path("engines/resnet18.onnx").read_bytes())
    model = onnx.load("other.onnx")
    model.doc_string = "another file of the same graph"
    onnx.save(model, "other.onnx")
    assert_refused(invoke("verify", ENGINE, "--model", "other.onnx"), "is not the model that", "build the engine again")


def test_a_model_that_is_elsewhere_is_named(invoke, workplace):
    Path("engines/resnet18.onnx").rename("moved.onnx")
    assert_refused(invoke("verify", ENGINE), "is not beside it", "--model PATH")
    assert invoke("verify", ENGINE, "--model", "moved.onnx").exit_code == 0


def test_weights_that_are_elsewhere_are_named(invoke, workplace):
    Path("engines/resnet18.safetensors").rename("moved.safetensors")
    assert_refused(invoke("verify", ENGINE), "are not beside the engines", "--reference PATH")
    assert invoke("verify", ENGINE, "--reference", "moved.safetensors").exit_code == 0


def test_an_altered_bundle_is_refused(invoke, workplace, flip_bit):
    flip_bit(Path(ENGINE, "model.onnx"))
    assert_refused(invoke("verify", ENGINE), "model.onnx was altered", "build the engine again")


def test_images_of_the_bundle_that_are_none_are_refused(invoke, workplace, reseal):
    """Their digest says that nothing was altered since, and no more."""
    reseal(Path(ENGINE), {"golden.npz": b"no archive"})
    assert_refused(invoke("verify", ENGINE), "golden.npz is damaged", "build the engine again")


def test_damaged_images_are_left_out_where_that_is_asked(invoke, workplace):
    result = invoke("verify", ENGINE, "--no-pytorch", "--data", "corrupt", "--skip-corrupt")
    assert result.exit_code == 0, result.output
    assert "1 image of corrupt" in result.output
    assert "one/1.png" in result.output
