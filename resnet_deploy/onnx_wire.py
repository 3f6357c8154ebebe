"""Whether an ONNX file keeps tensors in other files, told from its bytes, where the package onnx need not be installed.

A runtime reads such tensors from beside the model, or from the working directory: they would be in no digest of a
bundle. What is looked for is `external_data` and `data_location` of TensorProto, wherever a model may hold one; field
numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, the encoding is that of
https://protobuf.dev/programming-guides/encoding/.
"""

from typing import Final

# What is inside what, by number of the field.
_FIELDS: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "tensor": {},
}
_EXTERNAL_DATA: Final = 13
_DATA_LOCATION: Final = 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT: Final = 10
_64_BITS: Final = (1 << 64) - 1  # what is above is dropped, as protobuf does


def has_external_tensors(data: bytes) -> bool:
    """Whether a tensor of a serialized model is declared to lie in another file.

    Raises:
        ValueError: If ``data`` is no protobuf message, as far as it was read.
    """
    # Such a tensor says where it lies, under this key: without the word, which is quick to look for, there is none.
    if data.find(b"location") < 0:
        return False
    waiting = [(0, len(data), "model")]
    while waiting:
        at, end, kind = waiting.pop()
        while at < end:
            key, at = _varint(data, at, end)
            number, wire = key >> 3, key & 7
            if number == 0:
                raise ValueError("it has a field without a number")
            value, at = _value(data, at, end, wire)
            if kind == "tensor":
                is_elsewhere = wire == _VARINT and value != 0
                if (number == _DATA_LOCATION and is_elsewhere) or (number == _EXTERNAL_DATA and wire == _BYTES):
                    return True
            elif wire == _BYTES and number in _FIELDS[kind]:
                waiting.append((at - value, at, _FIELDS[kind][number]))
    return False


def _value(data: bytes, at: int, end: int, wire: int) -> tuple[int, int]:
    """Read past a value; return a varint's number or the length of what has one, and where the next field begins."""
    if wire == _VARINT:
        return _varint(data, at, end)
    if wire == _BYTES:
        length, at = _varint(data, at, end)
    elif wire in (_FIXED64, _FIXED32):
        length = 8 if wire == _FIXED64 else 4
    else:
        raise ValueError(f"it has a field of wire type {wire}")
    if length > end - at:
        raise ValueError("it was cut short")
    return length, at + length


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    number = 0
    for shift, index in enumerate(range(at, min(end, at + _LONGEST_VARINT))):
        byte = data[index]
        number |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return number & _64_BITS, index + 1
    raise ValueError("it was cut short")
