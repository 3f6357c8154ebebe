"""Models with one tensor, in each place where ONNX allows one; what is called after it has "location" in its name."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data


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
