"""An engine opened as often as the ways of calling it need."""

import contextlib
import itertools
from typing import TYPE_CHECKING, Protocol

from resnet_deploy.bench.ways import Callers, Entrant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resnet_deploy.bench_spec import BenchSpec
    from resnet_deploy.protocols import Runner


class Opener(Protocol):
    """Opens an engine for a number of callers at once."""

    def __call__(self, threads: int, count: int, **options: bool) -> "Sequence[Runner]":
        """Open ``count`` runners of ``threads`` CPU threads each; ``graphs`` is the one option, where there are any."""
        ...


def open_entrant(name: str, opener: Opener, spec: "BenchSpec", threads: int, *, graphs: bool = False) -> Entrant:
    """Open an engine for each number of callers, with and without graphs, as the spec has it.

    Args:
        name: What it is called.
        opener: Opens it.
        spec: How it is to be called.
        threads: CPU threads of all callers together; each has at least one.
        graphs: Whether it can do with and without CUDA graphs.

    Raises:
        UserError: If it cannot be opened; what was opened before is closed.
    """
    choices = spec.graphs if graphs else (None,)
    opened: list[Callers] = []
    with contextlib.ExitStack() as stack:
        # One caller first, measured or not: it answers.
        for count, choice in dict.fromkeys(((1, choices[0]), *itertools.product(spec.concurrency, choices))):
            each = max(1, threads // count)
            runners = tuple(opener(each, count, **({} if choice is None else {"graphs": choice})))
            for runner in runners:
                stack.callback(runner.close)
            opened.append(Callers(runners, each, choice))
        stack.pop_all()
    return Entrant(name, opened[0].runners[0], tuple(opened[1:]), threads=opened[0].threads)
