"""The normalisation of the float32 contract as an ONNX graph of its own, for Triton to run before an engine.

It does what ``images`` does to pixels that are cropped, in the same order and precision, so that it gives the same
tensor to the last bit on a CPU; a test holds the two against each other for every value of a pixel.
"""

from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resnet_deploy.specs import INPUT_NAME

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resnet_deploy.contract import Preprocess

OUTPUT_NAME: Final = "normalized"
# Older than the engines': these operators mean the same since, and any server's ONNX Runtime takes them.
_OPSET: Final = 13
_IR_VERSION: Final = 8


def normalization_graph(contract: "Preprocess") -> bytes:
    """Make the graph of a float32 contract.

    Args:
        contract: Its mean, std, image size, and whose rule it is.

    Returns:
        A serialized model: ``images`` (batch, side, side, 3) uint8 to ``normalized`` (batch, 3, side, side) float32.
        Equal contracts give equal bytes.
    """
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (contract.mean, contract.std))
    # In the order of `images._normalized`; MLPerf's rule only subtracts.
    steps: tuple[tuple[str, NDArray[np.float32]], ...] = (
        ("Div", np.array(255, np.float32)),
        ("Sub", mean),
        ("Div", std),
    )
    if contract.interpolation == "area":
        steps = (("Sub", np.array([255 * value for value in contract.mean], np.float32).reshape(1, 3, 1, 1)),)
    nodes = [
        helper.make_node("Transpose", [INPUT_NAME], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["values0"], to=TensorProto.FLOAT),
    ]
    constants = []
    for number, (operator, constant) in enumerate(steps):
        constants.append(numpy_helper.from_array(constant, f"constant{number}"))
        result = OUTPUT_NAME if number == len(steps) - 1 else f"values{number + 1}"
        nodes.append(helper.make_node(operator, [f"values{number}", f"constant{number}"], [result]))
    side = contract.image_size
    graph = helper.make_graph(
        nodes,
        "normalization",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["batch", side, side, 3])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["batch", 3, side, side])],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="resnet-deploy"
    )
    onnx.checker.check_model(model, full_check=True)
    written: bytes = model.SerializeToString(deterministic=True)
    return written
