"""Take a PyTorch ResNet to production: ONNX export, FP16 and INT8 engines, a runtime, and benchmarks."""

import importlib
from typing import TYPE_CHECKING, Final

from resnet_deploy.version import __version__

if TYPE_CHECKING:
    from resnet_deploy.engine import Engine, Prediction, load
    from resnet_deploy.errors import (
        BackendError,
        BundleError,
        BusyError,
        DataError,
        DeadlineError,
        DeviceError,
        FeedError,
        FileError,
        ResnetDeployError,
        SpecError,
        UserError,
    )
    from resnet_deploy.microbatching import Batching

__all__ = [
    "BackendError",
    "Batching",
    "BundleError",
    "BusyError",
    "DataError",
    "DeadlineError",
    "DeviceError",
    "Engine",
    "FeedError",
    "FileError",
    "Prediction",
    "ResnetDeployError",
    "SpecError",
    "UserError",
    "__version__",
    "load",
]

_HOMES: Final = {"Engine": "engine", "Prediction": "engine", "load": "engine", "Batching": "microbatching"}


def __getattr__(name: str) -> object:
    """Import public names when they are first used, so that importing the package loads no heavy library."""
    if name in __all__:
        return getattr(importlib.import_module(f"resnet_deploy.{_HOMES.get(name, 'errors')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
