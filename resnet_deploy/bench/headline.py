"""Which of an engine's samples its latency, its throughput and its speed-up are quoted from.

What lies inside the timer must be the same for all engines, so there is one scope for a whole record. Copies alone are
never among them: they are no call, and images per second of a copy is no throughput.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from resnet_deploy.bench.intervals import throughput
from resnet_deploy.bench.records import EngineRecord, Samples, Way
from resnet_deploy.bench_spec import SCOPES, Scope

_SCOPES: Final[tuple[Scope, ...]] = ("host", "end_to_end", "device")  # the first that all engines have


def headline_scope(engines: Iterable[EngineRecord]) -> Scope | None:
    """Choose the scope that engines are compared in: one that all of them were timed in; None where there is none."""
    timed = [{one.scope for one in engine.latency if one.offered is None} for engine in engines]
    return next((scope for scope in _SCOPES if timed and all(scope in own for own in timed)), None)


def smallest_samples(engine: EngineRecord, scope: Scope | None) -> Samples:
    """Samples that latencies are quoted for: one caller, calls not paced, the smallest batch, with CUDA graphs.

    An engine that was never called like that is quoted in the way that comes closest, ``scope`` first.
    """
    return min(
        engine.latency,
        key=lambda one: (one.scope != scope, one.offered is not None, one.concurrency, one.batch, way_order(one.way)),
    )


def best_samples(engine: EngineRecord, scope: Scope) -> Samples:
    """Samples of the highest throughput, of any batch and any number of callers that call again once they have answers.

    Args:
        engine: Was timed in ``scope`` without a pace.
        scope: The record's, as ``headline_scope`` has it.
    """
    return max(_closed(engine.latency, scope), key=throughput)


def like_samples(reference: EngineRecord, engine: EngineRecord, scope: Scope) -> tuple[Samples, Samples] | None:
    """Find what a speed-up is computed from: the best of both, with such numbers of callers as both were called by.

    Some engines take one caller only. Several callers against one would be a speed-up of calling, not of the engine.

    Returns:
        The reference's samples and the engine's; None where no number of callers is common to both.
    """
    own, other = _closed(engine.latency, scope), _closed(reference.latency, scope)
    callers = {one.concurrency for one in own} & {one.concurrency for one in other}
    if not callers:
        return None
    first, second = (
        max((one for one in found if one.concurrency in callers), key=throughput) for found in (other, own)
    )
    return first, second


def way_order(way: Way) -> tuple[int, int, int, bool, float]:
    """Key to order ways by: batch size, scope, callers, those with CUDA graphs before those without, and pace."""
    return way.batch, SCOPES.index(way.scope), way.concurrency, way.graphs is False, way.offered or 0


def _closed(latency: Sequence[Samples], scope: Scope) -> list[Samples]:
    return [one for one in latency if one.scope == scope and one.offered is None]
