"""Tensors that a model keeps in other files, found in its bytes wherever ONNX allows a tensor."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx", reason="onnx writes the models")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.external_data_helper import set_external_data  # noqa: E402

from resnet_deploy.errors import FileError  # noqa: E402
from resnet_deploy.onnx_wire import has_external_tensors, keeps_weights_elsewhere  # noqa: E402


def tensor(*, elsewhere):
    made = numpy_helper.from_array(np.arange(6, dtype=np.float32), "w")
    if elsewhere:
        set_external_data(made, "secret.bin", 0, 24)
        made.ClearField("raw_data")
    return made


def graph(nodes=(), tensors=(), sparse=()):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [6]) for name in ("x", "location")]
    return helper.make_graph(
        list(nodes), "allocation", values[:1], values[1:], list(tensors), sparse_initializer=sparse
    )


def in_initializer(one):
    return helper.make_model(graph([helper.make_node("Add", ["x", "w"], ["location"])], [one]))


def in_node(one):
    return helper.make_model(graph([helper.make_node("Constant", [], ["location"], value=one)]))


def in_list_of_node(one):
    return helper.make_model(graph([helper.make_node("Any", [], ["location"], values=[one])]))


def in_branch(one):
    inner = graph([helper.make_node("Constant", [], ["location"], value=one)])
    return helper.make_model(graph([helper.make_node("If", ["x"], ["location"], then_branch=inner)]))


def in_branches(one):
    return helper.make_model(
        graph([helper.make_node("Any", ["x"], ["location"], branches=[graph(), graph([], [one])])])
    )


def in_sparse(one):
    indices = numpy_helper.from_array(np.arange(6), "indices")
    return helper.make_model(graph(sparse=[helper.make_sparse_tensor(one, indices, [9])]))


def in_sparse_of_node(one):
    indices = numpy_helper.from_array(np.arange(6), "indices")
    sparse = helper.make_sparse_tensor(one, indices, [9])
    return helper.make_model(graph([helper.make_node("Constant", [], ["location"], sparse_value=sparse)]))


def in_function(one):
    node = helper.make_node("Constant", [], ["location"], value=one)
    function = helper.make_function("domain", "f", ["x"], ["location"], [node], [helper.make_opsetid("", 20)])
    return helper.make_model(graph(), functions=[function])


def in_training(one):
    model = helper.make_model(graph())
    model.training_info.add(initialization=graph(), algorithm=graph([], [one]))
    return model


PLACES = (
    *(in_initializer, in_node, in_list_of_node, in_branch, in_branches),
    *(in_sparse, in_sparse_of_node, in_function, in_training),
)


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_another_file_is_found_wherever_it_may_stand(place, tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(place(tensor(elsewhere=True)).SerializeToString())
    assert keeps_weights_elsewhere(file)


@pytest.mark.parametrize("place", PLACES)
def test_one_that_is_in_the_file_is_none_whatever_it_is_called(place, tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(place(tensor(elsewhere=False)).SerializeToString())
    assert b"location" in file.read_bytes()
    assert not keeps_weights_elsewhere(file)


def answer(data):
    try:
        return has_external_tensors(data)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("whole", [in_branch(tensor(elsewhere=True)).SerializeToString()])
def test_every_truncation_is_damage_or_shows_it(whole):
    """What a file has before it is cut short may not be whole: no length leads beyond the end."""
    answers = {answer(whole[:length]) for length in range(whole.find(b"location") + 8, len(whole))}
    assert answers <= {True, False, "it was cut short"}
    assert "it was cut short" in answers
    assert has_external_tensors(whole)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_are_answered(before, after):
    with contextlib.suppress(ValueError):
        assert has_external_tensors(before + b"location" + after) in (True, False)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x3a\x7flocation", "it was cut short"),  # a graph of 127 bytes
        (b"\x0a" + b"\xff" * 10 + b"\x01location", "it was cut short"),  # a length of eleven bytes
        (b"\x3blocation", "it has a field of wire type 3"),  # a group, which ONNX has none of
        (b"\x02\x08location", "it has a field without a number"),
    ],
)
def test_what_is_no_message_is_damage(data, words):
    with pytest.raises(ValueError, match=words):
        has_external_tensors(data)


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ValueError, match="it is empty"):
        keeps_weights_elsewhere(tmp_path / "empty.onnx")
    with pytest.raises(FileError, match="missing"):
        keeps_weights_elsewhere(tmp_path / "missing.onnx")
