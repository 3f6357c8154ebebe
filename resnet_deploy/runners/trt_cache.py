"""The runtime cache of TensorRT-RTX: kernels that it compiled for this GPU, kept from one process to the next."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from resnet_deploy import artifact
from resnet_deploy.errors import FileError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class RuntimeCache:
    """One file of compiled kernels.

    TensorRT-RTX refuses it unless GPU, library and driver are those it was made with; ``cache_path`` names it by these.

    Attributes:
        path: The file; it need not exist.
        notes: Why it could not be used or kept; empty if it could.
    """

    path: "Path"
    notes: list[str] = field(default_factory=list)
    _cache: Any = None
    _before: bytes = b""

    def attach(self, config: Any) -> None:
        """Read the file, if there is one, and let ``config``, an ``IRuntimeConfig``, use and extend what it holds."""
        cache = config.create_runtime_cache()
        try:
            if artifact.is_file(self.path):
                self._before = artifact.read_bytes(self.path)
        except FileError as error:
            self.notes.append(f"runtime cache not read: {error.message}")
        if self._before and not cache.deserialize(self._before):
            self.notes.append(f"runtime cache {self.path} was refused: kernels are compiled again")
            self._before = b""
        if config.set_runtime_cache(cache):
            self._cache = cache
        else:
            self.notes.append("runtime cache not accepted: kernels are compiled again in every process")

    def save(self) -> None:
        """Write what was compiled since, if anything was."""
        if self._cache is None:
            return
        kernels, self._cache = self._cache.serialize(), None
        if kernels is None:
            self.notes.append("runtime cache not kept: TensorRT-RTX could not write it out")
            return
        data = bytes(memoryview(kernels))
        if data == self._before:
            return
        try:
            artifact.write_bytes(self.path, data)
        except FileError as error:
            self.notes.append(f"runtime cache not written: {error.message}")


def cache_path(folder: "Path", gpu: str, version: str, driver: str, engine_sha256: str) -> "Path":
    """Name the cache of an engine on a GPU: by all that makes TensorRT-RTX refuse it, and by the engine.

    By the engine, since processes that write one file at a time would take each other's kernels out of it.

    Args:
        folder: Where caches are kept.
        gpu: Its name, with the variant.
        version: Of TensorRT-RTX.
        driver: CUDA version of the driver, of which the first part counts.
        engine_sha256: Digest of the plan.
    """
    words = "-".join(re.findall(r"[a-z0-9]+", gpu.lower()))
    return folder / f"{words}-rtx{version}-cuda{driver.partition('.')[0]}-{engine_sha256[:16]}.cache"
