"""Take a PyTorch ResNet to production: ONNX export, FP16 and INT8 engines, a runtime, and benchmarks."""

from typing import TYPE_CHECKING

from resnet_deploy.version import __version__

if TYPE_CHECKING:
    from resnet_deploy.engine import Engine, load

__all__ = ["Engine", "__version__", "load"]


def __getattr__(name: str) -> object:
    """Import public names when they are first used, so that importing the package loads no heavy library."""
    if name in ("Engine", "load"):
        from resnet_deploy import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
