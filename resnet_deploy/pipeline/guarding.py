"""Is an engine faster than the model it was made from, on this machine? And if not, which layers cost it?"""

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from resnet_deploy import environment
from resnet_deploy.batching import run_once
from resnet_deploy.bench.machine import MachineWatch
from resnet_deploy.bench.quiet import wait_until_quiet
from resnet_deploy.errors import SpeedError
from resnet_deploy.runners import find_model_runner

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from resnet_deploy.bundle import Bundle
    from resnet_deploy.pipeline.source import Source
    from resnet_deploy.protocols import Array, Runner

_CALLS: Final = 20
_TURNS: Final = 2
_PROFILED_CALLS: Final = 10
_FASTER: Final = 1.05  # less than that is within what a machine's mood makes of equal engines
_NAMED: Final = 3
# Of the cores' time, taken by others: a few ticks of a clock that counts in hundredths of a second are less.
_CROWDED: Final = 0.2


@dataclass(frozen=True)
class Pace:
    """How fast an engine is: an indication, not a benchmark.

    Attributes:
        latency_s: Median seconds per call, at the smallest batch.
        speedup: What the FP32 model takes over that, timed in turns; absent for FP32 itself.
        slower: Layers that take longer in the engine, the worst first, and the seconds that each costs; empty where
            the engine is faster.
        elsewhere: Share of the cores' time that other processes took meanwhile; None where the system does not tell.
    """

    latency_s: float
    speedup: float | None = None
    slower: tuple[tuple[str, float], ...] = ()
    elsewhere: float | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Say that the engine is no faster than FP32, and why, and that the machine was busy; nothing where neither."""
        notes = []
        if self.speedup is not None and self.speedup < _FASTER:
            layers = ", ".join(f"{name} by {cost * 1e6:.0f} us" for name, cost in self.slower)
            reason = f"; slower than in FP32: {layers}" if layers else ""
            notes.append(f"not faster than FP32 on this machine ({self.speedup:.2f} times its speed){reason}")
        if self.elsewhere is not None and self.elsewhere > _CROWDED:
            notes.append(
                f"timed while other processes took {self.elsewhere:.0%} of the cores: its times may be far off"
            )
        return tuple(notes)


def measure_pace(runner: "Runner", bundle: "Bundle", source: "Source", images: "Array") -> Pace:
    """Time an engine at its smallest batch: on this CPU, in turns with the FP32 model it was made from.

    Args:
        runner: Of the engine; remains the caller's.
        bundle: The engine.
        source: The exported model.
        images: What to run, as many as there are.
    """
    spec = bundle.manifest.spec
    open_model = find_model_runner(spec.backend)
    feed = np.ascontiguousarray(np.resize(images, (spec.batch.min, *images.shape[1:])))
    watch = MachineWatch(len(environment.usable_cpus()))
    if open_model is None or spec.precision == "fp32":
        own = median_seconds([runner], feed, _CALLS)[0]
        return Pace(own, elsewhere=watch.lap(0).elsewhere)
    exported = open_model(source.data, source.card, spec.batch, threads=environment.compute_threads())
    own, fp32 = median_seconds([runner, exported], feed, _CALLS)
    elsewhere = watch.lap(0).elsewhere
    exported.close()
    speedup = fp32 / own
    is_explained = spec.backend == "onnxruntime" and speedup < _FASTER  # whose profile names layers
    slower = _slower_layers(bundle.engine_path, source, feed) if is_explained else ()
    return Pace(own, speedup, slower, elsewhere)


def require_speedup(speedup: float | None, least: float | None) -> None:
    """Hold a measured speed-up against what was asked for.

    Raises:
        SpeedError: If it is less, or the engine cannot run here to be measured.
    """
    if least is None or (speedup is not None and speedup >= least):
        return
    found = "it cannot run here to be measured" if speedup is None else f"it is {speedup:.2f} times as fast as FP32"
    raise SpeedError(
        f"{found}, {least:g} is required", hint="ask for less, or build without --require-speedup to see why"
    )


def median_seconds(runners: "Sequence[Runner]", feed: "Array", calls: int) -> list[float]:
    """Median seconds per call of each runner, in turns that begin when the process is quiet, with an untimed call."""
    taken: list[list[float]] = [[] for _ in runners]
    for _ in range(_TURNS):
        for runner, seconds in zip(runners, taken, strict=True):
            wait_until_quiet()
            run_once(runner, feed)
            for _ in range(-(-calls // _TURNS)):
                start = time.perf_counter()
                run_once(runner, feed)
                seconds.append(time.perf_counter() - start)
    return list(map(statistics.median, taken))


def _slower_layers(engine: "Path", source: "Source", feed: "Array") -> tuple[tuple[str, float], ...]:
    """Name the layers that take longest over what they take in the exported model."""
    from resnet_deploy.ort_session import profile_nodes

    layers = [str(node.name) for node in source.model.graph if node.op_type in ("Conv", "Gemm")]
    own, exported = (
        seconds_by_layer(profile_nodes(model, feed, calls=_PROFILED_CALLS), layers) for model in (engine, source.data)
    )
    costs = {name: own[name] - exported[name] for name in layers}
    worst = sorted(costs.items(), key=lambda cost: cost[1], reverse=True)
    return tuple((name, cost) for name, cost in worst[:_NAMED] if cost > 0)


def seconds_by_layer(kernels: dict[str, float], layers: list[str]) -> dict[str, float]:
    """Add up the kernels that a layer became, by their names, which begin with the layer's.

    What belongs to no layer (sums, pooling, quantization on its own) is left out.
    """
    found = dict.fromkeys(layers, 0.0)
    for kernel, seconds in kernels.items():
        owners = [name for name in layers if kernel == name or kernel.startswith((f"{name}.", f"{name}_"))]
        if owners:
            found[max(owners, key=len)] += seconds
    return found
