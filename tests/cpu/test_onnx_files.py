"""ONNX files of unknown origin: what is read back, and what is refused before anything builds on it."""

import hashlib
import struct

import msgspec
import numpy as np
import onnx
import pytest
from narrow_model import CARD, CLASSES, changed, narrow_model, outside_the_weights, unknown_operator

from resnet_deploy import onnx_files
from resnet_deploy.environment import probe_cpu
from resnet_deploy.errors import BuildError, ModelError
from resnet_deploy.onnx_files import (
    attach_card,
    bytes_from_onnx,
    check_onnx,
    onnx_from_bytes,
    read_card,
    read_exported,
    split_weights,
)
from resnet_deploy.ort_session import open_session
from resnet_deploy.pipeline import lowering
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.specs import BuildSpec, Preprocess


@pytest.fixture(scope="module")
def narrow() -> bytes:
    return narrow_model()


@pytest.fixture(autouse=True, params=[1024, 16], ids=["constants", "weights"])
def large(request, monkeypatch):
    """This file's tensors are all small; in turns, they are treated as weights, which the checks do not get to see."""
    monkeypatch.setattr(onnx_files, "_LARGE", request.param)
    return request.param


def test_the_card_comes_back(narrow):
    model, card = read_exported(narrow, name="model.onnx")
    assert card == read_card(model, name="model.onnx")
    assert msgspec.structs.replace(card, initializers_sha256="") == CARD
    assert bytes_from_onnx(model) == narrow


def test_a_session_takes_large_constants_from_where_they_are(narrow, monkeypatch):
    monkeypatch.setattr(onnx_files, "_LARGE", 64)
    model, card = read_exported(narrow, name="model.onnx")
    graph, weights = split_weights(model)
    images = synthetic_images(card.preprocess, 2)
    large = {name for name, value in model.graph.initializers.items() if value.const_value.nbytes >= 64}
    assert set(weights) == large
    assert len(large) > 3
    (expected,) = open_session(narrow).run(["logits"], {"images": images})
    for as_written in (False, True):
        (found,) = open_session(graph, weights, as_written=as_written).run(["logits"], {"images": images})
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    half = {name: array / 2 for name, array in weights.items()}
    (wrong,) = open_session(graph, half).run(["logits"], {"images": images})
    assert not np.allclose(wrong, expected, rtol=1e-2, atol=1e-3)
    with pytest.raises(BuildError, match="refuses the model"):
        open_session(graph)
    assert bytes_from_onnx(model) == narrow


def test_the_card_names_the_weights_in_the_file(narrow):
    digest = hashlib.sha256()
    for tensor in sorted(onnx.load_from_string(narrow).graph.initializer, key=lambda one: one.name):
        digest.update(f"{tensor.name} float32 {tuple(tensor.dims)}\n".encode() + tensor.raw_data)
    assert read_exported(narrow, name="model.onnx")[1].initializers_sha256 == digest.hexdigest()


def test_a_new_card_replaces_the_old(narrow):
    model = onnx_from_bytes(narrow, name="copy")
    other = msgspec.structs.replace(CARD, preprocess=Preprocess(image_size=16, resize=20))
    attach_card(model, other)
    assert read_card(onnx_from_bytes(bytes_from_onnx(model), name="copy"), name="copy") == other != CARD


@pytest.mark.parametrize(
    ("writer", "said"),
    [("9.0", r"was written by resnet-deploy 9\.0, and this is .*weather"), ("", "damaged model card")],
)
def test_a_card_with_a_field_more_is_of_another_version_if_the_file_is(narrow, writer, said):
    def change(model):
        model.producer_version = writer or model.producer_version
        model.metadata_props[0].value = model.metadata_props[0].value[:-1] + ',"weather":"fair"}'

    with pytest.raises(ModelError, match=said) as refused:
        read_exported(changed(narrow, change), name="model.onnx")
    assert ("use that version" in refused.value.hint) == bool(writer)


PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + bytes(17)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"architecture: resnet18\n" * 20, id="text"),
        pytest.param(PNG, id="png"),
        pytest.param(bytes(1000), id="zeros"),
        pytest.param(b"PK\x03\x04" + bytes(range(256)), id="a checkpoint"),
        pytest.param(onnx.ModelProto(ir_version=10).SerializeToString(), id="ONNX without a graph"),
    ],
)
def test_what_is_not_onnx_is_refused(content):
    with pytest.raises(ModelError, match="not an ONNX file") as caught:
        read_exported(content, name="holiday.onnx")
    assert caught.value.message.startswith("holiday.onnx")
    assert "\n" not in caught.value.message + caught.value.hint


def cut_points(data: bytes) -> list[int]:
    """Lengths inside the graph, and around the boundary of every field after it, where a parser notices nothing."""
    whole = onnx.load_from_string(data)
    rest = onnx.ModelProto(opset_import=whole.opset_import, metadata_props=whole.metadata_props)
    tail = len(data) - len(rest.SerializeToString())
    opset = len(onnx.ModelProto(opset_import=whole.opset_import).SerializeToString())
    edges = [tail - 1, tail, tail + 1, tail + opset - 1, tail + opset, tail + opset + 1, len(data) - 1]
    return [1, 2, 10, 1000, len(data) // 2, *edges]


def test_a_file_cut_short_is_refused_wherever_it_was_cut(narrow):
    for length in cut_points(narrow):
        with pytest.raises(ModelError) as caught:
            read_exported(narrow[:length], name="cut.onnx")
        assert caught.value.message.startswith("cut.onnx")
        assert "\n" not in caught.value.message
    read_exported(narrow, name="whole.onnx")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "weights.bin"}, "keeps its weights in other files"),
        ({"offset": "0"}, "stored externally but doesn't have a location"),  # by ONNX's checker
        ({}, "stored externally but doesn't have a location"),
    ],
)
def test_weights_in_other_files_are_refused(narrow, entries, words):
    def move_out(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[5]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)

    with pytest.raises(ModelError, match=words):
        onnx_from_bytes(changed(narrow, move_out), name="model.onnx")


def push_through(data: bytes) -> None:
    """Do what a build does to a file before its backend sees it, in two precisions."""
    model, _ = read_exported(data, name="model.onnx")
    for precision in ("fp32", "fp16"):
        spec = BuildSpec(backend="onnxruntime", precision=precision)
        lowered = lowering.lower(lowering.Recipe(model, spec, probe_cpu())).model
        check_onnx(bytes_from_onnx(lowered), name="lowered.onnx")


def test_damage_anywhere_is_a_model_error_or_goes_to_the_backend(narrow, caplog):
    """Bytes overwritten at random: what is still a sound graph is the backend's to refuse; nothing else may escape."""
    positions, generator = outside_the_weights(narrow), np.random.default_rng(0)
    assert 3000 < len(positions) < len(narrow)
    passed, refusals = 0, []
    for _ in range(1500):
        damaged = bytearray(narrow)
        for position in generator.choice(positions, generator.integers(1, 4)):
            damaged[position] = generator.integers(256)
        try:
            push_through(bytes(damaged))
            passed += 1
        except ModelError as error:
            refusals.append(error.message)
    assert passed + len(refusals) == 1500
    assert min(passed, len(refusals)) > 40
    for kind in ("cut short", "not UTF-8", "topologically sorted", "ShapeInferenceError", "damaged model card"):
        assert any(kind in message for message in refusals), kind
    assert not any("\n" in message or len(message) > 300 for message in refusals)
    assert "cannot be found in any scope" not in caplog.text  # what onnx_ir says of a graph that nobody has checked


def weight_of(model: onnx.ModelProto) -> onnx.TensorProto:
    """One that is left out of what is checked, under the smaller of the two limits."""
    return next(tensor for tensor in model.graph.initializer if tensor.name == "conv1.weight")


def test_a_weight_is_left_out_of_what_is_checked(narrow, large):
    model = onnx.load_from_string(narrow)
    left = {tensor.name for tensor in onnx_files._without_weights(model).graph.initializer}
    assert ("conv1.weight" in left) == (large == 1024)


def of_another_type(model: onnx.ModelProto) -> None:
    weight_of(model).data_type = onnx.TensorProto.INT32


def of_no_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 99


def too_short(model: onnx.ModelProto) -> None:
    weight_of(model).raw_data = weight_of(model).raw_data[:-1]


def of_nothing(model: onnx.ModelProto) -> None:
    model.graph.node[5].input[0] = "nothing"


def another_shape(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = CLASSES + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_another_type, r"Inferred elem type differs from existing elem type: \(6\) vs \(1\)"),
        (of_no_type, "Invalid tensor data type 99"),
        (of_nothing, "input 'nothing' of node: name: .* is not output of any previous nodes"),
        (unknown_operator, "No Op registered for Rely"),
        (another_shape, r"Inferred shape and existing shape differ in dimension 1: \(3\) vs \(4\)"),
    ],
)
def test_a_graph_that_is_not_sound_is_refused_with_the_checkers_reason(narrow, change, message):
    with pytest.raises(ModelError, match=f"model.onnx is not valid ONNX: .*{message}") as caught:
        onnx_from_bytes(changed(narrow, change), name="model.onnx")
    assert "\n" not in caught.value.message
    assert "resnet-deploy export" in caught.value.hint


def test_a_constant_that_is_too_short_is_refused(narrow):
    """By the checker since ONNX 1.20, and before by what reads the constants."""
    with pytest.raises(ModelError, match=r"model\.onnx is (not valid|a damaged) ONNX"):
        onnx_from_bytes(changed(narrow, too_short), name="model.onnx")


def of_more_numbers(model: onnx.ModelProto) -> None:
    weight_of(model).float_data.append(1.0)


def of_a_negative_size(model: onnx.ModelProto) -> None:
    weight_of(model).dims[:] = [-dim for dim in weight_of(model).dims]


def of_many_axes(model: onnx.ModelProto) -> None:
    """Whose product would take minutes."""
    weight_of(model).dims[:] = [2**62] * 200_000


def there_twice(model: onnx.ModelProto) -> None:
    """ONNX Runtime takes the first of the two, and onnx_ir the last."""
    other = onnx.numpy_helper.from_array(np.full(weight_of(model).dims, 7, np.float32), "conv1.weight")
    model.graph.initializer.insert(0, other)


def there_in_sparse_form_too(model: onnx.ModelProto) -> None:
    value = onnx.numpy_helper.from_array(np.ones(1, np.float32), "conv1.weight")
    index = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "index")
    model.graph.sparse_initializer.add(values=value, indices=index, dims=weight_of(model).dims)


def declared_of_another_shape(model: onnx.ModelProto) -> None:
    declare(model, onnx.TensorProto.FLOAT, list(weight_of(model).dims)[::-1])


def declared_of_another_type(model: onnx.ModelProto) -> None:
    declare(model, onnx.TensorProto.FLOAT16, weight_of(model).dims)


def declare(model: onnx.ModelProto, data_type: int, dims: list[int]) -> None:
    for value in [value for value in model.graph.value_info if value.name == "conv1.weight"]:
        model.graph.value_info.remove(value)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("conv1.weight", data_type, dims))


def of_an_older_format(model: onnx.ModelProto) -> None:
    model.ir_version = 3


CHANGES = (
    *(of_more_numbers, of_a_negative_size, of_many_axes, there_twice, there_in_sparse_form_too),
    *(declared_of_another_shape, declared_of_another_type, of_an_older_format),
)


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_checker_refuses_of_the_whole_is_refused(narrow, change):
    data = changed(narrow, change)
    with pytest.raises(ModelError, match="is not valid ONNX"):
        check_onnx(data, name="model.onnx")
    with pytest.raises(ModelError, match=r"model\.onnx is (not valid|a damaged) ONNX"):
        onnx_from_bytes(data, name="model.onnx")


def of_numbers_alone(model: onnx.ModelProto) -> None:
    tensor = weight_of(model)
    tensor.float_data.extend(np.frombuffer(tensor.raw_data, np.float32))
    tensor.ClearField("raw_data")


def an_input_as_well(model: onnx.ModelProto) -> None:
    """As files before IR version 4 had it: a default."""
    tensor = weight_of(model)
    model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


@pytest.mark.parametrize("change", [of_numbers_alone, an_input_as_well])
def test_constants_may_be_written_otherwise(narrow, change):
    constants = [onnx_from_bytes(data, name="it").graph.initializers for data in (narrow, changed(narrow, change))]
    for name, value in constants[0].items():
        np.testing.assert_array_equal(constants[1][name].const_value.numpy(), value.const_value.numpy())


@pytest.mark.parametrize("size", [0, 1, 127, 128, 10_000])
def test_the_checks_get_a_graph_without_its_weights(size, monkeypatch):
    """Whatever else is in the file: the same names and types."""
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [size]) for name in ("x", "y")]
    weight = onnx.numpy_helper.from_array(np.ones(size, np.float32), "weight")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "weight"], ["y"])], "g", *[[v] for v in values])
    graph.initializer.append(weight)
    model = onnx.helper.make_model(graph, producer_name="someone", functions=[], doc_string="words")
    model.metadata_props.add(key="a", value="b")
    checked = []
    monkeypatch.setattr(onnx_files, "check_onnx", lambda data, name: checked.append(onnx.load_from_string(data)))
    onnx_from_bytes(model.SerializeToString(), name="it")
    if 4 * size >= onnx_files._LARGE:
        del graph.initializer[:]
        graph.input.append(onnx.helper.make_tensor_value_info("weight", onnx.TensorProto.FLOAT, [size]))
        model.graph.CopyFrom(graph)
    assert checked == [model]


@pytest.mark.parametrize(
    "field",
    [b"resnet-deploy", b"layer1.conv1.weight", b"SAME_LOWER", b"batch"],
    ids=["producer", "tensor", "attribute", "dimension"],
)
def test_a_name_that_is_not_text_is_refused(narrow, field):
    """Protobuf parses it, and onnx_ir, which reads it too, could not write it again."""

    def pad_otherwise(model: onnx.ModelProto) -> None:
        pool = next(node for node in model.graph.node if node.op_type == "MaxPool")
        next(one for one in pool.attribute if one.name == "auto_pad").s = b"SAME_LOWER"

    data = changed(narrow, pad_otherwise)
    onnx_from_bytes(data, name="model.onnx")
    damaged = data.replace(field, b"\xbb" + field[1:])
    assert damaged != data
    with pytest.raises(ModelError, match=r"model\.onnx is a damaged ONNX file: it holds a name that is not UTF-8"):
        onnx_from_bytes(damaged, name="model.onnx")
