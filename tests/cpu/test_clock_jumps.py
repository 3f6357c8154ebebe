"""A wall clock that jumps by hours, back and forth, while engines are timed and evaluated."""

import itertools
import json
import random
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from command_line import SHORT

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")

from resnet_deploy.bench import record_files

LONGEST_S = 300  # far more than any of this takes, and far less than the clock jumps


@pytest.fixture
def jumps(monkeypatch):
    """Let every reading of the wall clock be hours from the one before; the readings, as labels have them."""
    draw, real, read = random.Random(0), time.time, []

    def jump():
        return draw.choice((-1, 1)) * draw.uniform(3600, 36_000)

    class Jumping(datetime):
        @classmethod
        def now(cls, tz=None):
            read.append(datetime.now(tz) + timedelta(seconds=jump()))
            return read[-1]

    monkeypatch.setattr(time, "time", lambda: real() + jump())
    monkeypatch.setattr(record_files, "datetime", Jumping)
    return read


def test_a_duration_by_the_wall_clock_would_show(jumps):
    begun = [time.time() for _ in range(20)]
    assert max(abs(later - earlier) for earlier, later in itertools.pairwise(begun)) > LONGEST_S


def test_bench(deployment, invoke, tmp_path, jumps):
    result = invoke("bench", deployment.engines["fp32"], "--no-pytorch", "--no-html", *SHORT, "-o", tmp_path)
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.iterdir()
    (engine,) = json.loads(path.read_text())["engines"]
    seconds = [value for samples in engine["latency"] for value in samples["seconds"]]
    assert seconds
    assert all(0 < value < LONGEST_S for value in seconds)
    assert len(jumps) == 1  # the label


def test_evaluate(deployment, invoke, tmp_path, jumps):
    options = ("--data", deployment.data, "--batch", 20, "-o", tmp_path)
    result = invoke("evaluate", deployment.engines["fp32"], *options)
    assert result.exit_code == 0, result.output
    (path,) = Path(tmp_path).iterdir()
    cost = json.loads(path.read_text())["cost"]
    durations = [value for name, value in cost.items() if isinstance(value, float)]
    assert durations
    assert all(0 <= value < LONGEST_S for value in durations)
    assert jumps
