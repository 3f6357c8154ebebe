"""Bias correction finds what was added to each layer, takes it out, and leaves more of the logits than there was."""

import json
import os
import shutil

import msgspec
import numpy as np
import pytest
from int8_subjects import RTX, SEVEN_BITS, TENSORRT, UINT8, logits, lower

from resnet_deploy.bundle import CALIBRATION, CORRECTIONS, open_bundle
from resnet_deploy.datasets import find_images
from resnet_deploy.environment import Cpu
from resnet_deploy.errors import DataError, FileError
from resnet_deploy.onnx_files import bytes_from_onnx, onnx_from_bytes
from resnet_deploy.ort_session import open_session
from resnet_deploy.pipeline.building import BuildInputs, build
from resnet_deploy.pipeline.calibrating import Material, read_images
from resnet_deploy.pipeline.correcting import correct
from resnet_deploy.pipeline.lowering import Recipe
from resnet_deploy.pipeline.source import read_source
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.protocols import Silent
from resnet_deploy.quantize import bias as correction
from resnet_deploy.quantize.bias import bytes_from_corrections, correct_biases, measure_corrections, read_corrections
from resnet_deploy.quantize.calibrate import Calibration
from resnet_deploy.quantize.graph import constant, tensor_name, weighted_nodes, with_outputs
from resnet_deploy.verify import compare_logits


def biases(model):
    return {str(node.name): constant(node.inputs[2]) for node in weighted_nodes(model.graph)}


@pytest.fixture(scope="module")
def images():
    return [synthetic_images(UINT8, 1, seed=seed) for seed in range(6)]


@pytest.fixture(scope="module")
def shifts(resnet18):
    """Another number for every channel, a tenth of what its layer's biases come to."""
    rng = np.random.default_rng(0)
    sizes = {name: 0.1 * np.abs(bias).mean() for name, bias in biases(resnet18.model).items()}
    found = biases(resnet18.model)
    return {name: rng.normal(0, sizes[name], len(bias)).astype(np.float32) for name, bias in found.items()}


def test_what_was_added_to_each_bias_is_found_again(resnet18, images, shifts):
    """The errors of layers before are not a layer's own: a shift downstream of 20 others is found as it is."""
    wrong = correct_biases(resnet18.model, shifts)
    found = measure_corrections(resnet18.model, wrong, images)
    assert list(found) == list(shifts)
    for name, shift in shifts.items():
        # FP32 sums of some thousand products of either sign round by 1e-6 of what the layer's output comes to.
        np.testing.assert_allclose(found[name], -shift, atol=1e-4 * np.abs(shift).max(), err_msg=name)
    mended = correct_biases(wrong, found)
    distance = compare_logits(resnet18.expected, logits(bytes_from_onnx(mended), resnet18.images))
    assert distance.sqnr_db > 90
    # The twin: the shifts are no small matter.
    assert compare_logits(resnet18.expected, logits(bytes_from_onnx(wrong), resnet18.images)).sqnr_db < 40


def test_a_graph_without_error_is_left_alone(resnet18, images):
    found = measure_corrections(resnet18.model, resnet18.model.clone(), images)
    for name, bias in biases(resnet18.model).items():
        # The optimized and the plain graph sum in another order.
        assert np.abs(found[name]).max() < 1e-5 * max(1.0, np.abs(bias).max()), name


def mean_errors(model, lowered, images):
    """Largest mean error of a channel over the RMS of its layer, by layer."""
    layers = {tensor_name(node.outputs[0]): str(node.name) for node in weighted_nodes(model.graph)}
    outputs = []
    for graph in (model, onnx_from_bytes(lowered, name="lowered")):
        tapped = with_outputs(graph, layers)
        session = open_session(bytes_from_onnx(tapped), as_written=True)
        names = [tensor_name(value) for value in tapped.graph.outputs]
        runs = zip(*(session.run(names, {"images": image}) for image in images), strict=True)
        outputs.append(
            {name: np.concatenate(arrays).astype(np.float64) for name, arrays in zip(names, runs, strict=True)}
        )
    exact, got = outputs
    found = {}
    for name, layer in layers.items():
        if name not in got:  # logits in half precision have another name
            continue
        axes = (0, *range(2, exact[name].ndim))
        rms = np.sqrt(np.square(exact[name]).mean())
        found[layer] = float(np.abs((got[name] - exact[name]).mean(axes)).max() / rms)
    return found


@pytest.mark.parametrize("form", [SEVEN_BITS, TENSORRT, RTX], ids=["onnxruntime 7-bit", "tensorrt", "tensorrt-rtx"])
def test_the_first_layers_are_left_no_mean_error_and_the_others_less(resnet18, images, form):
    plain, _ = lower(resnet18.model, resnet18.calibration, form)
    found = measure_corrections(resnet18.model, onnx_from_bytes(plain, name="lowered"), images)
    corrected, _ = lower(correct_biases(resnet18.model, found), resnet18.calibration, form)
    before, after = (mean_errors(resnet18.model, one, images) for one in (plain, corrected))
    assert len(before) >= 20
    # A bias is rounded to its own grid, which turns a few activations' rounding and, in a random network, more and more
    # with every layer: the last, of 6 values a channel, are left half of their error, and the first ones none.
    first = [name for name in before if name.startswith(("conv1", "layer1"))]
    assert len(first) == 5
    for name in first:
        assert after[name] < 0.005 < max(before[one] for one in first), name
    assert np.mean(list(after.values())) < 0.8 * np.mean(list(before.values()))


def test_two_runs_give_the_same_bytes(resnet18, images):
    lowered = onnx_from_bytes(resnet18.lowered["onnxruntime"], name="lowered")
    one, other = (bytes_from_corrections(measure_corrections(resnet18.model, lowered, images)) for _ in range(2))
    assert one == other


def test_corrections_do_not_depend_on_the_number_of_cores(resnet18, images, monkeypatch):
    lowered = onnx_from_bytes(resnet18.lowered["onnxruntime"], name="lowered")
    found = []
    for cores in (1, 5):
        for module in ("quantize.bias", "ort_session"):  # sessions of as many threads would round otherwise
            monkeypatch.setattr(f"resnet_deploy.{module}.compute_threads", lambda cores=cores: cores)
        found.append(bytes_from_corrections(measure_corrections(resnet18.model, lowered, images)))
    assert found[0] == found[1]


def test_the_lowered_graph_is_simulated_as_it_is_written_and_nothing_shares_an_image(resnet18, images, monkeypatch):
    """Fused kernels saturate where a CPU has no VNNI, and threads on one image would add up in another order."""
    opened = []

    def spy(*model, **options):
        opened.append(options)
        return open_session(*model, **options)

    monkeypatch.setattr(correction, "open_session", spy)
    plain, _ = lower(resnet18.model, resnet18.calibration, TENSORRT)
    stages = len(measure_corrections(resnet18.model, onnx_from_bytes(plain, name="lowered"), images[:1]))
    assert opened == [{"threads": 1}, *[{"threads": 1, "as_written": True}] * stages]


def test_only_what_later_stages_read_is_held(resnet18, images, monkeypatch):
    """All that an image goes through would be 44 MB of a ResNet-50 at 224 pixels, for every image."""
    stages, held = [], []
    run = correction._run_stage

    def record(stage, lowered, values, pool):
        stages.append(stage)
        held.append([set(one) for one in values])
        return run(stage, lowered, values, pool)

    monkeypatch.setattr(correction, "_run_stage", record)
    lowered = onnx_from_bytes(resnet18.lowered["onnxruntime"], name="lowered")
    measure_corrections(resnet18.model, lowered, images[:2])
    assert len(stages) == 21
    for number, found in enumerate(held):
        later = stages[number:]
        needed = {name for stage in later for name in stage.inputs} - {
            name for stage in later for name in stage.outputs
        }
        assert found == [needed, needed], stages[number].layer


def test_models_are_left_as_they_were(resnet18, images, shifts):
    lowered = onnx_from_bytes(resnet18.lowered["tensorrt"], name="lowered")
    before = [bytes_from_onnx(model) for model in (resnet18.model, lowered)]
    measure_corrections(resnet18.model, lowered, images[:2])
    correct_biases(resnet18.model, shifts)
    assert [bytes_from_onnx(model) for model in (resnet18.model, lowered)] == before


def test_a_layer_without_a_bias_is_given_one(resnet18, images, shifts):
    bare = resnet18.model.clone()
    layer = bare.graph.node("layer2.0.conv1")
    layer.resize_inputs(2)
    del bare.graph.initializers["layer2.0.conv1.bias"]
    given = correct_biases(bare, {"layer2.0.conv1": shifts["layer2.0.conv1"]})
    np.testing.assert_array_equal(biases(given)["layer2.0.conv1"], shifts["layer2.0.conv1"])
    found = measure_corrections(bare, given, images)
    shift = shifts["layer2.0.conv1"]
    np.testing.assert_allclose(found["layer2.0.conv1"], -shift, atol=1e-4 * np.abs(shift).max())


def test_errors_that_are_not_finite_are_not_corrected(resnet18, images, shifts):
    broken = correct_biases(resnet18.model, {"layer4.0.conv1": np.full(512, np.inf, np.float32)})
    found = measure_corrections(resnet18.model, broken, images[:2])
    assert "layer3.1.conv2" in found
    assert "layer4.0.conv1" not in found
    assert all(np.isfinite(shift).all() for shift in found.values())


# --- in a build


def test_a_bundle_holds_what_was_corrected(deployment):
    bundle = open_bundle(deployment.engines["int8"])
    found = read_corrections(bundle.path / CORRECTIONS)
    assert len(found) == 21
    assert any(np.abs(shift).max() > 0 for shift in found.values())
    assert "biases corrected by the mean error of their layers on 12 images" in bundle.manifest.notes
    assert CORRECTIONS not in open_bundle(deployment.engines["fp16"]).manifest.files


def test_a_classifier_that_the_form_leaves_in_floating_point_is_not_corrected(deployment):
    source = read_source(deployment.model)
    calibration = msgspec.json.decode((deployment.engines["int8"] / CALIBRATION).read_bytes(), type=Calibration)
    reader = read_images(find_images(deployment.calibration), 12, source.card.preprocess, skip_corrupt=False)
    found = {}
    for backend in ("onnxruntime", "tensorrt-rtx"):
        spec = msgspec.structs.replace(deployment.int8_spec, backend=backend)
        recipe, _ = correct(Recipe(source.model, spec, Cpu("", 1), calibration), Material(reader=reader), Silent())
        found[backend] = recipe.corrections
    assert found["onnxruntime"].keys() - found["tensorrt-rtx"].keys() == {"fc"}


def rebuild(deployment, tmp_path, calib, **changes):
    os.link(deployment.model, tmp_path / "resnet18.onnx")
    calibration = msgspec.structs.replace(deployment.int8_spec.calibration, **changes)
    spec = msgspec.structs.replace(deployment.int8_spec, calibration=calibration)
    return build(BuildInputs(tmp_path / "resnet18.onnx", calib=str(calib)), spec, Silent()).bundle


def test_without_correction_the_graph_has_the_biases_it_was_given(deployment, tmp_path):
    bundle = rebuild(deployment, tmp_path, deployment.calibration, correct_biases=False)
    assert CORRECTIONS not in bundle.manifest.files
    assert not any("bias" in note for note in bundle.manifest.notes)
    assert bundle.manifest.chain.lowered != open_bundle(deployment.engines["int8"]).manifest.chain.lowered
    assert bundle.manifest.chain.calibration != ""


@pytest.mark.parametrize("calib", ["random", "observed"])
def test_where_there_are_no_images_it_is_said(deployment, tmp_path, calib):
    if calib == "observed":
        calib = tmp_path / "observed.safetensors"
        shutil.copy(deployment.engines["int8"] / "observations.safetensors", calib)
    bundle = rebuild(deployment, tmp_path, calib)
    assert CORRECTIONS not in bundle.manifest.files
    assert any(note.startswith("biases are not corrected: that takes images") for note in bundle.manifest.notes)


def test_damaged_corrections_are_refused(tmp_path):
    path = tmp_path / "corrections.safetensors"
    with pytest.raises(FileError):
        read_corrections(path)
    for content in (b"", json.dumps({"conv1": [1.0]}).encode(), bytes_from_corrections({"a": np.ones(3)})[:-1]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged") as caught:
            read_corrections(path)
        assert caught.value.hint


@pytest.mark.parametrize("values", [[1.0, np.nan], [np.inf], [1]], ids=str)
def test_corrections_that_are_no_finite_numbers_are_refused(tmp_path, values):
    path = tmp_path / "corrections.safetensors"
    path.write_bytes(bytes_from_corrections({"a": np.ones(2, np.float32)}))
    assert read_corrections(path)["a"].tolist() == [1.0, 1.0]
    array = np.array(values) if isinstance(values[0], int) else np.array(values, np.float32)
    path.write_bytes(bytes_from_corrections({"a": array}))
    with pytest.raises(DataError, match="the correction of a is damaged"):
        read_corrections(path)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (63,), (64, 1)], ids=str)
def test_a_correction_of_another_shape_is_refused(resnet18, shape):
    for bare in (False, True):  # a layer with a bias of 64, and without
        model = resnet18.model.clone()
        if bare:
            model.graph.node("conv1").resize_inputs(2)
            del model.graph.initializers["conv1.bias"]
        correct_biases(model, {"conv1": np.ones(64, np.float32)})
        with pytest.raises(DataError, match="correction of conv1 has shape"):
            correct_biases(model, {"conv1": np.ones(shape, np.float32)})
