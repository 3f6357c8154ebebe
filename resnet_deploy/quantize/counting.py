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
_INTERFACE: Final = 1  # of the functions in C; as there


class Counter(Protocol):
    """Looks at pieces of at most ``piece`` values: (N,) float32, contiguous and aligned, N at least 1.

    Attributes:
        piece: How many values are best looked at in one go.
        turn: Entered by a thread before it counts a whole image.
    """

    piece: int
    turn: AbstractContextManager[object]

    def extremes(self, values: "NDArray[np.float32]") -> tuple[float, float]:
        """Return the smallest and the largest value; one of them is not finite where any value is not."""

    def add(self, values: "NDArray[np.float32]", scale: float, counts: "NDArray[np.int64]") -> None:
        """Add to ``counts[HALF + i]`` how many values have trunc(value * scale) = i, which lies in (-HALF, HALF)."""


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

    def extremes(self, values: "NDArray[np.float32]") -> tuple[float, float]:
        """As ``Counter.extremes``."""
        return float(values.min()), float(values.max())

    def add(self, values: "NDArray[np.float32]", scale: float, counts: "NDArray[np.int64]") -> None:
        """As ``Counter.add``."""
        index, place = np.empty(values.size, np.int32), np.empty(values.size, np.intp)
        np.multiply(values, np.float32(scale), out=index, casting="unsafe")  # toward zero, as in C
        np.add(index, self._offsets[: values.size], out=place)
        for table in np.bincount(place, minlength=self._tables * BINS).reshape(self._tables, BINS):
            counts += table


class NativeCounter:
    """A ``Counter`` in C, during whose calls other threads run.

    Args:
        library: What ``counting.c`` was compiled to.

    Raises:
        OSError: If it cannot be loaded, or is of another version.
    """

    piece = 1 << 18  # so that tables are seldom added up, and values are still in a core's cache the second time
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
        self._extremes, self._count = loaded.extremes, loaded.count
        self._extremes.argtypes = (values, ctypes.c_size_t, np.ctypeslib.ndpointer(np.float32, shape=(2,)))
        counts = np.ctypeslib.ndpointer(np.int64, shape=(BINS,), flags=("C", "A", "W"))
        self._count.argtypes = (values, ctypes.c_size_t, ctypes.c_float, counts)
        self._extremes.restype = self._count.restype = None

    def extremes(self, values: "NDArray[np.float32]") -> tuple[float, float]:
        """As ``Counter.extremes``."""
        found = np.empty(2, np.float32)
        self._extremes(values, values.size, found)
        return float(found[0]), float(found[1])

    def add(self, values: "NDArray[np.float32]", scale: float, counts: "NDArray[np.int64]") -> None:
        """As ``Counter.add``."""
        self._count(values, values.size, scale, counts)


def find_counter() -> tuple[Counter, str]:
    """Return the one in C, or NumPy's and why that is not taken."""
    if not LIBRARY.exists():
        return NumpyCounter(), "the package was built without a C compiler"
    try:
        return NativeCounter(LIBRARY), ""
    except OSError as error:
        return NumpyCounter(), f"the library does not load: {error}"


COUNTER, NOT_NATIVE = find_counter()
