"""Arrays of other libraries in the host's memory, seen as NumPy arrays without a copy."""

from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from resnet_deploy.errors import FeedError

if TYPE_CHECKING:
    from resnet_deploy.protocols import Array

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
        if device()[0] not in _ON_HOST:
            return None
        try:
            return np.from_dlpack(array)
        except (BufferError, RuntimeError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            hint = "give a plain array of a type that NumPy has, such as x.detach()"
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
    if not view.flags.writeable:
        # NumPy before 2.1 cannot be told by DLPack that memory may be written to.
        raise FeedError("out is read-only", hint="give an array that can be written to, such as tensor.numpy()")
    if not view.flags.carray:
        raise FeedError("out is not contiguous", hint="give a C-contiguous and aligned array, or none")
    return view


def require_apart(out: "Array", images: "Array") -> None:
    """Refuse an ``out`` in the memory that the images are in; by their bounds, which for strided images is strict.

    Raises:
        FeedError: If the two may overlap.
    """
    if np.may_share_memory(out, images):
        raise FeedError("out overlaps with the images", hint="give an array of its own, or none")
