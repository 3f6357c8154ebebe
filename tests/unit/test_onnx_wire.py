"""Tensors that a model keeps in other files, found in its bytes wherever ONNX allows a tensor."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("onnx", reason="onnx writes the models")

from onnx_places import PLACES, in_branch, tensor

from resnet_deploy.onnx_wire import has_external_tensors


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_another_file_is_found_wherever_it_may_stand(place):
    assert has_external_tensors(place(tensor(elsewhere=True)).SerializeToString())


@pytest.mark.parametrize("place", PLACES)
def test_one_that_is_in_the_file_is_none_whatever_it_is_called(place):
    data = place(tensor(elsewhere=False)).SerializeToString()
    assert b"location" in data
    assert not has_external_tensors(data)


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
