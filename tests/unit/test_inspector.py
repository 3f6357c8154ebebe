"""The engine inspector's JSON of two generations, made by hand after the documentation, and what is no such JSON."""

import json

import pytest
from compiled_factory import HALF, INT8, inspected_conv, inspected_engine, inspected_layer, int8_layers
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_deploy.compiled import inspector
from resnet_deploy.compiled.inspector import read_inspector
from resnet_deploy.errors import BundleError


def read(engine):
    return read_inspector(json.dumps(engine).encode())


@pytest.mark.parametrize("version", [10, 11])
def test_both_generations_say_the_same(version):
    graph = read(inspected_engine(version, int8_layers(version)))
    assert graph.source == f"the inspector of TensorRT {version}"
    assert [(layer.kind, layer.types, layer.fused) for layer in graph.kernels] == [
        ("quantize", "float32 -> int8", ()),
        ("convolution", "int8 x int8 -> int8", ("bias", "relu", "quantize")),
        ("convolution", "int8 x int8 -> int8", ("bias", "relu", "quantize")),
        ("convolution", "int8 x int8 -> float16", ("bias", "add", "relu")),
        ("pooling", "float16 -> float16", ()),
        ("matrix multiply", "float16 x float16 -> float16", ()),
        ("reformat", "float16 -> float32", ()),
    ]
    assert graph.kernels[1].nodes == ("conv1", "conv1.relu")
    pixels = 8 * 16 * 4 * 4
    assert graph.kernels[3].traffic_bytes(8) == pixels + pixels + 2 * pixels  # weights and biases left out
    assert graph.kernels[5].traffic_bytes(8) == 2 * pixels + 2 * 80


def test_raw_separators_in_strings_are_read():
    data = json.dumps(inspected_engine(10, int8_layers(10))).replace("\\u001e", "\x1e").encode()
    assert b"\x1e" in data
    assert read_inspector(data).kernels[1].nodes == ("conv1", "conv1.relu")


def test_words_for_data_types():
    words = {
        "Row major linear FP32": "float32",
        "Channel major FP16 format where channel % 8 == 0": "float16",
        "Row major Int8 format": "int8",
        "Row major linear UInt8 format": "uint8",
        "BF16": "bfloat16",
        "Row major linear INT32": "int32",
        "unheard of": "",
    }
    for said, dtype in words.items():
        layer = {"Name": "a", "LayerType": "x", "Outputs": [{"Name": "y", "Format/Datatype": said, "Dimensions": [1]}]}
        assert read({"Layers": [layer]}).layers[0].outputs[0].dtype == dtype


def test_generated_kernels_are_told_by_their_names():
    layer = inspected_layer(10, "__myl_MulMinMaxRounCast_myl0_3", "kgen", [("a", HALF)], ("b", INT8))
    producer = inspected_conv(10, "conv", [("images", INT8)], ("a", HALF))
    graph = read(inspected_engine(10, [producer, layer]))
    assert [one.kind for one in graph.layers] == ["convolution", "quantize"]


def test_what_no_layer_writes_is_part_of_the_engine():
    layers = [
        inspected_layer(10, "c", "Constant", [], ("stored", HALF)),
        inspected_layer(10, "fc", "MatrixMultiply", [("images", HALF), ("stored", HALF)], ("logits", HALF)),
        inspected_layer(10, "fc2", "MatrixMultiply", [("logits", HALF), ("w", HALF)], ("end", HALF)),
    ]
    graph = read(inspected_engine(10, layers))
    assert [[one.constant for one in layer.inputs] for layer in graph.kernels] == [[False, True], [False, True]]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "cannot be read"),
        (b"[]", "not a JSON object"),
        (b"{}", "no list of them"),
        (b'{"Layers": []}', "no list of them"),
        (b'{"Layers": "conv1"}', "no list of them"),
        (b'{"Layers": ["conv1 + relu", "fc"], "Bindings": ["images"]}', "names alone"),
        (b'{"Layers": [3]}', "neither a name nor an object"),
        (b'{"Layers": ' + b"[" * 100_000, "cannot be read"),
        (b'{"Layers": [\xff\xfe]}', "cannot be read"),
    ],
)
def test_data_that_are_refused(data, why):
    with pytest.raises(BundleError, match=why) as caught:
        read_inspector(data)
    assert "\n" not in caught.value.message


def test_data_that_are_too_long_are_refused(monkeypatch):
    monkeypatch.setattr(inspector, "MAX_BYTES", 40)
    assert read_inspector(b'{"Layers": [{"Name": "a"}]}')
    with pytest.raises(BundleError, match="41 bytes"):
        read_inspector(b'{"Layers": [{"Name": "a"}]}'.ljust(41))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["Name", "LayerType", "Inputs", "Outputs", "Dimensions", "Format", "DataType", "Weights", "Count"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["Layers", "Bindings", "I/O Tensors"]), JSON | st.lists(JSON, max_size=3)))
@settings(max_examples=80, deadline=None)
def test_json_of_any_form_is_read_or_refused(engine):
    refused = ""
    try:
        graph = read(engine)
    except BundleError as error:
        refused = error.message
    if refused:
        assert "cannot be read" in refused
    else:
        graph.activation_bytes(8)
        graph.weighted_types()
