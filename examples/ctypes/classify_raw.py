"""Classify a picture by the C interface alone: what a binding for any language that calls C has to do.

Nothing of the Python package is imported. Memory is this program's, and passes as pointers: pixels in, logits out.
"""

import argparse
import array
import ctypes
import os
import sys
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int, c_int32, c_ssize_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from PIL import Image

OK = 0
ACCURACY = 9  # the other codes are for people, who get the words


class Info(ctypes.Structure):
    """``resnet_deploy_info``: what an engine takes and gives."""

    _fields_ = [
        ("dtype", c_int),
        ("shape", c_int32 * 3),
        ("image_bytes", c_uint64),
        ("num_classes", c_int32),
        ("batch_min", c_int32),
        ("batch_opt", c_int32),
        ("batch_max", c_int32),
    ]


class Pixels(ctypes.Structure):
    """``resnet_deploy_pixels``: decoded R G B in the caller's memory."""

    _fields_ = [
        ("data", c_void_p),
        ("width", c_int32),
        ("height", c_int32),
        ("stride", c_ssize_t),
    ]


class CallError(Exception):
    """A call that did not return ``RESNET_DEPLOY_OK``.

    Args:
        code: A ``resnet_deploy_code``.
        message: What was wrong.
        hint: What to do about it; may be empty.
    """

    def __init__(self, code: int, message: str, hint: str) -> None:
        super().__init__(message)
        self.code, self.hint = code, hint


class Library:
    """The shared library, its functions declared as in ``resnet_deploy.h``.

    ctypes lets go of the interpreter lock during a call, and the library is made for threads.

    Args:
        path: Such as ``libresnet_deploy_c.so``.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        arguments = {
            "open": (c_char_p, c_int32, c_int32, POINTER(c_uint64)),
            "close": (c_uint64,),
            "describe": (c_uint64, POINTER(Info)),
            "label": (c_uint64, c_int32, POINTER(c_char_p)),
            "infer": (c_uint64, c_void_p, c_uint64, c_int32, c_void_p, c_uint64),
            "infer_pixels": (c_uint64, POINTER(Pixels), c_int32, c_void_p, c_uint64),
            "check_golden": (c_uint64, c_double, POINTER(c_double)),
        }
        for name, types in arguments.items():
            function = self._function(name)
            function.argtypes, function.restype = types, c_int
        for name in ("version", "last_error", "last_hint"):
            function = self._function(name)
            function.argtypes, function.restype = (), c_char_p

    @property
    def version(self) -> str:
        """The library's version."""
        return self._text("version")

    def call(self, name: str, *arguments: object) -> None:
        """Call a function by its name without ``resnet_deploy_``.

        Raises:
            CallError: With the library's words, if it fails. They are of this thread's last failure, so that they are
                read before anything else is called.
        """
        code = self._function(name)(*arguments)
        if code != OK:
            raise CallError(code, self._text("last_error"), self._text("last_hint"))

    def _function(self, name: str) -> Any:
        return getattr(self._library, f"resnet_deploy_{name}")

    def _text(self, name: str) -> str:
        return bytes(self._function(name)()).decode()


class Engine:
    """An open engine; use it as a context manager.

    Args:
        library: It stays loaded.
        bundle: What ``resnet-deploy build --backend openvino`` made.
        threads: CPU threads; 0 for one per core.
    """

    def __init__(self, library: Library, bundle: Path, threads: int = 0) -> None:
        self._library, self._handle = library, c_uint64()
        library.call("open", os.fsencode(bundle), threads, 1, byref(self._handle))
        self.info = Info()
        library.call("describe", self._handle, byref(self.info))

    def infer(self, images: int, images_bytes: int, count: int) -> "array.array[float]":
        """Run prepared images.

        Args:
            images: The address of ``count`` prepared images, one after the other.
            images_bytes: How much memory there is.
            count: Any number of images.

        Returns:
            Logits, ``num_classes`` of each image.
        """
        logits = self._room_for(count)
        self._library.call("infer", self._handle, images, images_bytes, count, *logits.buffer_info())
        return logits

    def infer_pixels(self, pictures: list[Pixels]) -> "array.array[float]":
        """Preprocess decoded pictures of any size by the engine's input contract, and run them; logits as above."""
        listed = (Pixels * len(pictures))(*pictures)
        logits = self._room_for(len(pictures))
        self._library.call("infer_pixels", self._handle, listed, len(pictures), *logits.buffer_info())
        return logits

    def label(self, index: int) -> str:
        """Name a class. The library's text lives until the engine is closed, and is copied."""
        text = c_char_p()
        self._library.call("label", self._handle, index, byref(text))
        return (text.value or b"").decode()

    def golden_difference(self, tolerance: float) -> tuple[bool, float]:
        """Replay the inputs that the bundle keeps: whether the answers are within the tolerance, and the worst one."""
        worst = c_double()
        try:
            self._library.call("check_golden", self._handle, tolerance, byref(worst))
        except CallError as error:
            if error.code != ACCURACY:
                raise
            return False, worst.value
        return True, worst.value

    def _room_for(self, count: int) -> "array.array[float]":
        return array.array("f", bytes(ctypes.sizeof(c_float) * self.info.num_classes * count))

    def close(self) -> None:
        """Release the engine; a second time is an error, which the library tells."""
        self._library.call("close", self._handle)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main() -> None:
    """Print the best class of a picture, and how far the engine is from the answers that its bundle keeps."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("library", type=Path, help="libresnet_deploy_c.so")
    parser.add_argument("bundle", type=Path, help="a bundle for openvino")
    parser.add_argument("picture", type=Path, help="any image that Pillow reads")
    arguments = parser.parse_args()
    try:
        with Image.open(arguments.picture) as image:
            rgb = image.convert("RGB")
        memory = bytearray(rgb.tobytes())
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        with Engine(Library(arguments.library), arguments.bundle) as engine:
            logits = engine.infer_pixels([Pixels(address, *rgb.size, 0)])
            print(engine.label(max(range(len(logits)), key=logits.__getitem__)))
            print(f"golden images: largest difference of a logit {engine.golden_difference(1e-3)[1]:.2g}")
    except OSError as error:  # of Pillow, for the picture, or of ctypes, for the library
        sys.exit(f"error: {error}\nhint: give a built libresnet_deploy_c.so, and a picture that Pillow reads")
    except CallError as error:
        sys.exit(f"error: {error}\nhint: {error.hint}")


if __name__ == "__main__":
    main()
