"""The figures that `--json` prints, over synthetic records."""

import json

import msgspec
import numpy as np
import pytest
from record_factory import make_record

from resnet_deploy.bench.record_files import write
from resnet_deploy.bench.statistics import summarize
from resnet_deploy.cli import main
from resnet_deploy.report.data import bench_data


@pytest.fixture(scope="module")
def record():
    return make_record()


def test_latencies_and_rates_by_hand(record):
    figures = bench_data(record)

    assert len(figures["engines"]) == len(record.engines) > 1
    for engine, written in zip(record.engines, figures["engines"], strict=True):
        assert written["name"] == engine.name
        for samples, way in zip(engine.latency, written["ways"], strict=True):
            ordered = sorted(samples.seconds)
            # Nearest rank, and images over the summed time of calls that did not overlap.
            assert way["latency_s"]["p50"] == ordered[int(np.ceil(len(ordered) / 2)) - 1]
            rate = samples.batch * len(ordered) / sum(ordered)
            assert way["images_per_s"]["value"] == pytest.approx(rate, rel=1e-12)  # sums in another order
            assert way["images_per_s"]["low"] <= way["images_per_s"]["value"] <= way["images_per_s"]["high"]


def test_speedups_and_verdicts_are_those_of_the_table(record):
    figures = {one["name"]: one for one in bench_data(record)["engines"]}

    for row in summarize(record):
        written = figures[row.engine.name]
        assert (written["speedup"] is None) == (row.speedup is None)
        if row.speedup is not None:
            assert written["speedup"]["value"] == row.speedup.value
        assert written["speed_verdict"] == row.speed_verdict
        assert written["accuracy"]["top1"]["value"] == row.accuracy.top1


def test_nothing_compares_the_reference_with_itself(record):
    figures = {one["name"]: one["accuracy"] for one in bench_data(record)["engines"]}
    reference = figures.pop(record.reference)

    assert reference["top1"] is not None
    assert reference["agreement"] is reference["flips"] is reference["top1_change"] is None
    assert all(other["agreement"] is not None for other in figures.values())


def test_a_paced_way_has_no_rate():
    record = make_record(rounds=1, batches=(1,))
    engine = record.engines[0]
    free = engine.latency[0]
    paced = msgspec.structs.replace(free, offered=5.0, wall=(1.0,))
    called_both_ways = msgspec.structs.replace(engine, latency=(free, paced))

    first, second = bench_data(msgspec.structs.replace(record, engines=(called_both_ways,)))["engines"][0]["ways"]

    assert first["images_per_s"] is not None
    assert (second["offered"], second["images_per_s"]) == (5.0, None)


def test_report_prints_them_and_nothing_else(record, tmp_path, capsys):
    write(record, tmp_path / "record.json")

    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path / "record.json"), "--json"])

    assert ended.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(msgspec.json.encode(bench_data(record)))
