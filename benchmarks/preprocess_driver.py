"""The C++ preprocessing, compiled and called from Python, for its benchmark and its tests."""

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

import resnet_deploy
from resnet_deploy.contract import INTERPOLATIONS, Preprocess

INCLUDE: Final = Path(resnet_deploy.__file__).parent / "cpp" / "include"
SOURCE: Final = Path(__file__).with_suffix(".cpp")


class RefusedError(Exception):
    """What C++ refused: the number of the code, the message and the hint."""


class _Pixels(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("stride", ctypes.c_ssize_t),
    )


class _Message(ctypes.Structure):
    _fields_ = (("text", ctypes.c_char * 256), ("hint", ctypes.c_char * 256))


def compile_driver(folder: Path, compiler: str, flags: Sequence[str]) -> Path:
    """Compile the driver to a shared library in ``folder``; its warnings are errors."""
    library = folder / "preprocess_driver.so"
    strict = ("-std=c++17", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")
    linking = ("-shared", "-fPIC", "-pthread")
    subprocess.run(
        [compiler, *strict, *flags, *linking, f"-I{INCLUDE}", str(SOURCE), "-o", str(library)],
        check=True,
    )
    return library


class Driver:
    """The functions of a compiled driver."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.contract_new.restype = ctypes.c_void_p

    def preprocess(self, image: NDArray[np.uint8], spec: Preprocess) -> NDArray[np.generic]:
        """Preprocess an image of shape (H, W, 3), whose rows may lie apart."""
        out = np.empty(spec.shape, spec.dtype)
        with _Contract(self._library, spec) as contract:
            self._call("preprocess_once", ctypes.byref(pixels_of(image)), contract, _address(out))
        return out

    def preprocess_view(self, view: tuple[int | None, int, int, int], spec: Preprocess) -> None:
        """Have a view refused that is no image: address, width, height and stride."""
        out = np.empty(0)
        with _Contract(self._library, spec) as contract:
            self._call("preprocess_once", ctypes.byref(_Pixels(*view)), contract, _address(out))

    def preprocess_many(self, images: Sequence[NDArray[np.uint8]], spec: Preprocess) -> NDArray[np.generic]:
        """Preprocess one after the other into the same memory; return the last."""
        out = np.empty(spec.shape, spec.dtype)
        views = (_Pixels * len(images))(*map(pixels_of, images))
        with _Contract(self._library, spec) as contract:
            self._call("preprocess_many", views, len(images), contract, _address(out))
        return out

    def preprocess_batch(
        self, images: Sequence[NDArray[np.uint8]], spec: Preprocess, threads: int
    ) -> NDArray[np.generic]:
        """Preprocess a batch in threads."""
        out = np.zeros((len(images), *spec.shape), spec.dtype)
        views = (_Pixels * len(images))(*map(pixels_of, images))
        with _Contract(self._library, spec) as contract:
            self._call("preprocess_parallel", views, len(images), contract, _address(out), threads)
        return out

    def upright(self, image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
        """Turn an image by its EXIF orientation."""
        out = np.empty(image.size, np.uint8)
        size = (ctypes.c_int * 2)()
        self._call("turn_upright", ctypes.byref(pixels_of(image)), orientation, _address(out), size)
        return out.reshape(size[1], size[0], 3)

    def _call(self, name: str, *arguments: object) -> None:
        message = _Message()
        code = getattr(self._library, name)(*arguments, ctypes.byref(message))
        if code:
            raise RefusedError(code, message.text.decode(), message.hint.decode())


def pixels_of(image: NDArray[np.uint8]) -> _Pixels:
    """View an array as C++ sees it; the array has to outlive the view."""
    height, width, _ = image.shape
    return _Pixels(image.ctypes.data, width, height, image.strides[0])


class _Contract:
    """A contract in C++, for as long as the block lasts."""

    def __init__(self, library: ctypes.CDLL, spec: Preprocess) -> None:
        self._library, self._spec = library, spec

    def __enter__(self) -> ctypes.c_void_p:
        spec = self._spec
        interpolation, is_float = INTERPOLATIONS.index(spec.interpolation), spec.dtype == "float32"
        numbers = (ctypes.c_double * 6)(*spec.mean, *spec.std)
        address = self._library.contract_new(spec.image_size, spec.resize, interpolation, int(is_float), numbers)
        self._contract = ctypes.c_void_p(address)
        return self._contract

    def __exit__(self, *_: object) -> None:
        self._library.contract_delete(self._contract)


def _address(out: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(out.ctypes.data)
