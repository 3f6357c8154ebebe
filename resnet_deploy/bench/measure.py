"""Timing engines in turns.

Every engine sees the same machine: a round gives each of them one turn per way of calling it, in an order drawn anew,
so that a slow minute falls on all. A turn begins when the threads of the engine before have stopped, and with untimed
calls, for the other engine has left its caches behind.

Files differ in what decoding them costs: in each round all engines begin at the same one, and rounds at ones spread
evenly, so that engines that make few calls and many see the same mixture.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from resnet_deploy.bench.calls import Feeds, call_for
from resnet_deploy.bench.headline import way_order
from resnet_deploy.bench.loops import ClosedLoop, PacedLoop, take_turn
from resnet_deploy.bench.quiet import wait_until_quiet
from resnet_deploy.bench.records import Samples

if TYPE_CHECKING:
    from resnet_deploy.bench.records import Way
    from resnet_deploy.bench.ways import Callers, Entrant
    from resnet_deploy.bench_spec import BenchSpec
    from resnet_deploy.protocols import Progress

_KEEPS_UP: Final = 0.95


@dataclass
class _Series:
    """What one engine gave in one way of calling it, so far."""

    callers: "Callers"
    way: "Way"
    seconds: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def take_turn(self, number: int, feeds: Feeds, budget_s: float) -> None:
        calls = [call_for(runner, self.way, feeds) for runner in self.callers.runners]
        rate = self.way.offered
        wait_until_quiet()
        turn = take_turn(calls, ClosedLoop(budget_s) if rate is None else PacedLoop(budget_s, rate))
        self.seconds += turn.seconds
        self.rounds += [number] * len(turn.seconds)
        self.wall.append(turn.wall_s)

    def samples(self) -> Samples:
        way = self.way
        return Samples(
            batch=way.batch,
            scope=way.scope,
            seconds=tuple(self.seconds),
            rounds=tuple(self.rounds),
            concurrency=way.concurrency,
            graphs=self.callers.used_graphs,  # what they came to: a capture may have been refused
            offered=way.offered,
            wall=() if way.concurrency == 1 and way.offered is None else tuple(self.wall),
        )


def measure_in_turns(
    entrants: "Sequence[Entrant]",
    feeds: Feeds,
    spec: "BenchSpec",
    progress: "Progress",
    after_round: Callable[[int], object] = lambda _: None,
) -> dict[str, tuple[Samples, ...]]:
    """Time every entrant in every way asked for that it can be called in.

    Args:
        entrants: With distinct names.
        feeds: What they are called on.
        spec: Ways of calling, rounds, seconds and the seed of the order.
        progress: Shows the turns.
        after_round: Called with the number of each round when it is over.

    Returns:
        Samples by name, one entry per way, by batch size, scope, callers, graphs and rate.
    """
    order = random.Random(spec.seed)  # noqa: S311 - an order of play, not a secret
    series = {entrant.name: [_Series(callers, way) for callers, way in entrant.ways(spec)] for entrant in entrants}
    turns = []
    for number in range(spec.rounds):
        of_round = [(number, one) for of_entrant in series.values() for one in of_entrant]
        order.shuffle(of_round)
        turns += of_round
    last = 0
    for number, one in progress.track(turns, "timing", len(turns), still=True):
        if number != last:
            after_round(last)
            last = number
        one.take_turn(number, replace(feeds, start=number / spec.rounds), spec.seconds / spec.rounds)
    if turns:
        after_round(last)
    return {name: _without_twins(found) for name, found in series.items()}


def pace_notes(samples: Sequence[Samples]) -> tuple[str, ...]:
    """Say where an engine did not keep up with the calls that were due, one line for each rate.

    It keeps up where it answers 95 % of what is due. With several callers an answer may come as many periods late
    without anything piling up, and that much is left out of the clock.
    """
    behind: dict[float, list[str]] = {}
    for one in samples:
        if one.offered is None:
            continue
        spent = sum(one.wall) - (one.concurrency - 1) * len(one.wall) / one.offered
        answered = len(one.seconds) / spent if spent > 0 else one.offered
        if answered < _KEEPS_UP * one.offered:
            callers = "" if one.concurrency == 1 else f", {one.concurrency} callers"
            behind.setdefault(one.offered, []).append(f"batch {one.batch}{callers}, {one.scope}: {answered:.3g}")
    return tuple(
        f"does not keep up with {rate:g} calls/s, where waiting times grow with the turn; answered: {'; '.join(ways)}"
        for rate, ways in behind.items()
    )


def _without_twins(series: Sequence[_Series]) -> tuple[Samples, ...]:
    """Order samples by way; of twins, which a refused graph makes of two ways, keep what was meant to have none."""
    meant = sorted(series, key=lambda one: one.way.graphs is True)
    by_way: dict[Way, Samples] = {}
    for samples in (one.samples() for one in meant):
        by_way.setdefault(samples.way, samples)
    return tuple(sorted(by_way.values(), key=lambda samples: way_order(samples.way)))
