"""In which ways an engine can be called, of those that were asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resnet_deploy.bench.records import Way
from resnet_deploy.bench_spec import SCOPES, WHOLE_CALLS, BenchSpec, Scope
from resnet_deploy.errors import SpecError
from resnet_deploy.protocols import TimesSteps

if TYPE_CHECKING:
    from resnet_deploy.protocols import Runner


@dataclass(frozen=True)
class Callers:
    """Runners of one engine that are called at once, each by a thread of its own.

    Attributes:
        runners: One for each caller.
        threads: CPU threads that each of them was given; 0 where whoever opened them did not say.
        graphs: Whether they were to use CUDA graphs; None where that cannot be chosen.
    """

    runners: "tuple[Runner, ...]"
    threads: int
    graphs: bool | None = None

    @property
    def used_graphs(self) -> bool | None:
        """Whether they do use CUDA graphs: a capture may be refused. None where that cannot be chosen."""
        return getattr(self.runners[0], "graphs", None)


@dataclass(frozen=True)
class Entrant:
    """An engine and the name it appears under.

    Attributes:
        name: Distinct within a run.
        runner: What answers, and what is timed when one caller calls; opened with the first choice of graphs.
        others: The same engine for other ways of calling it: by several at once, or without CUDA graphs.
        scopes: What makes sense to time of it.
        threads: CPU threads that ``runner`` was given; 0 where whoever opened it did not say.
    """

    name: str
    runner: "Runner"
    others: tuple[Callers, ...] = ()
    scopes: tuple[Scope, ...] = SCOPES
    threads: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What its runners have to say of how they ran, each line once."""
        return tuple(dict.fromkeys(note for runner in self._runners() for note in getattr(runner, "notes", ())))

    def ways(self, spec: BenchSpec) -> Iterator[tuple[Callers, Way]]:
        """Yield every way asked for in which it can be called, and by whom."""
        alone = Callers((self.runner,), self.threads, self._graphs(spec))
        for callers in (alone, *self.others):
            count = len(callers.runners)
            if count not in spec.concurrency:
                continue
            for scope in spec.scopes:
                if not self._offers(scope, count):
                    continue
                paces = (None, *spec.rates) if scope in WHOLE_CALLS else (None,)
                for batch in spec.batches:
                    if self.runner.batch.min <= batch <= self.runner.batch.max:
                        yield from ((callers, Way(batch, scope, count, callers.graphs, pace)) for pace in paces)

    def _graphs(self, spec: BenchSpec) -> bool | None:
        return spec.graphs[0] if getattr(self.runner, "graphs", None) is not None else None

    def _offers(self, scope: Scope, count: int) -> bool:
        if scope not in self.scopes:
            return False
        if scope in WHOLE_CALLS:
            return True
        return count == 1 and (scope == "device" or isinstance(self.runner, TimesSteps))

    def remarks(self, spec: BenchSpec) -> tuple[str, ...]:
        """Say how it was called where that is not plain, and what could not be had of it, one line each."""
        has_clock = isinstance(self.runner, TimesSteps)
        copies = [scope for scope in spec.scopes if scope in ("h2d", "d2h")]
        counts = {len(callers.runners) for callers in self.others} | {1}
        alone = [str(count) for count in spec.concurrency if count not in counts]
        lines = [
            f"{len(callers.runners)} callers: an engine each"
            + ("" if has_clock else f", CPU threads each: {callers.threads}")
            for callers in self.others
            if len(callers.runners) > 1
        ]
        if alone:
            lines.append(f"not called by {', '.join(alone)} at once: it takes one caller")
        if "device" in spec.scopes and not has_clock:
            lines.append("device: by the host's clock, from enqueue until synchronize returns")
        if copies and not has_clock:
            lines.append(f"{', '.join(copies)}: not measured, it has no device timer")
        return tuple(dict.fromkeys(lines))

    def close(self) -> None:
        """Close all its runners."""
        for runner in self._runners():
            runner.close()

    def _runners(self) -> "tuple[Runner, ...]":
        return (self.runner, *(runner for callers in self.others for runner in callers.runners))


def require_ways(entrants: Sequence[Entrant], spec: BenchSpec) -> None:
    """Refuse what would be left out unnoticed.

    Raises:
        SpecError: If an engine can be called in none of the ways asked for, or no engine in one of them.
    """
    found: list[Way] = []
    for entrant in entrants:
        ways = [way for _, way in entrant.ways(spec)]
        if not ways:
            raise _why_not(entrant, spec)
        found += ways
    for scope in spec.scopes:
        if all(way.scope != scope for way in found):
            raise SpecError(
                f"no engine here can be timed in scope {scope}", hint="h2d and d2h need an engine of TensorRT; drop it"
            )
    for count in spec.concurrency:
        if all(way.concurrency != count for way in found):
            raise SpecError(f"no engine here takes {count} callers", hint="drop it from --concurrency")
    if False in spec.graphs and all(way.graphs is None for way in found):
        raise SpecError("no engine here has CUDA graphs to do without", hint="drop --graphs")


def _why_not(entrant: Entrant, spec: BenchSpec) -> SpecError:
    taken, name = entrant.runner.batch, entrant.name
    if not any(taken.min <= batch <= taken.max for batch in spec.batches):
        return SpecError(
            f"{name} takes batches of {taken.min} to {taken.max}, none of which is measured",
            hint=f"add one to --batches, such as --batches {taken.min}",
        )
    if not {1, *(len(callers.runners) for callers in entrant.others)} & set(spec.concurrency):
        return SpecError(f"{name} takes one caller, which is not measured", hint="add 1 to --concurrency")
    return SpecError(f"{name} can be timed in none of {', '.join(spec.scopes)}", hint="add host to --scopes")
