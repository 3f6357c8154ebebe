"""DLPack capsules in both directions, through ctypes: the exchange of arrays that PyTorch, CuPy, JAX and NumPy speak.

The protocol: https://dmlc.github.io/dlpack/latest/python_spec.html. A capsule holds one ``DLManagedTensor``; whoever
takes it renames the capsule and calls the tensor's deleter once, when done. One that nobody took calls it itself.
"""

import ctypes
import math
import weakref
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from resnet_deploy.errors import FeedError

CPU: Final = 1
CUDA: Final = 2
CUDA_MANAGED: Final = 13

_KINDS: Final = {0: "int", 1: "uint", 2: "float"}
_CODES: Final = {"i": 0, "u": 1, "f": 2}
_FRESH: Final = b"dltensor"
_TAKEN: Final = b"used_dltensor"


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("ordinal", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),  # in elements; NULL where C-contiguous
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


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
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))


@dataclass(frozen=True, eq=False)
class Taken:
    """An array taken out of a capsule; its producer keeps the memory until this is collected.

    Attributes:
        pointer: Address of the first element.
        shape: In elements.
        strides: In bytes; None where C-contiguous.
        dtype: NumPy's name of the type.
        device: Kind and number of the device, as DLPack counts them.
    """

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: str
    device: tuple[int, int]


def take(capsule: Any) -> Taken:
    """Take the array out of a capsule, which cannot be taken again.

    Raises:
        FeedError: If it is no fresh capsule, or its elements are of a kind that NumPy has no name for.
    """
    if not _is_valid(id(capsule), _FRESH):
        raise FeedError("no DLPack capsule that can still be taken", hint="call __dlpack__ for every use")
    address = _pointer_in(id(capsule), _FRESH)
    managed = _ManagedTensor.from_address(address)
    tensor = managed.tensor
    dtype = tensor.dtype
    if dtype.code not in _KINDS or dtype.lanes != 1:
        raise FeedError(f"DLPack elements of code {dtype.code} and {dtype.lanes} lanes", hint="give uint8 or float32")
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    size = dtype.bits // 8
    strides = tuple(tensor.strides[axis] * size for axis in range(tensor.ndim)) if tensor.strides else None
    pointer = (tensor.data or 0) + tensor.byte_offset
    taken = Taken(
        pointer, shape, strides, f"{_KINDS[dtype.code]}{dtype.bits}", (tensor.device.kind, tensor.device.ordinal)
    )
    _rename(id(capsule), _TAKEN)
    if managed.deleter:
        weakref.finalize(taken, _Callback(managed.deleter), address)
    return taken


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
    tensor = _Tensor(
        pointer,
        _Device(*device),
        len(shape),
        _DataType(_CODES[kind.kind], kind.itemsize * 8, 1),
        dimensions,
        strides,
        0,
    )
    managed = _ManagedTensor(tensor, None, ctypes.cast(_deleter, ctypes.c_void_p))
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
