"""Opening OpenVINO models on the CPU; the one place that sets their properties."""

import contextlib
import functools
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_deploy.environment import compute_threads
from resnet_deploy.errors import BackendError, BuildError
from resnet_deploy.protocols import LayerSeconds
from resnet_deploy.regular_files import require_utf8
from resnet_deploy.specs import INPUT_NAME

if TYPE_CHECKING:
    from resnet_deploy.protocols import Array


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


def open_compiled(model: Path | bytes, *, threads: int = 0, requests: int = 1, profiling: bool = False) -> Any:
    """Compile a model for this CPU, tuned for the latency of one call at a time or for the throughput of several.

    One request gets OpenVINO's hint LATENCY: all threads work on each call. Several get its hint THROUGHPUT: calls run
    side by side in streams, no more of them than requests, that part the threads among them. What the graph has in FP32
    is computed in FP32: by itself OpenVINO takes BF16 where the CPU has instructions for it, which would be another
    precision than was asked for.

    Args:
        model: A file, or a serialized ONNX model.
        threads: Threads for all calls together; 0 for one per physical core within a container's quota.
        requests: Calls that may be under way at once.
        profiling: Whether requests keep what each layer took.

    Raises:
        BackendError: If OpenVINO is not installed.
        BuildError: If it refuses the model.
    """
    if not isinstance(model, bytes):
        require_utf8(model)
    core = _core(os.getpid())
    properties = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads or compute_threads(),
        "PERF_COUNT": profiling,
    }
    if requests == 1:
        properties["PERFORMANCE_HINT"] = "LATENCY"
    else:
        properties |= {"PERFORMANCE_HINT": "THROUGHPUT", "PERFORMANCE_HINT_NUM_REQUESTS": requests}
    with translate_failures():
        return core.compile_model(core.read_model(model if isinstance(model, bytes) else str(model)), "CPU", properties)


@functools.cache
def _core(pid: int) -> Any:
    """Return the one core of a process, which lives as long as it.

    A core gives the thread that compiles by it a stack for signal handlers, and takes that away in whichever thread and
    order cores end (OpenVINO 2026.4): a signal to a thread whose stack is gone, such as Ctrl-C, ends the process.
    """
    return import_openvino().Core()


def profile_layers(model: Path | bytes, feed: "Array", *, calls: int, threads: int = 0) -> list[LayerSeconds]:
    """Measure what each layer takes, by OpenVINO's profiler, in the order of execution; those that fused away are not.

    Args:
        model: A file, or a serialized model.
        feed: One batch.
        calls: How many calls to take the mean of; one more goes before them.
        threads: As in ``open_compiled``.

    Raises:
        BackendError: If OpenVINO is not installed.
        BuildError: If it refuses the model.
    """
    request = open_compiled(model, threads=threads, profiling=True).create_infer_request()
    kinds: dict[str, str] = {}
    seconds: dict[str, float] = defaultdict(float)
    with translate_failures():
        request.infer({INPUT_NAME: feed})
        for _ in range(calls):
            request.infer({INPUT_NAME: feed})
            for layer in request.profiling_info:
                if layer.status == layer.Status.EXECUTED:
                    kinds[layer.node_name] = layer.node_type
                    seconds[layer.node_name] += layer.real_time.total_seconds() / calls
    return [LayerSeconds(name, kinds[name], taken) for name, taken in seconds.items()]


@contextlib.contextmanager
def translate_failures() -> Iterator[None]:
    """Turn what OpenVINO raises into a BuildError: plain RuntimeErrors of many lines, of which the last says most."""
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise BuildError(f"OpenVINO refuses the model: {lines[-1] if lines else type(error).__name__}") from error
