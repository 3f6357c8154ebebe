"""What a report draws of INT8: the tensors that the grid serves worst, and the steps of a search."""

import json

import msgspec
import numpy as np

from resnet_deploy.bench.records import SearchStep
from resnet_deploy.bundle import open_bundle
from resnet_deploy.pipeline.diagnosing import WORST, search_steps, worst_histograms
from resnet_deploy.quantize.observations import read_observations
from resnet_deploy.quantize.search import Point, Search


def test_the_worst_tensors_come_with_all_their_values(deployment):
    bundle = open_bundle(deployment.engines["int8"])
    found = worst_histograms(bundle)
    observations = read_observations(bundle.path / "observations.safetensors")
    calibration = json.loads((bundle.path / "calibration.json").read_text())["tensors"]
    assert len(found) == WORST
    assert [one.sqnr_db for one in found] == sorted(one.sqnr_db for one in found)
    for one in found:
        histogram, tensor = observations.histograms[one.tensor], calibration[one.tensor]
        assert sum(one.counts) == histogram.total
        assert len(one.counts) <= 129
        # Below zero, bins end where they are counted from: one of the fine ones, a tenth of a drawn one at most.
        assert one.first - histogram.width <= histogram.low
        assert one.first + len(one.counts) * one.width >= histogram.high
        assert [one.low, one.high] == tensor["ranges"][tensor["method"]]
        centres = one.first + (np.arange(len(one.counts)) + 0.5) * one.width
        mean = float((centres * one.counts).sum() / histogram.total)
        assert histogram.low < mean < histogram.high


def test_other_precisions_have_none(deployment):
    for precision in ("fp32", "fp16"):
        bundle = open_bundle(deployment.engines[precision])
        assert (worst_histograms(bundle), search_steps(bundle)) == ((), ())


def point(*nodes, drop=None, cost=1.0):
    return Point(in_float=nodes, noise=0.1, cost=cost, drop=drop)


def test_steps_count_layers_and_are_relative(deployment, copy_engine):
    search = Search(
        max_drop=1,
        metric="top-1",
        cost="seconds",
        dataset="val",
        dataset_sha256="",
        images=3,
        sensitivity={"a": point("a"), "b": point("b"), "block": point("a", "b", "add")},
        steps=(point(drop=3.0, cost=2.0), point("a", drop=2.0, cost=3.0), point("a", "b", "add", drop=0.0, cost=4.0)),
    )
    path = copy_engine("int8", change=lambda manifest: manifest["files"].update({"search.json": "0" * 64}))
    (path / "search.json").write_bytes(msgspec.json.encode(search))
    assert search_steps(open_bundle(path)) == (
        SearchStep(layers=0, drop=3.0, cost=1.0),
        SearchStep(layers=1, drop=2.0, cost=1.5),
        SearchStep(layers=2, drop=0.0, cost=2.0),
    )
