"""`--json`: standard output is one JSON value, and the figures in it are those of the record."""

import json
import os
from pathlib import Path

import pytest

from resnet_deploy.bench.records import read_record
from resnet_deploy.report.data import bench_data


def parsed(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def engines(deployment):
    return [deployment.engines["fp32"], deployment.engines["int8"]]


def test_bench(invoke, engines, tmp_path):
    out = tmp_path / "out"

    printed = parsed(
        invoke("bench", engines[1], "--no-pytorch", "--seconds", 0.05, "--rounds", 1, "--no-html", "-o", out, "--json")
    )

    assert Path(printed.pop("record")) == next(out.glob("*.json"))
    assert printed.pop("page") is None
    assert printed == json.loads(json.dumps(bench_data(read_record(next(out.glob("*.json"))))))


def test_evaluate_and_its_record_again(invoke, engines, deployment, tmp_path):
    command = ("evaluate", *engines, "--data", deployment.data, "-o", tmp_path / "out", "--json")

    printed = parsed(invoke(*command))

    again = parsed(invoke("report", printed.pop("record"), "--json"))
    assert again == printed
    assert [one["name"] for one in printed["engines"]] == [one.name for one in engines]
    assert printed["engines"][0]["accuracy"]["agreement"] is None
    assert 0 <= printed["engines"][1]["accuracy"]["agreement"] <= 1


def test_verify(invoke, engines, deployment):
    printed = parsed(invoke("verify", engines[1], "--no-pytorch", "--model", deployment.model, "--json"))

    assert [rung["name"] for rung in printed["rungs"]][-1] == "onnxruntime engine"
    assert {"layer", "so_far_db"} <= printed["steps"][0].keys()


def test_predict(invoke, engines, deployment):
    images = sorted(deployment.data.glob("*/*.png"))[:3]

    printed = parsed(invoke("predict", *images, "--engine", engines[0], "--top", 2, "--json"))

    assert [one["path"] for one in printed] == list(map(str, images))
    for one in printed:
        first, second = one["classes"]
        assert first["probability"] >= second["probability"]
        assert deployment.card.labels[first["index"]] == first["label"]


def test_predict_names_that_are_not_utf8(invoke, engines, deployment, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    odd.write_bytes(next(deployment.data.glob("*/*.png")).read_bytes())

    printed = parsed(invoke("predict", odd, "--engine", engines[0], "--json"))

    assert [one["path"] for one in printed] == [f"{tmp_path}/caf\\xe9.png"]


def test_scores(invoke, engines, deployment, tmp_path):
    pytest.importorskip("pyarrow", reason="scores are written by it")

    printed = parsed(invoke("predict", deployment.data, "--engine", engines[0], "--out", tmp_path / "out", "--json"))

    assert (printed["scored"], printed["bad"]) == (40, 0)
