"""Opening OpenVINO models on the CPU; the one place that sets their properties."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resnet_deploy.environment import compute_threads
from resnet_deploy.errors import BackendError, BuildError


def import_openvino() -> Any:
    """Import OpenVINO.

    Raises:
        BackendError: If it is not installed, or its libraries do not load.
    """
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise BackendError(
            f"OpenVINO cannot be imported: {error}", hint='install it with `pip install "resnet-deploy[openvino]"`'
        ) from error
    return openvino


def open_compiled(model: Path | bytes, *, threads: int = 0, requests: int = 1) -> Any:
    """Compile a model for this CPU, tuned for the latency of one call at a time or for the throughput of several.

    One request gets OpenVINO's hint LATENCY: all threads work on each call. Several get its hint THROUGHPUT: calls run
    side by side in streams, no more of them than requests, that part the threads among them. What the graph has in FP32
    is computed in FP32: by itself OpenVINO takes BF16 where the CPU has instructions for it, which would be another
    precision than was asked for.

    Args:
        model: A file, or a serialized ONNX model.
        threads: Threads for all calls together; 0 for one per physical core within a container's quota.
        requests: Calls that may be under way at once.

    Raises:
        BackendError: If OpenVINO is not installed.
        BuildError: If it refuses the model.
    """
    openvino = import_openvino()
    properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or compute_threads()}
    if requests == 1:
        properties["PERFORMANCE_HINT"] = "LATENCY"
    else:
        properties |= {"PERFORMANCE_HINT": "THROUGHPUT", "PERFORMANCE_HINT_NUM_REQUESTS": requests}
    core = openvino.Core()
    with translate_failures():
        return core.compile_model(core.read_model(model if isinstance(model, bytes) else str(model)), "CPU", properties)


@contextlib.contextmanager
def translate_failures() -> Iterator[None]:
    """Turn what OpenVINO raises into a BuildError: plain RuntimeErrors of many lines, of which the last says most."""
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise BuildError(f"OpenVINO refuses the model: {lines[-1] if lines else type(error).__name__}") from error
