"""What TensorRT's ``EngineInspector`` says of an engine, as kernels: its JSON of 10.x and of 11.x.

Both have ``Layers``; an engine built with ``ProfilingVerbosity.DETAILED`` has an object for each, others have a name
alone. In 10.x a tensor has one field, ``Format/Datatype``, in words ("Channel major FP16 format where channel % 8 ==
0"), and the engine has ``Bindings``, names. In 11.x that field is split in two, and ``I/O Tensors`` stand for the
bindings. Sources: TensorRT's documentation, "Engine Inspector" and "Migrating IEngineInspector Usage from TensorRT
10.x to 11.x"; engines of 8.x among the samples of trt-engine-explorer; NVIDIA's TensorRT cookbook, which reads
``Datatype`` and ``Format`` of a layer's tensors where the documentation has ``DataType`` of the engine's: names are
compared without regard to case.
"""

import json
import re
from typing import Any, Final

import msgspec

from resnet_deploy.compiled.layers import BATCH, CompiledGraph, Kind, LayerInfo, Tensor
from resnet_deploy.compiled.steps import fused_by, kind_of, nodes_of, steps_of
from resnet_deploy.errors import BundleError

MAX_BYTES: Final = 64_000_000
_END: Final = 1 << 31  # TensorRT's dimensions have had 32 bits, and no ResNet's needs more
_DTYPES: Final = (  # first match wins: UInt8 before Int8, BF16 before FP16
    (r"uint8", "uint8"),
    (r"int8", "int8"),
    (r"int32", "int32"),
    (r"int64", "int64"),
    (r"fp8|float8", "float8_e4m3fn"),
    (r"bf16|bfloat", "bfloat16"),
    (r"fp16|half|float16", "float16"),
    (r"fp32|float", "float32"),
    (r"bool", "bool"),
)
_KINDS: Final[tuple[tuple[str, Kind], ...]] = (  # by what a layer type contains; first match wins
    (r"noop|constant|signal|wait|shape_call", "no-op"),
    (r"dequantize", "dequantize"),
    (r"quantize", "quantize"),
    (r"conv|corr", "convolution"),
    (r"gemm|matrixmultiply|matmul|fullyconnected|fully_connected", "matrix multiply"),
    (r"pool", "pooling"),
    (r"reduce", "reduction"),
    (r"reformat|shuffle|cast|copy|slice|concat", "reformat"),
    (r"pointwise|elementwise|activation|scale|unary|kgen|myelin", "pointwise"),
)
_REBUILD: Final = "build the engine again with ProfilingVerbosity.DETAILED"


def read_inspector(data: bytes) -> CompiledGraph:
    """Read the kernels out of the inspector's JSON.

    Raises:
        BundleError: If it is not that, or was taken of an engine that keeps names alone.
    """
    found = _decode(data)
    layers = found.get("Layers")
    if not isinstance(layers, list) or not layers:
        raise BundleError("the layers cannot be read: there is no list of them", hint=_REBUILD)
    if any(isinstance(layer, str) for layer in layers):
        raise BundleError("the layers cannot be read: the engine keeps their names alone", hint=_REBUILD)
    if not all(isinstance(layer, dict) for layer in layers):
        raise BundleError("the layers cannot be read: one is neither a name nor an object", hint=_REBUILD)
    version = "11" if "I/O Tensors" in found else "10"
    variable = _variable_names(found, layers)
    return CompiledGraph(f"the inspector of TensorRT {version}", tuple(_layer(layer, variable) for layer in layers))


def _decode(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_BYTES:
        raise BundleError(f"the layers cannot be read: {len(data)} bytes, more than the {MAX_BYTES} that are read")
    try:
        found = json.loads(data, strict=False)  # metadata may hold raw separators
        msgspec.json.encode(found)  # half a surrogate pair could be neither shown nor written
    except (ValueError, RecursionError) as error:
        raise BundleError(f"the layers cannot be read: {error}", hint=_REBUILD) from error
    if not isinstance(found, dict):
        raise BundleError("the layers cannot be read: not a JSON object", hint=_REBUILD)
    return found


def _variable_names(found: dict[str, Any], layers: list[dict[str, Any]]) -> set[str]:
    """Names of tensors that are not part of the engine: what goes in, and what a layer other than a constant writes."""
    bindings = [one.get("Name") if isinstance(one, dict) else one for one in _list(found, "Bindings", "I/O Tensors")]
    written = [
        one.get("Name")
        for layer in layers
        if _word(layer, "LayerType").lower() != "constant"
        for one in _objects(layer, "Outputs")
    ]
    return {name for name in (*bindings, *written) if isinstance(name, str)}


def _layer(layer: dict[str, Any], variable: set[str]) -> LayerInfo:
    name, layer_type = _word(layer, "Name"), _word(layer, "LayerType")
    inputs = tuple(_tensor(one, variable) for one in _objects(layer, "Inputs")) + _weights(layer)
    outputs = tuple(_tensor(one, variable) for one in _objects(layer, "Outputs"))
    steps = steps_of(name)
    kind = kind_of(steps, inputs, outputs) if steps else _kind(layer_type)
    if _word(layer, "Origin") == "QDQ" and kind == "reformat":  # what a Q or DQ by itself is called
        kind = "quantize" if any(tensor.dtype == "int8" for tensor in outputs) else "dequantize"
    fused = fused_by(steps, inputs, kind) if steps else _fused(layer, kind, inputs, outputs)
    named = nodes_of(_word(layer, "Metadata")) or tuple(name.split(" + "))
    return LayerInfo(name, kind, inputs, outputs, fused, named, _word(layer, "TacticName"))


def _kind(layer_type: str) -> Kind:
    return next((kind for pattern, kind in _KINDS if re.search(pattern, layer_type.lower())), "other")


def _tensor(found: dict[str, Any], variable: set[str]) -> Tensor:
    """Read one tensor, whose fields are found by name without regard to case."""
    fields = {str(key).lower(): value for key, value in found.items()}
    both = fields.get("format/datatype", "")
    dtype, layout = fields.get("datatype", both), fields.get("format", both)
    dimensions = fields.get("dimensions")
    is_shape = isinstance(dimensions, list) and all(isinstance(one, int) and BATCH <= one < _END for one in dimensions)
    name = str(fields.get("name", ""))
    shape = tuple(dimensions) if is_shape and isinstance(dimensions, list) else ()
    return Tensor(name, _dtype(str(dtype)), shape, str(layout), name not in variable)


def _weights(layer: dict[str, Any]) -> tuple[Tensor, ...]:
    """The weights of layers that have them as a field and not as an input."""
    for key in ("Weights", "ConvWeights"):
        weights = layer.get(key)
        if isinstance(weights, dict) and isinstance(weights.get("Count"), int):
            return (Tensor("weights", _dtype(str(weights.get("Type", ""))), (weights["Count"],), "", constant=True),)
    return ()


def _fused(
    layer: dict[str, Any], kind: Kind, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]
) -> tuple[str, ...]:
    operation = _word(layer, "Operation", "ElementwiseOperation").upper()
    if kind == "pointwise":
        residual = sum(not tensor.constant for tensor in inputs) > 1
        return ("add",) if residual and ("SUM" in operation or not operation) else ()
    if kind not in ("convolution", "matrix multiply"):
        return ()
    activation = _word(layer, "Activation", "ConvActivation").upper()
    found = {
        "bias": bool(layer.get("HasBias")) or isinstance(layer.get("ConvBias"), dict),
        "add": sum(not tensor.constant for tensor in inputs) > 1,
        "relu": "RELU" in activation or bool(layer.get("HasReLU")),
        "pooling": "PoolingType" in layer or "PoolingPoolingType" in layer,
        "quantize": any(tensor.dtype == "int8" for tensor in outputs),
    }
    return tuple(what for what, is_so in found.items() if is_so)


def _dtype(words: str) -> str:
    return next((dtype for pattern, dtype in _DTYPES if re.search(pattern, words.lower())), "")


def _word(layer: dict[str, Any], *keys: str) -> str:
    return next((layer[key] for key in keys if isinstance(layer.get(key), str)), "")


def _list(found: dict[str, Any], *keys: str) -> list[Any]:
    return next((found[key] for key in keys if isinstance(found.get(key), list)), [])


def _objects(layer: dict[str, Any], key: str) -> list[dict[str, Any]]:
    return [one for one in _list(layer, key) if isinstance(one, dict)]
