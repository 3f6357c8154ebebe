"""Where an engine's kernels are read from, and what is meant to be in floating point; bundles are stood in for."""

import json
from types import SimpleNamespace

import pytest
from compiled_factory import (
    FLOAT,
    HALF,
    INT8,
    PROGRAM,
    inspected_conv,
    inspected_engine,
    inspected_layer,
    int8_layers,
    plan_bytes,
)

from resnet_deploy.compiled.inspector import read_inspector
from resnet_deploy.compiled.plan import read_plan
from resnet_deploy.errors import BackendError
from resnet_deploy.pipeline.linting import lint_engine, read_compiled
from resnet_deploy.quantize.layers import Layer

INSPECTED = json.dumps(inspected_engine(10, int8_layers(10))).encode()


def bundle_of(tmp_path, backend, **files):
    for name, data in files.items():
        (tmp_path / name.replace("_", ".")).write_bytes(data)
    names = [name.replace("_", ".") for name in files]
    manifest = SimpleNamespace(spec=SimpleNamespace(backend=backend), files=names)
    return SimpleNamespace(manifest=manifest, path=tmp_path, engine_path=tmp_path / "model.plan")


@pytest.mark.parametrize(
    ("backend", "files", "source"),
    [
        ("tensorrt-rtx", {"model_plan": plan_bytes(PROGRAM)}, "the plan"),
        ("tensorrt-rtx", {"model_plan": b"?", "layers_json": INSPECTED}, "the inspector of TensorRT 10"),
        ("tensorrt", {"model_plan": plan_bytes(PROGRAM), "layers_json": INSPECTED}, "the inspector of TensorRT 10"),
    ],
)
def test_where_kernels_are_read(tmp_path, backend, files, source):
    graph, reason = read_compiled(bundle_of(tmp_path, backend, **files))
    assert (graph.source, reason) == (source, "")


@pytest.mark.parametrize(
    ("backend", "files", "why"),
    [
        ("onnxruntime", {"model_plan": plan_bytes(PROGRAM)}, "an engine of onnxruntime is a graph"),
        ("tensorrt", {"model_plan": plan_bytes(PROGRAM)}, "the bundle has no layers.json"),
        ("tensorrt-rtx", {"model_plan": b"?"}, "the plan cannot be read"),
        ("tensorrt-rtx", {"model_plan": plan_bytes(PROGRAM), "layers_json": b"[]"}, "the layers cannot be read"),
    ],
)
def test_why_kernels_are_not_read(tmp_path, backend, files, why):
    graph, reason = read_compiled(bundle_of(tmp_path, backend, **files))
    assert graph is None
    assert why in reason
    with pytest.raises(BackendError, match=why):
        lint_engine(manifest_of("int8"), graph, reason, ())


def manifest_of(precision, backend="tensorrt"):
    return SimpleNamespace(spec=SimpleNamespace(backend=backend, precision=precision))


def layer(name, scales):
    return Layer(name, "Conv", (1, 1, 1, 1), "int8" if scales else "float16", 8, scales)


def test_layers_that_the_graph_has_in_floating_point_are_meant_to_be():
    layers = int8_layers(10)
    layers[0] = inspected_layer(10, "cast", "Reformat", [("images", FLOAT)], ("x0", HALF), Origin="CAST")
    layers[1] = inspected_conv(10, "conv1", [("x0", HALF)], ("q1", INT8), weights="Half")
    graph = read_inspector(json.dumps(inspected_engine(10, layers)).encode())
    names = ("conv1", "layer1.conv1", "layer1.conv2")
    (finding,) = lint_engine(manifest_of("int8"), graph, "", [layer(name, scales=1) for name in names])
    assert (finding.rule, finding.layer) == ("operands", "conv1 + conv1.relu")
    mixed = [layer(name, scales=int(name != "conv1")) for name in names]
    assert lint_engine(manifest_of("int8"), graph, "", mixed) == ()


def test_integers_are_nothing_for_an_fp16_engine_whatever_its_graph_says():
    conv = inspected_conv(10, "conv1", [("images", HALF)], ("q1", INT8), weights="Half")
    fc = inspected_conv(10, "fc", [("q1", HALF)], ("logits", HALF), weights="Half")
    graph = read_inspector(json.dumps(inspected_engine(10, [conv, fc])).encode())
    layers = [layer("conv1", scales=0), layer("fc", scales=0)]
    assert [finding.rule for finding in lint_engine(manifest_of("fp16"), graph, "", layers)] == ["results"]


def test_a_plan_is_held_against_its_flavour():
    graph = read_plan(plan_bytes(PROGRAM))
    assert lint_engine(manifest_of("fp16", "tensorrt-rtx"), graph, "", ()) == ()
    assert lint_engine(manifest_of("fp32", "tensorrt-rtx"), graph, "", ())


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_what_is_expected_of_other_precisions_is_not_known(precision):
    graph = read_plan(plan_bytes(PROGRAM))
    with pytest.raises(BackendError, match=f"what is expected of {precision} kernels is not known") as caught:
        lint_engine(manifest_of(precision, "tensorrt-rtx"), graph, "", ())
    assert caught.value.hint == "--lint judges fp32, fp16, int8; --layers lists any"


@pytest.mark.parametrize(("backend", "hint"), [("tensorrt-rtx", "one --batch"), ("onnxruntime", "name an engine of")])
def test_the_hint_is_of_what_can_be_done(backend, hint):
    with pytest.raises(BackendError) as caught:
        lint_engine(manifest_of("fp16", backend), None, "a reason", ())
    assert hint in caught.value.hint
