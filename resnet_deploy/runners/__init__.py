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

RunnerFactory = Callable[[Bundle, int], Runner]
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
    return cast("RunnerFactory", _runner_class(name).open)


def open_several(bundle: Bundle, threads: int, count: int) -> tuple[Runner, ...]:
    """Open as many runners of one engine as there are callers at once, so that all of them share ``threads``.

    Where the backend runs several requests on one loaded model, they share its weights too; elsewhere each has the
    engine to itself, with its part of the threads.

    Raises:
        BackendError: If the backend is unknown or cannot run bundles.
    """
    opener = find_runner(bundle.manifest.spec.backend)
    if count == 1:
        return (opener(bundle, threads),)
    sharing = getattr(_runner_class(bundle.manifest.spec.backend), "open_several", None)
    if sharing is not None:
        return cast("tuple[Runner, ...]", sharing(bundle, threads, count))
    runners: list[Runner] = []
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            runners.append(opener(bundle, max(1, threads // count)))
            stack.callback(runners[-1].close)
        stack.pop_all()  # all are open: they are the caller's
    return tuple(runners)


def shares_requests(name: str) -> bool:
    """Whether a backend runs several requests on one loaded model, started without waiting for each other."""
    return find_backend(name).runner != "" and hasattr(_runner_class(name), "open_several")


def find_model_runner(name: str) -> ModelRunner | None:
    """Look up how a backend of this CPU opens an ONNX model without a bundle; None for all others."""
    backend = find_backend(name)
    if backend.device not in ("any", "cpu") or not backend.builder:
        return None
    return cast("ModelRunner", _runner_class(name))


def _runner_class(name: str) -> Any:
    module, _, attribute = find_backend(name).runner.partition(":")
    return getattr(importlib.import_module(module), attribute)


def tensor_specs(card: ModelCard) -> tuple[TensorSpec, TensorSpec]:
    """Input and output of every engine of a model, whatever the backend."""
    contract = card.preprocess
    return (
        TensorSpec(INPUT_NAME, contract.dtype, contract.shape),
        TensorSpec(OUTPUT_NAME, "float32", (card.num_classes,)),
    )
