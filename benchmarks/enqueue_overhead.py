"""What the TensorRT runner costs the host for each call: Python's share, on a stand-in that does nothing.

    python benchmarks/enqueue_overhead.py

In the place of CUDA and TensorRT stand functions that return at once, so no time here is a GPU's or a driver's. What
the stand-in itself takes, the same calls made directly, is subtracted, and so are the bare copying of arrays and the
making of capsules: what is left is our own Python, at batch 1 and 224 pixels, once graphs are captured.
"""

import gc
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from resnet_deploy.batching import run_once
from resnet_deploy.cuda.runtime import Cuda
from resnet_deploy.cuda.streams import Stream
from resnet_deploy.device_arrays import DeviceArray
from resnet_deploy.runners.trt import TrtRunner
from resnet_deploy.runners.trt_engine import ContextOptions, TrtEngine
from resnet_deploy.specs import BatchRange, ModelCard, Preprocess
from resnet_deploy.trt_api import TrtApi

CALLS = 500
ROUNDS = 60
GOAL_S = 20e-6
CARD = ModelCard(architecture="resnet50", num_classes=1000, weights="none", weights_sha256="", preprocess=Preprocess())


class Nothing:
    """Stands in for ``cuda.bindings.runtime``: every call succeeds at once. Only pinned memory is real."""

    cudaStream_t = int
    cudaStreamNonBlocking = cudaEventDisableTiming = cudaHostAllocDefault = 0
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        self.pinned: list[Any] = []
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] | None = None

    def cudaHostAlloc(self, nbytes: int, _flags: int) -> tuple[int, int]:
        self.pinned.append(np.zeros(nbytes, np.uint8))
        return (0, self.pinned[-1].ctypes.data)

    def __getattr__(self, name: str) -> Callable[..., tuple[int, int]]:
        answer = (0, 1 if name == "cudaGetDeviceCount" else 4096)

        def call(*arguments: object) -> tuple[int, int]:
            if self.calls is not None:
                self.calls.append((call, arguments))
            return answer

        setattr(self, name, call)
        return call


class Tensorrt:
    """Stands in for the bindings of TensorRT: one profile, and yes to everything."""

    class ILogger:
        VERBOSE, ERROR, INTERNAL_ERROR = range(3)

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=2)

    class Runtime:
        def __init__(self, logger: object) -> None:
            pass

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            return SimpleNamespace(
                num_io_tensors=2,
                num_optimization_profiles=1,
                get_tensor_name=("images", "logits").__getitem__,
                get_tensor_shape=lambda name: (-1, *CARD.preprocess.shape),
                get_tensor_profile_shape=lambda name, index: [(size, *CARD.preprocess.shape) for size in (1, 8, 64)],
                create_runtime_config=lambda: SimpleNamespace(set_execution_context_allocation_strategy=lambda s: None),
                create_execution_context=lambda config: SimpleNamespace(
                    set_optimization_profile_async=lambda index, stream: True,
                    set_input_shape=lambda name, shape: True,
                    update_device_memory_size_for_shapes=lambda: 1 << 20,
                    set_device_memory=lambda pointer, size: None,
                    set_tensor_address=lambda name, pointer: True,
                    execute_async_v3=lambda stream: True,
                ),
            )


class WithInterface:
    """An array as CuPy and PyCUDA have it."""

    def __init__(self, array: DeviceArray) -> None:
        self.__cuda_array_interface__ = array.__cuda_array_interface__


class WithDlpack:
    """An array as PyTorch has it, in so far as it is read through DLPack."""

    def __init__(self, array: DeviceArray) -> None:
        self.array = DeviceArray(array.cuda, array.pointer, array.shape, array.dtype)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self, *, stream: int = 1) -> Any:
        return self.array.__dlpack__(stream=stream)


def medians_of_best_round_s(call: Callable[[], object], others: list[Callable[[], object]]) -> tuple[float, float]:
    """Time ``call`` and, right after it, ``others``; return medians of the round in which ``call`` was fastest.

    In turns, since the machine has other things to do too, and is now fast and now slow.
    """
    clock = time.perf_counter
    best = (float("inf"), 0.0)
    for _ in range(ROUNDS):
        taken, taken_by_others = [], []
        for _ in range(CALLS):
            start = clock()
            call()
            end = clock()
            for other in others:
                other()
            taken_by_others.append(clock() - end)
            taken.append(end - start)
        best = min(best, (statistics.median(taken), statistics.median(taken_by_others)))
    return best


def recorded(nothing: Nothing, call: Callable[[], object]) -> tuple[int, Callable[[], None]]:
    """Count the calls into the stand-in that ``call`` makes; give a function that makes the same calls directly."""
    nothing.calls = []
    call()
    made, nothing.calls = nothing.calls, None

    def directly() -> None:
        for function, arguments in made:
            function(*arguments)

    return len(made), directly


def main() -> None:
    """Measure each way into the runner."""
    nothing = Nothing()
    cuda = Cuda(0, nothing)
    runners = {}
    for graphs in (True, False):
        engine = TrtEngine(TrtApi("tensorrt", Tensorrt, "stand-in"), b"", cuda, ContextOptions(graphs=graphs))
        runners[graphs] = TrtRunner(engine, CARD, BatchRange(1, 8, 64))
    runner = runners[True]
    stream = Stream.create(cuda)
    images = DeviceArray(cuda, 1 << 20, (1, *CARD.preprocess.shape), "uint8")
    logits = DeviceArray(cuda, 1 << 30, (1, 1000), "float32", stream=stream)
    theirs, their_logits = WithInterface(images), WithInterface(DeviceArray(cuda, 1 << 30, (1, 1000), "float32"))
    capsules, more_capsules = WithDlpack(images), WithDlpack(logits)
    torch_stream = SimpleNamespace(cuda_stream=7, device_index=0)
    feed, other = (np.zeros((1, *CARD.preprocess.shape), np.uint8) for _ in range(2))
    answers = np.zeros((1, 1000), np.float32)

    ways: dict[str, Callable[[], object]] = {
        "run_on, graph, out given": lambda: runner.run_on(images, stream=stream, out=logits),
        "run_on, graph, fresh out": lambda: runner.run_on(images, stream=stream),
        "run_on, graph, array interface, torch's stream": lambda: runner.run_on(
            theirs, stream=torch_stream, out=their_logits
        ),
        "run_on, graph, DLPack, torch's stream": lambda: runner.run_on(
            capsules, stream=torch_stream, out=more_capsules
        ),
        "run_on, no graph, out given": lambda: runners[False].run_on(images, stream=stream, out=logits),
        "enqueue, graph": runner.enqueue,
        "load, enqueue, synchronize, fetch (150 kB copied)": lambda: run_once(runner, feed),
    }
    for _ in range(6):
        run_once(runner, feed)
    print(f"{'µs per call, batch 1':50} {'total':>7} {'stand-in':>9} {'ours':>7}")
    gc.disable()
    for name, way in ways.items():
        for _ in range(10):
            way()
        calls, directly = recorded(nothing, way)
        others: list[Callable[[], object]] = [directly]
        if "DLPack" in name:
            others += [lambda: capsules.__dlpack__(stream=7), lambda: more_capsules.__dlpack__(stream=7)]
        if "copied" in name:
            others += [lambda: np.copyto(feed, other), answers.copy]
        total, own = medians_of_best_round_s(way, others)
        mark = "" if total - own <= GOAL_S else "   above the goal of 20"
        print(f"{name:50} {total * 1e6:7.2f} {own * 1e6:9.2f} {(total - own) * 1e6:7.2f}   {calls} calls{mark}")


if __name__ == "__main__":
    main()
