"""Arrays of other libraries in the host's memory, seen as NumPy arrays without a copy."""

from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from resnet_deploy.errors import FeedError

if TYPE_CHECKING:
    from resnet_deploy.protocols import Array

_TOLD_BY_DLPACK: Final = np.lib.NumpyVersion(np.__version__) >= "2.2.5"  # whether memory may be written to
_ON_HOST: Final = (1, 3, 11)  # DLPack's numbers of plain memory, and of memory pinned by CUDA and by ROCm


class SupportsDlpack(Protocol):
    """An array that other libraries can read where it is: of NumPy, PyTorch, JAX, TensorFlow, CuPy."""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """Give a capsule; see DLPack's Python specification."""
        ...

    def __dlpack_device__(self) -> tuple[int, int]:
        """Kind and number of the device, as DLPack counts them."""
        ...


def view_on_host(array: Any) -> "Array | None":
    """See an array in the host's memory as NumPy's, without a copy; None if it is no such array.

    Through DLPack where there is one, else NumPy's array interface. The view keeps the memory.

    Raises:
        FeedError: If its library does not share it, such as a tensor that requires a gradient.
    """
    if isinstance(array, np.ndarray):
        return array
    device = getattr(array, "__dlpack_device__", None)
    if device is not None:
        try:
            return np.from_dlpack(array) if device()[0] in _ON_HOST else None
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            hint = "give a dense array of a type that NumPy has: x.detach(), x.to_dense(), x.float() or x.byte()"
            raise FeedError(f"the array's library does not share it: {reason}", hint=hint) from error
    return np.asarray(array) if hasattr(array, "__array_interface__") else None


def view_of_out(out: Any, shape: tuple[int, ...], dtype: str) -> "Array":
    """See the array that logits are to be written into as NumPy's.

    Args:
        out: Of any library that ``view_on_host`` can see.
        shape: What it has to have, in elements.
        dtype: NumPy's name of the type that it has to have.

    Raises:
        FeedError: If it is no array in the host's memory, has another shape or type, is not C-contiguous and aligned,
            or is read-only.
    """
    view = view_on_host(out)
    if view is None:
        kind = type(out)
        raise FeedError(
            f"out is {kind.__module__}.{kind.__qualname__}, the images are in the host's memory",
            hint="give a NumPy array, or a tensor that is on the CPU",
        )
    if view.shape != shape or view.dtype != dtype:
        raise FeedError(
            f"out is {view.dtype} {view.shape}, the logits are {dtype} {shape}",
            hint="give an array of that type and shape, or none",
        )
    if not view.flags.writeable and not _TOLD_BY_DLPACK:
        view = _as_numpys_protocol_shares_it(out, view)
    if not view.flags.writeable:
        raise FeedError("out is read-only", hint="give an array that can be written to")
    if not view.flags.c_contiguous:
        raise FeedError("out is not contiguous", hint="give a C-contiguous array, or none")
    if not view.flags.aligned:
        raise FeedError(f"out is not aligned to {view.itemsize} bytes", hint="give an array of its own, or none")
    return view


def _as_numpys_protocol_shares_it(out: Any, view: "Array") -> "Array":
    """See ``out`` as its library gives it to NumPy, if that is the same array; ``view`` if not."""
    try:
        shared = np.asarray(out)
    except (RuntimeError, TypeError, ValueError):
        return view
    ways = [(one.ctypes.data, one.shape, one.strides, one.dtype) for one in (shared, view)]
    return shared if ways[0] == ways[1] else view


def view_of_logits(logits: Any, classes: int) -> "Array":
    """See the logits of several images as NumPy's.

    Args:
        logits: Of any library that ``view_on_host`` can see.
        classes: How many each row has to have.

    Raises:
        FeedError: If they are not floats of shape (N, classes), or not finite.
    """
    view = view_on_host(logits)
    if view is None:
        kind = type(logits)
        hint = "give an array in the host's memory"
        raise FeedError(f"logits are of type {kind.__module__}.{kind.__qualname__}", hint=hint)
    if view.dtype.kind != "f" or view.ndim != 2 or view.shape[1] != classes:
        hint = "write logits[None]" if view.shape == (classes,) else "give what the engine or submit returns"
        raise FeedError(f"logits are {view.dtype} {view.shape}, expected are floats (N, {classes})", hint=hint)
    finite = np.isfinite(view).all(axis=1)
    if not finite.all():
        hint = "compare the engine with its model: resnet-deploy verify"
        raise FeedError(f"row {finite.argmin()} of the logits is not finite", hint=hint)
    return view


class _Writable:
    """Says of an array's memory that it may be written to."""

    def __init__(self, array: "Array") -> None:
        self._array = array  # keeps the memory
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def writable_view(array: "Array") -> "Array":
    """See an array as one that may be written to, for a library that asks for that and does not write."""
    return array if array.flags.writeable else np.asarray(_Writable(array))


def require_apart(out: "Array", images: "Array") -> None:
    """Refuse an ``out`` in the memory that the images are in; by their bounds, which for strided images is strict.

    Raises:
        FeedError: If the two may overlap.
    """
    if np.may_share_memory(out, images):
        raise FeedError("out overlaps with the images", hint="give an array of its own, or none")
