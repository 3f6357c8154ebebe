"""Opening ONNX Runtime sessions on the CPU; the one place that sets their options."""

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from resnet_deploy.environment import compute_threads
from resnet_deploy.errors import BackendError, BuildError
from resnet_deploy.protocols import LayerSeconds
from resnet_deploy.regular_files import require_utf8
from resnet_deploy.specs import INPUT_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnxruntime
    from numpy.typing import NDArray

    from resnet_deploy.protocols import Array

_KERNEL_TIME: Final = "_kernel_time"
_IN_FP32: Final = "InsertedPrecisionFreeCast_"  # how ONNX Runtime calls an FP16 node that it computes in FP32
_BOUND_FAULT: Final = "Error in execution: "  # goes before a fault where inputs and outputs are bound
_OUT_OF_MEMORY: Final = ("std::bad_alloc", "Failed to allocate memory")
CPU_PROVIDER: Final = "CPUExecutionProvider"


def import_onnxruntime() -> Any:
    """Import ONNX Runtime.

    Raises:
        BackendError: If it is not installed, or its libraries do not load.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"ONNX Runtime cannot be imported: {error}", hint='install it with `pip install "resnet-deploy[cpu]"`'
        ) from error
    return onnxruntime


def open_session(
    model: Path | bytes,
    weights: "Mapping[str, NDArray[np.generic]] | None" = None,
    *,
    threads: int = 0,
    as_written: bool = False,
) -> "onnxruntime.InferenceSession":
    """Open a session on the CPU provider.

    Args:
        model: A file, or a serialized model.
        weights: Constants by name that the model declares to be elsewhere; read where they are, and kept.
        threads: Threads for one call; 0 for one per physical core within a container's quota, which ONNX Runtime
            would not see.
        as_written: Run every node as the graph says, Q/DQ in floating point, without fusion. This is how a graph
            meant for another backend is simulated: on symmetric activations the fused INT8 kernels of a CPU without
            VNNI saturate, which would be this CPU's error and not the graph's.

    Raises:
        BackendError: If ONNX Runtime is not installed.
        FileError: If the file's name is not UTF-8.
        BuildError: If it refuses the model.
    """
    ort = import_onnxruntime()
    options = session_options(ort, threads)
    if as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    kept = [(name, ort.OrtValue.ortvalue_from_numpy(array)) for name, array in (weights or {}).items()]
    if kept:
        options.add_external_initializers([name for name, _ in kept], [value for _, value in kept])
    with translate_refusals():
        session = ort.InferenceSession(session_source(model), options, providers=[CPU_PROVIDER])
    session.weights_in_use = kept  # it reads them where they are, and does not keep them alive
    return session


def open_plain_session(model: Path, *, threads: int) -> "onnxruntime.InferenceSession":
    """Open a session as ONNX Runtime's quick start does, every option at its default but the number of threads.

    Args:
        model: A file.
        threads: Threads for one call, so that peers and engines have as many; 0 for ONNX Runtime's default.

    Raises:
        BackendError: If ONNX Runtime is not installed.
        FileError: If the file's name is not UTF-8.
        BuildError: If it refuses the model.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    with translate_refusals():
        return ort.InferenceSession(session_source(model), options, providers=[CPU_PROVIDER])


def profile_nodes(model: Path | bytes, feed: "Array", *, calls: int) -> dict[str, float]:
    """Measure what each kernel takes: seconds per call, by its name, which begins with that of a fused node."""
    return {layer.name: layer.seconds for layer in profile_kernels(model, feed, calls=calls)}


def profile_kernels(model: Path | bytes, feed: "Array", *, calls: int, threads: int = 0) -> list[LayerSeconds]:
    """Measure what each kernel takes, by ONNX Runtime's profiler, in the order of execution.

    In a session of its own. Profiling adds a few microseconds to each kernel.

    Args:
        model: A file, or a serialized model.
        feed: One batch.
        calls: How many calls to take the mean of; one more goes before them.
        threads: As in ``open_session``.

    Raises:
        BackendError: If ONNX Runtime is not installed.
        FileError: If the file's name is not UTF-8.
        BuildError: If it refuses the model.
    """
    ort = import_onnxruntime()
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(ort, threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        with translate_refusals():
            session = ort.InferenceSession(session_source(model), options, providers=[CPU_PROVIDER])
            for _ in range(calls + 1):
                session.run(None, {INPUT_NAME: feed})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kinds: dict[str, str] = {}
    taken: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(_KERNEL_TIME):
            name = event["name"].removesuffix(_KERNEL_TIME).removeprefix(_IN_FP32)
            kinds[name] = event["args"]["op_name"]
            taken[name].append(event["dur"] * 1e-6)
    # A name may stand for several kernels; all of them ran equally often.
    return [
        LayerSeconds(name, kinds[name], sum(times[len(times) // (calls + 1) :]) / calls)
        for name, times in taken.items()
    ]


def session_source(model: Path | bytes) -> str | bytes:
    """Return what a session is opened from.

    Raises:
        FileError: If the file's name is not UTF-8: ONNX Runtime takes no others.
    """
    if isinstance(model, bytes):
        return model
    require_utf8(model)
    return str(model)


def session_options(ort: Any, threads: int) -> Any:
    """Make the options that every session has; ``threads`` as in ``open_session``."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or compute_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what it logs goes straight to the terminal, and errors are raised besides
    return options


class _Refusals:
    """What ``translate_refusals`` gives; without state, so that one serves all, nested and in any thread."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            return
        # What it throws in C++ without a name of its own arrives as RuntimeError itself.
        if type(error) is not RuntimeError and type(error).__module__.partition(".")[0] != "onnxruntime":
            return
        text = str(error)
        first_line = text.removeprefix(_BOUND_FAULT).partition("\n")[0]
        if any(words in text for words in _OUT_OF_MEMORY):
            raise MemoryError(first_line) from error
        raise BuildError(f"ONNX Runtime refuses the model: {first_line}") from error


_REFUSALS: Final = _Refusals()


def translate_refusals() -> _Refusals:
    """Turn what ONNX Runtime raises into a BuildError or a MemoryError; some faults show only when a graph is run.

    For calls into ONNX Runtime alone: its exceptions have no base of their own; they are known by the module that they
    come from, or, where values are made, bound or copied, are a RuntimeError. Not a generator: that costs each call of
    a runner 1 µs, this 0.2.
    """
    return _REFUSALS
