"""What camera.cpp offers to Python."""

import numpy as np
from numpy.typing import NDArray

class Frames:
    """Memory of the camera, lent: whatever takes DLPack reads it in place."""

    shape: tuple[int, ...]
    def __dlpack__(self, stream: object = None) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

class Camera:
    """A camera with a ring of buffers."""

    def __init__(self, batch: int, side: int, buffers: int) -> None: ...
    def capture(self) -> Frames:
        """Fill the next free buffer and lend it, (batch, side, side, 3) uint8; RuntimeError while every one is lent."""

    @property
    def addresses(self) -> list[int]:
        """Where the buffers are."""

class Answers:
    """Memory for logits, read in C++."""

    def __init__(self, batch: int, classes: int) -> None: ...
    def view(self) -> NDArray[np.float32]:
        """The memory as an array, (batch, classes)."""

    def best(self) -> list[int]:
        """The best class of each image."""

    @property
    def address(self) -> int:
        """Where the memory is."""

def live_buffers() -> int:
    """Count the buffers that were not freed yet."""
