"""Watching the compiler: its progress in the terminal, and a way to stop it."""

import queue
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from resnet_deploy.protocols import Progress
    from resnet_deploy.trt_api import TrtApi

T = TypeVar("T")


def compile_watched(api: "TrtApi", compile_plan: Callable[[Any], T], progress: "Progress", description: str) -> T:
    """Run ``compile_plan`` in a thread and show how far it is; an interrupt stops the compiler at its next step.

    Args:
        api: The flavour.
        compile_plan: Takes an ``IProgressMonitor`` and compiles with it.
        progress: Counts the percent that are done.
        description: What is going on.

    Raises:
        KeyboardInterrupt: Once the compiler has stopped.
    """
    percents: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    phases = Phases()
    monitor = _new_monitor(api, phases, percents)
    with ThreadPoolExecutor(1, thread_name_prefix="compile") as pool:
        compiled = pool.submit(compile_plan, monitor)
        compiled.add_done_callback(lambda _: percents.put(None))
        try:
            for _ in progress.track(iter(percents.get, None), description, 100):
                pass
        except BaseException:
            phases.cancelled.set()
            raise  # leaving the pool waits for the compiler
    try:
        return compiled.result()
    except Exception as error:
        # The frames of an error hold the builder, and may be held for long. One that the garbage collector frees while
        # the library makes another, and logs, waits for a lock that the library holds.
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        del compiled  # which holds the error, whose frames hold it


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """What the compiler says of its progress: phases of steps, nested. Its threads take turns in telling.

    Attributes:
        cancelled: Once set, the compiler is told to stop.
    """

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._phases: dict[str, _Phase] = {}
        self._percent = 0
        self._lock = threading.Lock()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Enter a phase."""
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))

    def complete(self, name: str, step: int) -> list[int]:
        """Count a step; return the percents that are newly reached."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            return self._advance()

    def finish(self, name: str) -> list[int]:
        """Leave a phase; return the percents that are newly reached."""
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase is not None and phase.parent is None:
                phase.done = phase.steps
                self._phases[name] = phase  # the whole stays done
            return self._advance()

    def _advance(self) -> list[int]:
        """Percents never shrink: a phase may tell its steps late, or out of order."""
        roots = [name for name, phase in self._phases.items() if phase.parent not in self._phases]
        reached = max((int(100 * self._fraction(name)) for name in roots), default=0)
        newly = list(range(self._percent + 1, reached + 1))
        self._percent = max(self._percent, reached)
        return newly

    def _fraction(self, name: str) -> float:
        phase = self._phases[name]
        inner = [self._fraction(child) for child, one in self._phases.items() if one.parent == name]
        return min((phase.done + max(inner, default=0.0)) / phase.steps, 1.0)


def _new_monitor(api: "TrtApi", phases: Phases, percents: "queue.SimpleQueue[int | None]") -> Any:
    """Make a monitor; the base class exists only once the flavour is loaded."""
    trt = api.module

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            for percent in phases.complete(phase_name, step):
                percents.put(percent)
            return not phases.cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            for percent in phases.finish(phase_name):
                percents.put(percent)

    return Monitor()
