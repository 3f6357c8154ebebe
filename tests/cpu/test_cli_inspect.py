"""`inspect` as its user types it: engines, exported models, their scales and outliers, and every refusal."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import assert_refused
from onnx import numpy_helper

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")

from resnet_deploy import artifact
from resnet_deploy.bundle import MANIFEST, seal
from resnet_deploy.pipeline.source import read_source
from resnet_deploy.quantize.observations import read_observations

ENGINE = "engines/resnet18-int8-onnxruntime"
MODEL = "engines/resnet18.onnx"
LAYERS = 21


def constants(path):
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


def found(invoke, *arguments):
    """What --json prints."""
    result = invoke("inspect", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


# --- engines


def test_an_engine_for_a_person(invoke, workplace):
    result = invoke("inspect", ENGINE)
    assert result.exit_code == 0, result.output
    manifest = json.loads(Path(ENGINE, MANIFEST).read_text())
    assert "model        resnet18, 10 classes (zero, one, two, ...)" in result.output
    assert "int8 for onnxruntime, " in result.output
    for step in ("weights", "onnx", "calibration", "lowered", "engine"):
        assert f"{step} {manifest['chain'][step][:12]}" in result.output
    for name, version in manifest["toolchain"].items():
        assert f"{name} {version}" in result.output
    for note in manifest["notes"]:
        assert note in result.output
    assert f"agreement with FP32 {manifest['measured']['agreement'] * 100:.2f} %" in result.output
    assert re.search(rf"layers +{LAYERS}: {LAYERS} in int8(, 7 bits used)?, per channel", result.output)


@pytest.mark.parametrize(("precision", "dtype", "bits"), [("fp32", "float32", 32), ("fp16", "float16", 16)])
def test_layers_of_an_engine_in_floating_point(invoke, workplace, deployment, precision, dtype, bits):
    layers = found(invoke, deployment.engines[precision])["layers"]
    assert len(layers) == LAYERS
    assert {(layer["dtype"], layer["bits"], layer["scales"]) for layer in layers} == {(dtype, bits, 0)}
    result = invoke("inspect", deployment.engines[precision], "--layers", "--scales")
    assert re.search(rf"^conv1 +convolution +64x3x7x7 +{dtype} *$", result.output, re.MULTILINE)
    assert "no scales: nothing in this engine is quantized" in result.output


def test_scales_are_those_of_the_graph(invoke, workplace):
    engine, stored = found(invoke, ENGINE), constants(f"{ENGINE}/model.onnx")
    layers = {layer["name"]: layer for layer in engine["layers"]}
    assert len(layers) == LAYERS
    scales = stored["layer2.0.conv1.weight.scale"]
    layer = layers["layer2.0.conv1"]
    # Written as double precision, which holds single precision exactly.
    assert (layer["smallest_scale"], layer["largest_scale"], layer["scales"]) == (scales.min(), scales.max(), 128)
    assert layer["bits"] == (7 if np.abs(stored["layer2.0.conv1.weight.quantized"]).max() <= 63 else 8)
    grids = {one["grid"]["tensor"]: one["grid"] for one in engine["activations"]}
    assert len(grids) == sum(
        name.endswith(".zero_point") and ".weight" not in name and ".bias" not in name for name in stored
    )
    for name, grid in grids.items():
        assert (grid["scale"], grid["zero_point"]) == (stored[f"{name}.scale"], stored[f"{name}.zero_point"])
        assert (grid["low"], grid["high"]) == (
            -grid["zero_point"] * grid["scale"],
            (255 - grid["zero_point"]) * grid["scale"],
        )


def test_ranges_are_those_of_the_calibration(invoke, workplace):
    calibration = json.loads(Path(ENGINE, "calibration.json").read_text())
    histograms = read_observations(Path(ENGINE, "observations.safetensors")).histograms
    activations = found(invoke, ENGINE)["activations"]
    sources = [one["grid"]["source"] for one in activations]
    assert set(sources) == set(calibration["tensors"])
    assert len(sources) > len(set(sources))  # pooling takes the range of what it reads
    for one in activations:
        tensor = calibration["tensors"][one["grid"]["source"]]
        assert (one["observed"], one["chosen"]) == (tensor["observed"], tensor["ranges"][tensor["method"]])
        # percentile 99.999 clips at most the rarest of 100,000, and one value where there are fewer.
        assert 0 <= one["clipped"] <= max(1e-5, 1 / histograms[one["grid"]["source"]].total)
    assert any(one["clipped"] > 0 for one in activations)


def test_scales_for_a_person(invoke, workplace):
    result = invoke("inspect", ENGINE, "--scales")
    assert result.exit_code == 0, result.output
    scale = constants(f"{ENGINE}/model.onnx")["conv1.relu.scale"]
    line = rf"^conv1\.relu +0 to \S+ +0 to \S+ +percentile +\S+ +uint8 +{re.escape(f'{float(scale):.6g}')} +0 *$"
    assert re.search(line, result.output, re.MULTILINE)
    assert re.search(r"^layer1\.0\.conv1 .* per channel +\S+ +\S+ *$", result.output, re.MULTILINE)


def test_a_calibration_of_the_first_schema_is_shown(invoke, workplace, rewrite):
    """It named the method once, for all tensors, and kept no histograms."""
    folder = Path(ENGINE)
    calibration = json.loads((folder / "calibration.json").read_text())
    for tensor in calibration["tensors"].values():
        tensor["method"] = ""
    rewrite(folder / "calibration.json", json.dumps(calibration).encode())
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["files"]["observations.safetensors"]
    manifest["files"]["calibration.json"] = artifact.sha256_file(folder / "calibration.json")
    rewrite(folder / MANIFEST, seal(manifest))
    activations = found(invoke, ENGINE)["activations"]
    assert {(one["method"], one["clipped"]) for one in activations} == {("percentile", None)}


# --- exported models


def test_a_model_for_a_person(invoke, workplace):
    result = invoke("inspect", MODEL)
    assert result.exit_code == 0, result.output
    source = read_source(Path(MODEL))
    assert f"{len(source.data) / 1e6:.1f} MB, SHA-256 {source.sha256[:12]}" in result.output
    assert "uint8 NHWC 32x32x3, RGB, any batch size" in result.output
    assert f"{LAYERS}: {LAYERS} in float32" in result.output


def test_outliers_name_the_layer_that_has_them(invoke, workplace):
    spreads = found(invoke, MODEL, "--outliers")["spreads"]
    assert len(spreads) == LAYERS
    assert [one["per_tensor_db"] for one in spreads] == sorted(one["per_tensor_db"] for one in spreads)
    assert all(one["verdict"] for one in spreads)
    assert found(invoke, MODEL)["spreads"] == []
    damaged = with_loud_channel(MODEL, "layer3.0.conv1.weight")
    worst = found(invoke, damaged, "--outliers")["spreads"][0]
    assert (worst["layer"], worst["verdict"]) == ("layer3.0.conv1", "needs a scale per channel")
    assert worst["wasting"] > 0.9
    result = invoke("inspect", damaged, "--outliers")
    assert re.search(r"^layer3\.0\.conv1 .*needs a scale per channel *$", result.output, re.MULTILINE)
    assert f"1 of {LAYERS} layers: needs a scale per channel" in result.output


OBSERVED = f"{ENGINE}/observations.safetensors"


def test_activations_are_listed_by_what_was_observed_of_them(invoke, workplace):
    listed = found(invoke, MODEL, "--outliers", "--observed", OBSERVED)["activations"]
    histograms = read_observations(Path(OBSERVED)).histograms
    assert {one["tensor"] for one in listed} == histograms.keys()
    by_max = [one["bulk_db"]["max"] for one in listed]
    assert by_max == sorted(by_max)
    for one in listed:
        assert (one["low"], one["high"]) == (histograms[one["tensor"]].low, histograms[one["tensor"]].high)
        assert one["verdict"]
    assert found(invoke, MODEL, "--outliers")["activations"] == []
    result = invoke("inspect", MODEL, "--outliers", "--observed", OBSERVED)
    assert re.search(rf"^{re.escape(listed[0]['tensor'])} .* {listed[0]['bulk_db']['max']:.1f} ", result.output, re.M)
    assert f" of {len(listed)} activations: " in result.output


def with_loud_channel(path, name, factor=100):
    """Write a model one of whose channels is much louder than the others, under a card that agrees."""
    from resnet_deploy.onnx_files import initializers_digest, onnx_from_bytes

    model = onnx.load(path)
    (tensor,) = (one for one in model.graph.initializer if one.name == name)
    weights = numpy_helper.to_array(tensor).copy()
    weights[0] *= np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(weights, name))
    card = json.loads(model.metadata_props[0].value)
    card["initializers_sha256"] = initializers_digest(onnx_from_bytes(model.SerializeToString(), name="it").graph)
    model.metadata_props[0].value = json.dumps(card)
    onnx.save(model, "loud.onnx")
    return "loud.onnx"


def test_weights_are_those_of_the_network_whose_activations_were_observed(invoke, workplace):
    loud = with_loud_channel(MODEL, "layer3.0.conv1.weight")
    decades = []
    for flag, rescaled in (("--no-equalize", False), ("--equalize", True)):
        assert invoke("calibrate", loud, "--calib", "calibration", flag, "-o", "seen.safetensors").exit_code == 0
        inspected = found(invoke, loud, "--outliers", "--observed", "seen.safetensors")
        (layer,) = (one for one in inspected["spreads"] if one["layer"] == "layer3.0.conv1")
        assert inspected["rescaled"] == rescaled
        decades.append(layer["decades"])
        said = invoke("inspect", loud, "--outliers", "--observed", "seen.safetensors").output
        assert ("with its channels rescaled" in said) == rescaled
    assert decades[1] < decades[0] - 0.5  # half of two decades went to what reads the channel


def test_observations_of_another_model_are_refused(invoke, workplace):
    other = with_loud_channel(MODEL, "layer3.0.conv1.weight")
    result = invoke("inspect", other, "--outliers", "--observed", OBSERVED)
    assert_refused(result, f"{OBSERVED} was observed of another model", "resnet-deploy calibrate")


def test_weights_that_are_no_numbers_are_refused(invoke, workplace):
    damaged = with_loud_channel(MODEL, "layer3.0.conv1.weight", np.inf)
    assert_refused(invoke("inspect", damaged, "--outliers"), "layer3.0.conv1 has weights that are not finite", "NaN")


# --- refusals


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("absent", "absent does not exist", "an engine bundle or an exported model"),
        ("engines", "has no manifest.json", "name an engine in it: "),
        ("notes.txt", "notes.txt is not an ONNX file", "resnet-deploy export"),
        ("truncated.onnx", "truncated.onnx is not an ONNX file", "resnet-deploy export"),
        ("smaller.onnx", "is not what its model card says", ""),
        (f"{ENGINE} --outliers", "--outliers has no effect with an engine", "exported model"),
        (f"{ENGINE} --observed {OBSERVED}", "--observed has no effect with an engine", "exported model"),
        (f"{MODEL} --observed {OBSERVED}", "--observed has no effect without --outliers", "--outliers"),
        (f"{MODEL} --outliers --observed absent", "absent", ""),
        (f"{MODEL} --outliers --observed notes.txt", "notes.txt: the observations are damaged", "calibrate"),
        (f"{MODEL} --scales", "--scales has no effect with an exported model", "an engine"),
        (f"{MODEL} --lint", "--lint has no effect with an exported model", "an engine"),
        (f"{ENGINE} --lint", "there are no kernels to lint: an engine of onnxruntime is a graph", "TensorRT"),
    ],
)
def test_what_is_refused(invoke, workplace, line, message, hint):
    assert_refused(invoke("inspect", *line.split()), message, hint)


@pytest.mark.parametrize("name", ["model.onnx", "calibration.json"])
def test_an_altered_bundle_is_refused(invoke, workplace, flip_bit, name):
    flip_bit(Path(ENGINE, name))
    assert_refused(invoke("inspect", ENGINE), f"{name} was altered", "build the engine again")
