"""Builders turn a lowered ONNX graph into an engine file; one file per backend, found by name."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from resnet_deploy.backends import BACKENDS, find_backend
from resnet_deploy.bundle import Requirements
from resnet_deploy.errors import BackendError
from resnet_deploy.specs import BuildSpec

if TYPE_CHECKING:
    from resnet_deploy.protocols import Progress


@dataclass(frozen=True)
class BuiltEngine:
    """What a builder made.

    Attributes:
        file: Name of the engine file inside the folder it was given.
        requires: What a machine must have to run it.
        toolchain: Versions of the libraries that made it.
        log: What the compiler said, one message a line.
        notes: What a reader of figures should know.
    """

    file: str
    requires: Requirements
    toolchain: dict[str, str]
    log: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


Builder = Callable[[bytes, BuildSpec, Path, "Progress"], BuiltEngine]


def find_builder(name: str) -> Builder:
    """Look up a backend's builder: (lowered ONNX, spec, folder, progress) -> BuiltEngine.

    Raises:
        BackendError: If the backend is unknown or has none.
    """
    backend = find_backend(name)
    if not backend.builder:
        raise BackendError(
            f"this version of resnet-deploy does not build engines for {name}",
            hint=f"choose --backend {' or '.join(one.name for one in BACKENDS if one.builder)}",
        )
    module, _, function = backend.builder.partition(":")
    return cast("Builder", getattr(importlib.import_module(module), function))
