"""The highest Server rate of an engine, each rate tried by LoadGen."""

import math
from typing import Final

from resnet_deploy.bench.loadgen_records import Peak
from resnet_deploy.bench.loadgen_search import Found, find_peak
from resnet_deploy.bench.loadgen_spec import LoadgenPlan, PeakSpec
from resnet_deploy.pipeline.loadgen_session import Session, SystemUnderTest

_CAPACITY_SECONDS: Final = 3.0
_FIRST_SHARE: Final = 0.5  # of the Offline throughput: where the search begins
_LATE_SHARE: Final = 0.01  # of the queries may be late, at the 99th percentile
_SIGMAS: Final = 6


def search_peak(session: Session, engine: SystemUnderTest, spec: PeakSpec) -> Peak:
    """Search the highest Server rate at which LoadGen finds the bound kept.

    Latency and throughput come first: they say whether there can be such a rate, and where to begin. Every probe has
    the arrivals of MLPerf's seed, faster or slower: repeating one shows what the machine does, and not another draw.
    """
    seconds = min(_CAPACITY_SECONDS, spec.seconds)
    alone, together = (
        session.test(engine, LoadgenPlan(scenario=scenario, batch=engine.batch, seconds=seconds), "capacity").result
        for scenario in ("singlestream", "offline")
    )
    assert together.metric is not None
    assert together.metric.value is not None

    def holds(rate: float) -> bool:
        plan = LoadgenPlan(
            scenario="server",
            batch=engine.batch,
            seconds=spec.seconds,
            queries=spec.queries,
            qps=rate,
            latency_s=spec.latency_s,
            most_waiting=hopeless(rate, spec),
        )
        return bool(session.test(engine, plan, "probe").result.valid)

    if alone.percentiles["50.00"] > spec.latency_s:
        found = Found(None, f"one image alone takes {alone.percentiles['50.00'] * 1e3:.3g} ms")
    else:
        start = together.metric.value * _FIRST_SHARE
        found = find_peak(holds, start, tolerance=spec.tolerance, most=spec.probes)
    return Peak(
        engine=engine.tested.name,
        latency_s=spec.latency_s,
        tolerance=spec.tolerance,
        seconds=spec.seconds,
        queries=spec.queries,
        rate=found.rate,
        reason=found.reason,
    )


def hopeless(rate: float, spec: PeakSpec) -> int:
    """Say with how many unanswered queries a probe is lost, so that LoadGen need not wait for all of them.

    Those that came within the last ``latency_s`` may yet be in time: a Poisson number, hardly ever six standard
    deviations above its mean. The others are late, and no more than 1 % of all may be.
    """
    recent = rate * spec.latency_s
    late = _LATE_SHARE * max(spec.queries, rate * spec.seconds)
    return math.ceil(recent + _SIGMAS * math.sqrt(recent) + late) + 1
