"""The seams between stages.

Protocols rather than base classes: a backend implements these few methods and owes nothing else, and whatever is rich
(batch splitting, labels, statistics) is written once above them. Before widening one, consider that every backend, the
null runner and every test double must follow.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, runtime_checkable

from resnet_deploy.specs import BatchRange

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

T = TypeVar("T")


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and per-image shape of one input or output; the leading batch dimension is not in ``shape``."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Runner(Protocol):
    """One loaded engine, one batch at a time, with the steps kept apart so that each can be timed.

    ``load`` then ``enqueue`` then ``synchronize`` then ``fetch``. Only ``enqueue`` lies inside a device timer; the
    host timer wraps all four. A runner belongs to one thread at a time.
    """

    @property
    def input(self) -> TensorSpec:
        """What ``load`` accepts."""
        ...

    @property
    def output(self) -> TensorSpec:
        """What ``fetch`` returns."""
        ...

    @property
    def batch(self) -> BatchRange:
        """Batch sizes that ``load`` accepts."""
        ...

    @property
    def device(self) -> str:
        """What it runs on, in the backend's own words, such as ``CPUExecutionProvider``."""
        ...

    def load(self, feed: "Array") -> None:
        """Stage one batch, shape (N, *input.shape); raise FeedError if shape, dtype or N do not fit.

        The runner may keep a reference to ``feed`` instead of a copy: it must not change before ``fetch`` returns.
        """
        ...

    def enqueue(self) -> None:
        """Start inference on the staged batch; may return before it is done."""
        ...

    def synchronize(self) -> None:
        """Wait until the enqueued inference is done."""
        ...

    def fetch(self) -> "Array":
        """Return the outputs, shape (N, *output.shape), in host memory owned by the caller."""
        ...

    def close(self) -> None:
        """Release everything; harmless when repeated."""
        ...


@runtime_checkable
class WritesInto(Protocol):
    """A runner whose backend can write the outputs where the caller wants them, without a copy."""

    def write_into(self, out: "Array") -> None:
        """Have the staged batch, and no later one, answered in ``out``, which ``fetch`` then returns.

        Between ``load`` and ``enqueue``. ``out`` has shape (N, *output.shape) and the output's dtype, is C-contiguous
        and writable, and is let go by ``fetch``.
        """
        ...


class StepSeconds(NamedTuple):
    """What the steps of one call took, by the device's clock: to the device, there, and back."""

    h2d: float
    device: float
    d2h: float


@runtime_checkable
class TimesSteps(Protocol):
    """A runner whose device has a clock of its own."""

    def time_steps(self, feed: "Array") -> StepSeconds:
        """Take one batch through all steps, with the device's clock read at each."""
        ...


class LayerSeconds(NamedTuple):
    """One layer as its backend runs it: name, kind of operator, and seconds per call."""

    name: str
    kind: str
    seconds: float


@runtime_checkable
class ProfilesLayers(Protocol):
    """A runner whose backend can say where the time of a call goes."""

    profiler: str

    def profile_layers(self, feed: "Array", calls: int) -> list[LayerSeconds]:
        """Run ``calls`` calls, as a rule in a session of their own; the layers in the order of execution."""
        ...


class Progress(Protocol):
    """How a stage reports that it is alive; the stages themselves never print."""

    def track(
        self, items: Iterable[T], description: str, total: int | None = None, *, still: bool = False
    ) -> Iterator[T]:
        """Yield ``items`` while showing how many have passed; ``still`` does so between items only, as timing needs."""
        ...

    def task(self, description: str) -> AbstractContextManager[None]:
        """Show that something of unknown length is running."""
        ...


class Silent:
    """The progress that shows nothing."""

    def track(
        self, items: Iterable[T], description: str, total: int | None = None, *, still: bool = False
    ) -> Iterator[T]:
        """Yield ``items``."""
        del description, total, still
        yield from items

    def task(self, description: str) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()
