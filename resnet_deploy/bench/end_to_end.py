"""From the bytes of image files, in memory already, to classes: what an application waits for."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_deploy.batching import run_once
from resnet_deploy.images import tensor_from_source
from resnet_deploy.verify import best_classes

if TYPE_CHECKING:
    from resnet_deploy.protocols import Array, Runner
    from resnet_deploy.specs import Preprocess


class EncodedImages:
    """Image files in memory, and threads to decode them.

    An image that is alone is decoded by its caller, those of a batch by the threads, which all callers share. Nothing
    overlaps within a call: all of a batch is decoded before any of it is run.

    Args:
        files: Their bytes; at least one, and none damaged.
        contract: How they become tensors.
        threads: How many decode; with one, callers decode themselves.
    """

    def __init__(self, files: Sequence[bytes], contract: "Preprocess", threads: int) -> None:
        from PIL import Image

        self.files = tuple(files)
        self._open = Image.open
        self._contract = contract
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads > 1 else None

    def __enter__(self) -> "EncodedImages":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def groups(self, size: int) -> "list[tuple[bytes, ...]]":
        """Cut the files into groups of ``size``, going round until the last one is complete."""
        count = len(self.files)
        return [tuple(self.files[(start + index) % count] for index in range(size)) for start in range(0, count, size)]

    def tensors(self, files: Sequence[bytes]) -> "Array":
        """Decode and preprocess, shape (N, *contract.shape)."""
        batch = np.empty((len(files), *self._contract.shape), self._contract.dtype)

        def fill(index: int) -> None:
            with self._open(io.BytesIO(files[index])) as image:
                batch[index] = tensor_from_source(image, self._contract)

        spread = map if self._pool is None or len(files) == 1 else self._pool.map
        for _ in spread(fill, range(len(files))):
            pass
        return batch


def classify(runner: "Runner", encoded: EncodedImages, files: Sequence[bytes]) -> "Array":
    """Name the best class of each image file, shape (N,) int64."""
    return best_classes(run_once(runner, encoded.tensors(files)), 1)[:, 0]
