"""DLPack capsules in both directions, through ctypes: the exchange of arrays that PyTorch, CuPy, JAX and NumPy speak.

The protocol: https://dmlc.github.io/dlpack/latest/python_spec.html. A capsule holds one ``DLManagedTensor``; whoever
takes it renames the capsule and calls the tensor's deleter once, when done. One that nobody took calls it itself.

The deleter is Python's, through ctypes: where the last reader lets go while an exception is under way, ctypes replaces
that by a SystemError.
"""

import ctypes
import math
import struct
from typing import Any, Final, NamedTuple

import numpy as np

from resnet_deploy.errors import FeedError

CPU: Final = 1
CUDA: Final = 2
CUDA_MANAGED: Final = 13

_CODES: Final = {"i": 0, "u": 1, "f": 2}
_NAMES: Final = {
    (code, bits): f"{kind}{bits}" for code, kind in enumerate(("int", "uint", "float")) for bits in (8, 16, 32, 64)
}
_FRESH: Final = b"dltensor"


# data, device's kind and number, ndim, element's code, bits and lanes, shape, strides (in elements; NULL where
# C-contiguous), byte offset
_TENSOR: Final = struct.Struct("@PiiiBBHPPQ")
_TensorBytes = ctypes.c_char * _TENSOR.size
# What follows the tensor in DLManagedTensor: the producer's context and the deleter.
_REST: Final = struct.Struct("@PP")


_Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# Own prototypes: those of ctypes.pythonapi are shared with whoever else sets them. Capsules go by address, for in its
# destructor one is no longer an object that may be referred to.
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class Described(NamedTuple):
    """What a capsule says of its array.

    Attributes:
        pointer: Address of the first element.
        shape: In elements.
        strides: In elements; None where C-contiguous.
        dtype: NumPy's name of the type.
        device: Kind and number of the device, as DLPack counts them.
        capsule: Keeps the memory: its destructor tells the producer that it is no longer needed.
    """

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: str
    device: tuple[int, int]
    capsule: object


def describe(capsule: Any) -> Described:
    """Read what a capsule holds, without taking it: while it lives, so does the array.

    So the producer's own destructor deletes the array, once, as it does for any capsule that nobody takes.

    Raises:
        FeedError: If it is no fresh capsule, or its elements are of a kind that NumPy has no name for.
    """
    try:
        address = _pointer_in(id(capsule), _FRESH)
    except ValueError:
        raise FeedError("no DLPack capsule that can still be taken", hint="call __dlpack__ for every use") from None
    fields = _TENSOR.unpack_from(_TensorBytes.from_address(address))
    data, kind, ordinal, ndim, code, bits, lanes, shape, strides, offset = fields
    dtype = _NAMES.get((code, bits))
    if dtype is None or lanes != 1:
        raise FeedError(
            f"DLPack elements of code {code}, {bits} bits and {lanes} lanes", hint="give an array of uint8 or float32"
        )
    integers = ctypes.c_int64 * ndim
    lengths = tuple(integers.from_address(shape)[:])  # the slice is much faster than iterating
    steps = tuple(integers.from_address(strides)[:]) if strides else None
    return Described(data + offset, lengths, steps, dtype, (kind, ordinal), capsule)


def give(pointer: int, shape: tuple[int, ...], dtype: str, device: tuple[int, int], owner: object) -> Any:
    """Put a C-contiguous array into a capsule; ``owner`` is kept alive until whoever takes it is done.

    Args:
        pointer: Address of the first element.
        shape: In elements.
        dtype: NumPy's name of the type.
        device: Kind and number of the device, as DLPack counts them.
        owner: What the memory belongs to.
    """
    kind = np.dtype(dtype)
    dimensions = (ctypes.c_int64 * len(shape))(*shape)
    strides = (ctypes.c_int64 * len(shape))(*(math.prod(shape[axis + 1 :]) for axis in range(len(shape))))
    addresses = (ctypes.addressof(dimensions), ctypes.addressof(strides))
    element = (_CODES[kind.kind], kind.itemsize * 8, 1)
    tensor = _TENSOR.pack(pointer, *device, len(shape), *element, *addresses, 0)
    managed = ctypes.create_string_buffer(tensor + _REST.pack(0, ctypes.cast(_deleter, ctypes.c_void_p).value), 64)
    address = ctypes.addressof(managed)
    _given[address] = (managed, dimensions, strides, owner)
    return _new_capsule(address, _FRESH, ctypes.cast(_destructor, ctypes.c_void_p))


# What capsules point to, by address, until their deleter is called.
_given: dict[int, tuple[object, ...]] = {}


def _delete(address: int, forget: Any = _given.pop) -> None:
    """Serve as the deleter of what ``give`` made."""
    forget(address, None)


def _destroy(capsule: int, is_valid: Any = _is_valid, pointer_in: Any = _pointer_in, delete: Any = _delete) -> None:
    """Serve as the destructor of a capsule: delete what nobody took."""
    if is_valid(capsule, b"dltensor"):
        delete(pointer_in(capsule, b"dltensor"))


_deleter = _Callback(_delete)
_destructor = _Callback(_destroy)
# Other libraries may call these after this module was cleared, when the interpreter ends: they stay for good.
for _callback in (_deleter, _destructor):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_callback))
