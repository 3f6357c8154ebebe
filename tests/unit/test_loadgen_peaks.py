"""What is asked of LoadGen to find the highest rate."""

from types import SimpleNamespace

import pytest
from loadgen_factory import logged, run_of

from resnet_deploy.bench.loadgen_spec import PeakSpec
from resnet_deploy.pipeline.loadgen_peaks import search_peak

ENGINE = SimpleNamespace(tested=SimpleNamespace(name="engine"), batch=8)


class StandIn:
    """Holds rates up to a capacity; keeps the plans."""

    def __init__(self, capacity):
        self.capacity, self.plans = capacity, []

    def test(self, engine, plan, purpose):
        assert engine is ENGINE
        self.plans.append((plan, purpose))
        name = {"singlestream": "singlestream-valid", "offline": "offline-valid", "server": "server-valid"}
        result = logged(name[plan.scenario], **({"valid": plan.qps <= self.capacity} if purpose == "probe" else {}))
        return run_of("server-valid", result=result, purpose=purpose)


@pytest.mark.parametrize("capacity", [30.0, 500.0, 5000.0])
def test_it_is_found_from_the_throughput(capacity):
    session = StandIn(capacity)
    peak = search_peak(session, ENGINE, PeakSpec(latency_s=0.01, seconds=5.0))
    assert (peak.engine, peak.latency_s, peak.seconds, peak.queries) == ("engine", 0.01, 5.0, 1001)
    assert peak.rate <= capacity < peak.rate * 1.02
    assert [(plan.scenario, purpose, plan.seconds) for plan, purpose in session.plans[:2]] == [
        ("singlestream", "capacity", 3.0),
        ("offline", "capacity", 3.0),
    ]
    probes = [plan for plan, purpose in session.plans if purpose == "probe"]
    assert probes[0].qps == pytest.approx(1288.12 / 2, rel=1e-12)  # half of the throughput in that log
    assert {(plan.scenario, plan.seconds, plan.queries, plan.latency_s, plan.batch) for plan in probes} == {
        ("server", 5.0, 1001, 0.01, 8)
    }
    assert all(plan.most_waiting > 0 for plan in probes)


def test_nothing_is_tried_that_one_image_alone_cannot_keep():
    session = StandIn(1e9)
    peak = search_peak(session, ENGINE, PeakSpec(latency_s=0.001))  # half of the calls in that log take 1.74 ms
    assert (peak.rate, peak.reason) == (None, "one image alone takes 1.74 ms")
    assert len(session.plans) == 2


def test_nothing_that_holds_is_said():
    peak = search_peak(StandIn(0.0), ENGINE, PeakSpec())
    assert peak.rate is None
    assert peak.reason.startswith("not even ")
