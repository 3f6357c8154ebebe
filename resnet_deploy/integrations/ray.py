"""Ray: work given out to actors on a cluster by Ray Data.

Ray Data hands items to a pool of actors, replaces actors that die, and gives what they had in hand to others. What an
item leads to is for the caller to write: Ray's own writers name files after its tasks, and a task that is done again
writes another, so that they promise each row at least once. Here an item is done again as a whole, and as its result
is one file of a known name, nothing is there twice.
"""

import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TextIO
from urllib.parse import urlsplit

from resnet_deploy.errors import BackendError

_QUIET: Final = logging.ERROR
_ANSWER_S: Final = 5.0  # Ray itself waits for minutes, and says nothing
_CHECK_ADDRESS: Final = "check --ray-address, or RAY_ADDRESS"


@dataclass(frozen=True)
class Pool:
    """The actors.

    Attributes:
        actors: How many.
        cpus: Cores that Ray sets aside for each.
        gpus: GPUs, likewise.
        attempts: How many actors may die over an item before it is given up.
    """

    actors: int
    cpus: int
    gpus: int
    attempts: int


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine, until the block ends.

    A connection that is there already is used, and left.

    Args:
        address: Of the cluster; None takes that in ``RAY_ADDRESS``, which Ray reads itself, or starts one.

    Raises:
        BackendError: If Ray is not installed, or the cluster cannot be reached.
    """
    ray = _import("ray")
    if ray.is_initialized():
        with _quiet():
            yield
        return
    _require_answer(address or os.environ.get("RAY_ADDRESS", ""))
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    # Its core warns of how Ray Data itself starts actors; what is fatal is still said.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with warnings.catch_warnings():  # of what later versions will do
            warnings.simplefilter("ignore")
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=_QUIET)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise BackendError(f"no Ray cluster: {reason}", hint=_CHECK_ADDRESS) from error
    if in_main:
        signal.signal(signal.SIGTERM, handler)  # of which Ray has one of its own
    try:
        with _quiet():
            yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Raise BackendError if an address names a host and port, and nobody is there; all others are Ray's to judge."""
    parts = urlsplit(f"//{address.removeprefix('ray://')}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        return
    if host is None or port is None:
        return
    try:
        socket.create_connection((host, port), _ANSWER_S).close()
    except OSError as error:
        reason = error.strerror or error
        raise BackendError(f"no Ray cluster answers at {address}: {reason}", hint=_CHECK_ADDRESS) from error


def _quiet() -> contextlib.redirect_stdout[TextIO]:
    """Send what Ray prints, such as that a worker died, to standard error: standard output is for answers."""
    return contextlib.redirect_stdout(sys.stderr)


def node_cpus() -> tuple[int, ...]:
    """Count the CPU cores of each machine of the cluster, as Ray was told of them."""
    nodes = (node["Resources"] for node in _import("ray").nodes() if node["Alive"])
    return tuple(int(resources["CPU"]) for resources in nodes if resources.get("CPU", 0) >= 1)


def cluster_gpus() -> int:
    """Count the GPUs of the cluster."""
    return int(_import("ray").cluster_resources().get("GPU", 0))


def put(value: object) -> Any:
    """Put a value where every machine of the cluster can take it from, as long as the reference is held."""
    return _import("ray").put(value)


def get(reference: Any) -> Any:
    """Take what was put."""
    return _import("ray").get(reference)


def map_on_actors(
    make: Callable[[], Callable[[Any], Any]], items: Sequence[object], pool: Pool
) -> Generator[tuple[int, Any], None, None]:
    """Have every item worked on by some actor; yield the answers as they come, in no order.

    Args:
        make: Called once in every actor; what it returns is called with each item.
        items: They, and the answers, are pickled.
        pool: The actors.

    Yields:
        The position of an item and its answer; None in place of that if it was given up.
    """
    ray, data, pickle = _import("ray"), _import("ray.data"), _import("ray.cloudpickle")
    logging.getLogger("ray.data").setLevel(_QUIET)
    attempts = ray.remote(num_cpus=0, max_restarts=-1)(_Attempts).remote()
    with _without_progress(data.DataContext.get_current()):
        rows = [{"position": position, "item": pickle.dumps(item)} for position, item in enumerate(items)]
        # One item is one block, and thereby one task; Ray Data tries a task again, for ever, when its actor dies.
        answers = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,
            fn_constructor_args=(pickle.dumps(make), attempts, pool.attempts),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=min(pool.actors, len(rows)), max_tasks_in_flight_per_actor=1),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
        )
        for row in answers.iter_rows():
            yield row["position"], pickle.loads(row["answer"])


@contextlib.contextmanager
def _without_progress(context: Any) -> Iterator[None]:
    """Keep Ray Data from telling of its progress; ours is shown."""
    before = context.enable_progress_bars, context.print_on_execution_start
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before


class _Attempts:
    """How many attempts at each item have begun and not ended: an actor of its own, which outlives those that work."""

    def __init__(self) -> None:
        self._open: Counter[int] = Counter()

    def begin(self, position: int) -> int:
        """Count one more; return how many there are."""
        self._open[position] += 1
        return self._open[position]

    def end(self, position: int) -> None:
        """Count one less."""
        self._open[position] -= 1


class _Actor:
    """What Ray Data calls; pickled by name, for this module is there on every machine."""

    def __init__(self, make: bytes, attempts: Any, most: int) -> None:
        self._ray, self._pickle = _import("ray"), _import("ray.cloudpickle")
        self._work, self._attempts, self._most = self._pickle.loads(make)(), attempts, most

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        positions = [int(position) for position in batch["position"]]
        answers = [self._answer(*pair) for pair in zip(positions, batch["item"], strict=True)]
        return {"position": positions, "answer": [self._pickle.dumps(answer) for answer in answers]}

    def _answer(self, position: int, item: bytes) -> Any:
        begun = self._ray.get(self._attempts.begin.remote(position))
        answer = self._work(self._pickle.loads(item)) if begun <= self._most else None
        self._ray.get(self._attempts.end.remote(position))
        return answer


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BackendError(
            f"{name} cannot be imported: {error}", hint='install it with `pip install "resnet-deploy[ray]"`'
        ) from error
