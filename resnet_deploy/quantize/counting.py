"""Extremes and counts of a piece of a tensor: what calibration does with every activation of every image.

In C, where the package was installed with a compiler (``counting.c``); in NumPy otherwise, which takes more than twice
as long, and holds the interpreter's lock for half of it. Both give the same, to the last count.
"""

import ctypes
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HALF: Final = 4096  # bins on either side of zero
BINS: Final = 2 * HALF
LIBRARY: Final = Path(__file__).with_name("libcounting.so")
_INTERFACE: Final = 2  # of the functions in C; as there


class Counter(Protocol):
    """Looks at pieces of at most ``piece`` values: (N,) float32, contiguous and aligned, N at least 1.

    Attributes:
        piece: How many values are best looked at in one go.
        turn: Entered by a thread before it counts a whole image.
    """

    piece: int
    turn: AbstractContextManager[object]

    def count(
        self, values: "NDArray[np.float32]", scale: float, counts: "NDArray[np.int64]"
    ) -> tuple[int, float, float]:
        """Count values from the first on, as long as they are within the range, and find the extremes of all of them.

        Args:
            values: The piece.
            scale: Bins per unit, a power of two.
            counts: (BINS,); element HALF + i grows by how many values have trunc(value * scale) = i.

        Returns:
            How many were counted: all of them where each has its i in (-HALF, HALF). Then the smallest and the largest
            value of the piece; one of them is not finite where any value is not.
        """


class NumpyCounter:
    """A ``Counter`` that is there everywhere."""

    piece = 1 << 16  # whose working copies stay in a core's cache from one pass to the next
    # NumPy lets go of the interpreter's lock several times for each piece: two threads that count wait for each other
    # more often than one that waits until the other is through.
    turn: AbstractContextManager[object] = Lock()
    # Neighbours are counted in tables of their own: half of all values are zeros after a ReLU, and a processor that
    # adds to the same element twice in a row waits for the first sum before it begins the second.
    _tables = 2
    _offsets = np.arange(piece, dtype=np.int32) % _tables * BINS + HALF

    def count(
        self, values: "NDArray[np.float32]", scale: float, counts: "NDArray[np.int64]"
    ) -> tuple[int, float, float]:
        """As ``Counter.count``."""
        low, high = float(values.min()), float(values.max())
        limit = HALF / scale
        if not (low > -limit and high < limit):
            return 0, low, high
        index, place = np.empty(values.size, np.int32), np.empty(values.size, np.intp)
        np.multiply(values, np.float32(scale), out=index, casting="unsafe")  # toward zero, as in C
        np.add(index, self._offsets[: values.size], out=place)
        for table in np.bincount(place, minlength=self._tables * BINS).reshape(self._tables, BINS):
            counts += table
        return values.size, low, high


class NativeCounter:
    """A ``Counter`` in C, during whose calls other threads run.

    Args:
        library: What ``counting.c`` was compiled to.

    Raises:
        OSError: If it cannot be loaded, or is of another version.
    """

    piece = 1 << 20  # so that tables are added up once for most tensors
    turn: AbstractContextManager[object] = nullcontext()

    def __init__(self, library: Path) -> None:
        loaded = ctypes.CDLL(str(library))
        try:
            found = tuple(ctypes.c_int32.in_dll(loaded, name).value for name in ("interface", "bins_on_either_side"))
        except ValueError:
            found = ()
        if found != (_INTERFACE, HALF):
            raise OSError(f"{library} was compiled from another version's source")
        values = np.ctypeslib.ndpointer(np.float32, ndim=1, flags=("C", "A"))
        self._count = loaded.count
        counts = np.ctypeslib.ndpointer(np.int64, shape=(BINS,), flags=("C", "A", "W"))
        self._count.argtypes = (
            values,
            ctypes.c_size_t,
            ctypes.c_float,
            counts,
            np.ctypeslib.ndpointer(np.float32, shape=(2,)),
        )
        self._count.restype = ctypes.c_size_t

    def count(
        self, values: "NDArray[np.float32]", scale: float, counts: "NDArray[np.int64]"
    ) -> tuple[int, float, float]:
        """As ``Counter.count``."""
        found = np.empty(2, np.float32)
        counted = self._count(values, values.size, scale, counts, found)
        return int(counted), float(found[0]), float(found[1])


def find_counter() -> tuple[Counter, str]:
    """Return the one in C, or NumPy's and why that is not taken."""
    if not LIBRARY.exists():
        return NumpyCounter(), "the package was built without a C compiler"
    try:
        return NativeCounter(LIBRARY), ""
    except OSError as error:
        return NumpyCounter(), f"the library does not load: {error}"


COUNTER, NOT_NATIVE = find_counter()
