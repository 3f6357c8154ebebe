"""What MLCommons' LoadGen is asked to do, and the numbers of MLPerf's rules for ResNet-50."""

import math
from collections.abc import Mapping
from typing import Final, Literal, get_args

import msgspec

from resnet_deploy.errors import SpecError
from resnet_deploy.specs import MAX_BATCH, require_at_most

Scenario = Literal["singlestream", "multistream", "offline", "server"]
SCENARIOS: Final[tuple[Scenario, ...]] = get_args(Scenario)
COALESCING: Final[tuple[Scenario, ...]] = ("offline", "server")  # those in which the batch is ours to choose
LOADGEN_NAMES: Final[Mapping[Scenario, str]] = {
    "singlestream": "SingleStream",
    "multistream": "MultiStream",
    "offline": "Offline",
    "server": "Server",
}
# MLPerf's numbers for ResNet-50: inference_rules.adoc of mlcommons/inference_policies at ac93e89, Server at dff5f51^.
OFFICIAL_LATENCY_S: Final = 0.015
OFFICIAL_SAMPLES: Final = 1024
MULTISTREAM_SAMPLES: Final = 8

# LoadGen's early stopping passes a run of n queries at p99 with 99 % confidence. None may be late of 459, one of 662,
# three of 1,001, ten of 2,010, fifty of 6,898: the fewer queries, the stricter.
PROBE_QUERIES: Final = 1001


class LoadgenSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which tests to make of each engine.

    Attributes:
        scenarios: Each is a test of its own.
        seconds: Least duration of a test; MLPerf's with ``mlperf_rules``.
        qps: Queries per second of the Server scenario; None where that is not among them.
        latency_s: Its bound on the 99th percentile, in seconds.
        batch: Largest batch that Offline and Server make of what is waiting; None for what the engine is tuned for.
        mlperf_rules: Whether MLPerf's durations, counts and bounds hold, and accuracy is measured too.

    Raises:
        SpecError: If a value is out of range, a scenario is missing what it needs, or is named twice.
    """

    scenarios: tuple[Scenario, ...] = ("singlestream", "multistream", "offline")
    seconds: float = 10.0
    qps: float | None = None
    latency_s: float = OFFICIAL_LATENCY_S
    batch: int | None = None
    mlperf_rules: bool = False

    def __post_init__(self) -> None:
        if not self.scenarios or len(set(self.scenarios)) < len(self.scenarios):
            raise SpecError(f"scenarios {', '.join(self.scenarios)}", hint="name each once")
        for scenario in self.scenarios:
            if scenario not in SCENARIOS:
                raise SpecError(f"unknown scenario {scenario!r}", hint=f"choose from: {', '.join(SCENARIOS)}")
        require_positive("--seconds", self.seconds)
        require_positive("the latency bound", self.latency_s)
        if "server" in self.scenarios and self.qps is None:
            raise SpecError("the server scenario needs a rate", hint="add --qps N, or search it with --find-max-qps")
        if self.qps is not None:
            require_positive("--qps", self.qps)
        require_batch(self.batch)


class PeakSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the highest Server rate is searched.

    Attributes:
        latency_s: The bound on the 99th percentile, in seconds.
        seconds: Least duration of a probe.
        queries: Least number of queries in a probe.
        tolerance: How far apart the rate that holds and the one that does not may end, as a share.
        probes: Most probes.
        batch: As in ``LoadgenSpec``.

    Raises:
        SpecError: If a value is out of range.
    """

    latency_s: float = OFFICIAL_LATENCY_S
    seconds: float = 10.0
    queries: int = PROBE_QUERIES
    tolerance: float = 0.02
    probes: int = 40
    batch: int | None = None

    def __post_init__(self) -> None:
        require_positive("--p99", self.latency_s)
        require_positive("--seconds", self.seconds)
        require_positive("the tolerance", self.tolerance)
        require_batch(self.batch)


class LoadgenPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One test, as LoadGen is told to make it.

    Attributes:
        scenario: Which.
        batch: Largest batch that Offline and Server make of what is waiting.
        accuracy: Whether every image is answered once and the answers are kept, instead of measuring.
        official: Whether durations, counts and the bound are those of MLPerf's own configuration.
        seconds: Least duration, unless official.
        queries: Least number of queries, unless official.
        qps: Queries per second, for Server.
        latency_s: Bound on its 99th percentile, in seconds, unless official.
        most_waiting: LoadGen gives up once more queries are unanswered; 0 for never.
    """

    scenario: Scenario
    batch: int
    accuracy: bool = False
    official: bool = False
    seconds: float = 10.0
    queries: int = 1
    qps: float = 1.0
    latency_s: float = OFFICIAL_LATENCY_S
    most_waiting: int = 0


def require_positive(what: str, value: float) -> None:
    """Refuse what is no positive, finite number."""
    if not 0 < value < math.inf:
        raise SpecError(f"{what} is {value:g}", hint="give a positive number")


def require_batch(batch: int | None) -> None:
    """Refuse a batch that no engine has."""
    if batch is not None:
        if batch < 1:
            raise SpecError(f"batch size {batch} is not positive", hint="use a batch size such as 8")
        require_at_most("batch size", batch, MAX_BATCH)
