"""Runners: one file per backend behind the ``Runner`` protocol, found by name."""

import contextlib
import importlib
from collections.abc import Callable
from typing import Any, cast

from resnet_deploy.backends import find_backend
from resnet_deploy.bundle import Bundle
from resnet_deploy.errors import BackendError
from resnet_deploy.protocols import Runner, TensorSpec
from resnet_deploy.specs import INPUT_NAME, OUTPUT_NAME, ModelCard

RunnerFactory = Callable[..., Runner]  # (bundle: Bundle, threads: int), and options of the backend's own
ModelRunner = Callable[..., Runner]  # (engine: Path | bytes, card, batch, threads=0)


def find_runner(name: str) -> RunnerFactory:
    """Look up how a backend opens a bundle: (bundle, threads) -> Runner.

    Raises:
        BackendError: If the backend is unknown or cannot run bundles.
    """
    backend = find_backend(name)
    if not backend.runner:
        raise BackendError(
            f"this version of resnet-deploy does not run {name} engines",
            hint="run one built with --backend onnxruntime",
        )
    module, _, attribute = backend.runner.partition(":")
    return cast("RunnerFactory", getattr(importlib.import_module(module), attribute).open)


def has_graphs(name: str) -> bool:
    """Whether a backend's engines can be opened with and without CUDA graphs, as ``open(..., graphs=False)``.

    Raises:
        BackendError: If the backend is unknown or cannot run bundles.
    """
    return hasattr(getattr(find_runner(name), "__self__", None), "graphs")


def open_several(bundle: Bundle, threads: int, count: int, **options: Any) -> list[Runner]:
    """Open an engine for ``count`` callers at once, each with a runner of its own.

    A runner class may know a better way than to open the bundle so many times, such as to share one compiled model:
    ``open_several(bundle, threads, count)`` with ``threads`` for each.

    Args:
        bundle: The engine.
        threads: CPU threads for each.
        count: How many callers.
        options: Of the backend's own, such as ``graphs``.

    Raises:
        UserError: If one cannot be opened; those before it are closed.
    """
    factory = find_runner(bundle.manifest.spec.backend)
    several = getattr(getattr(factory, "__self__", None), "open_several", None)
    if several is not None:
        return list(several(bundle, threads, count, **options))
    with contextlib.ExitStack() as stack:
        runners = []
        for _ in range(count):
            runners.append(factory(bundle, threads, **options))
            stack.callback(runners[-1].close)
        stack.pop_all()
    return runners


def shares_requests(name: str) -> bool:
    """Whether a backend runs several requests on one loaded model, started without waiting for each other."""
    return hasattr(getattr(find_runner(name), "__self__", None), "open_several")


def find_model_runner(name: str) -> ModelRunner | None:
    """Look up how a backend of this CPU opens an ONNX model without a bundle; None for all others."""
    backend = find_backend(name)
    if backend.device not in ("any", "cpu") or not backend.builder:
        return None
    module, _, attribute = backend.runner.partition(":")
    return cast("ModelRunner", getattr(importlib.import_module(module), attribute))


def tensor_specs(card: ModelCard) -> tuple[TensorSpec, TensorSpec]:
    """Input and output of every engine of a model, whatever the backend."""
    contract = card.preprocess
    return (
        TensorSpec(INPUT_NAME, contract.dtype, contract.shape),
        TensorSpec(OUTPUT_NAME, "float32", (card.num_classes,)),
    )
