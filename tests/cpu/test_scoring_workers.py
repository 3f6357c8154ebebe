"""Scoring in processes that die: nothing is lost, nothing is there twice, and what kills is named."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import assert_refused, files

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")
pytest.importorskip("pyarrow", reason="scores are Parquet tables")

import pyarrow.parquet as pq
from PIL import Image
from scoring_images import assert_each_once, parts

from resnet_deploy.pipeline import scoring_workers
from resnet_deploy.pipeline.scoring import ScoringWay

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(line):
    """Start a command as the leader of a group of processes: (images, options) -> process."""
    started = []

    def run(*arguments, **options):
        process = subprocess.Popen(
            [sys.executable, "-m", "resnet_deploy", *line(*arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
            **options,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def workers_of(process):
    """Process ids of the workers, which are its children."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status, words = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if int(status.rpartition(")")[2].split()[1]) == process.pid and b"scoring_child" in words:
            found.append(int(entry.name))
    return found


def wait_until(condition, process=None, seconds=120):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    return value


def test_workers_killed_at_random_lose_nothing(start, fill, tmp_path):
    source, out = fill(600), tmp_path / "out"
    process = start(source, "--shard-size", 10, "--workers", 2)
    draw, killed, seen = random.Random(3), 0, 0
    while killed < 5 and process.poll() is None:
        time.sleep(draw.uniform(0, 0.1))
        workers, done = workers_of(process), len(parts(out))
        # Workers that die one after the other while nothing gets done are no accident to the command.
        if workers and done > seen:
            os.kill(draw.choice(workers), signal.SIGKILL)
            killed, seen = killed + 1, done
    output, complaint = process.communicate(timeout=120)
    assert process.returncode == 0, complaint
    assert killed >= 3, output  # a fast machine is done before the fifth
    assert output.startswith(b"600 images scored, 0 bad")
    assert_each_once(out, source)


def test_goes_on_after_everything_was_killed(start, invoke, line, fill, tmp_path):
    source, out = fill(400), tmp_path / "out"
    options = ("--shard-size", 20, "--workers", 2)
    process = start(source, *options)
    wait_until(lambda: len(parts(out)) >= 3, process)
    workers = workers_of(process)
    assert len(workers) == 2
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))  # they notice, and end
    done = {name: state for name, state in files(out).items() if name.startswith("part-")}
    assert 3 <= len(done) < 20
    result = invoke(*line(source, *options))
    assert result.exit_code == 0, result.output
    assert f"{400 - 20 * len(done)} of them now" in result.stdout
    assert files(out).items() >= done.items()
    assert_each_once(out, source)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_end_it_leaves_what_is_done_and_no_process(start, fill, tmp_path, number, status):
    source, out = fill(400), tmp_path / "out"
    process = start(source, "--shard-size", 20, "--workers", 2)
    wait_until(lambda: parts(out), process)
    workers = workers_of(process)
    process.send_signal(number)
    output, complaint = process.communicate(timeout=60)
    assert process.returncode == status, complaint
    assert output == b""
    assert complaint.splitlines()[0] == b"the same command goes on from here"
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert list(out.rglob(".*")) == []
    counted = Counter(row for name in parts(out) for row in pq.read_table(out / name)["path"].to_pylist())
    assert set(counted.values()) == {1}


# A worker that dies with one shard in hand, and serves the others as any.
POISONED = """
import os, resource, signal
from resnet_deploy.pipeline import scoring_child, scoring_shard
honest = scoring_shard.ShardScorer.score
def score(self, shard, after_batch):
    if shard.number == {number}:
        {what}
    return honest(self, shard, after_batch)
scoring_shard.ShardScorer.score = score
scoring_child.main()
"""
# From now on, 64 MiB more than the worker has already.
LITTLE_MEMORY = """
        pages = int(open('/proc/self/statm').read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20), -1))
        try:
            return honest(self, shard, after_batch)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
"""


@pytest.fixture
def poison(monkeypatch):
    """Have workers do something before the second shard: (what) -> None."""
    honest = scoring_workers.score_in_processes

    def make(what):
        program = [sys.executable, "-c", POISONED.format(number=1, what=what)]

        def score(task, shards, workers):
            return honest(task, shards, workers, program)

        way = contextlib.nullcontext(ScoringWay(score=score))
        monkeypatch.setattr("resnet_deploy.cli.predict.way", lambda values: way)

    return make


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "failed 3 times; at last its worker was killed by SIGKILL"),
        ("raise RuntimeError('boom')", "failed 3 times; at last RuntimeError: boom"),
    ],
)
def test_a_shard_that_kills_is_named_after_the_rest_is_done(
    invoke, line, fill, tmp_path, monkeypatch, poison, what, reason
):
    source, out = fill(24), tmp_path / "out"
    poison(what)
    result = invoke(*line(source, "--shard-size", 4, "--workers", 2))
    assert result.exit_code == 1, result.output
    assert f"1 of 6 shards are not scored: part-00001.parquet {reason}" in result.stderr
    assert parts(out) == [f"part-{number:05}.parquet" for number in (0, 2, 3, 4, 5)]
    monkeypatch.undo()
    assert invoke(*line(source, "--shard-size", 4, "--workers", 2)).exit_code == 0
    assert_each_once(out, source)


def test_an_image_that_there_is_no_memory_for_is_not_taken_for_damaged(
    invoke, line, fill, tmp_path, monkeypatch, poison
):
    source, out = fill(12), tmp_path / "out"
    large = sorted(source.rglob("*.jpg"))[5]
    large.unlink()  # a link to what others are, too
    Image.new("L", (9000, 9000), 99).save(large)  # 324 MB as RGB: more than malloc has at hand, too
    poison(LITTLE_MEMORY)
    result = invoke(*line(source, "--shard-size", 4, "--workers", 1, "--threads", 1))
    assert result.exit_code == 1, result.output
    name = large.relative_to(source)
    assert f"part-00001.parquet failed 3 times; at last MemoryError: {name} takes more memory" in result.stderr
    assert parts(out) == ["part-00000.parquet", "part-00002.parquet"]
    monkeypatch.undo()
    assert invoke(*line(source, "--shard-size", 4, "--workers", 1)).exit_code == 0
    assert_each_once(out, source)


def test_what_a_worker_wrote_elsewhere_is_not_done(invoke, line, fill, tmp_path, monkeypatch):
    """As on a cluster whose machines do not share the folder."""
    source, elsewhere = fill(8), tmp_path / "elsewhere"
    elsewhere.mkdir()

    def score(task, shards, workers):
        return scoring_workers.score_in_processes(replace(task, output=str(elsewhere)), shards, workers)

    monkeypatch.setattr("resnet_deploy.cli.predict.way", lambda values: contextlib.nullcontext(ScoringWay(score=score)))
    result = invoke(*line(source, "--shard-size", 4))
    assert result.exit_code == 1, result.output
    assert "2 of 2 shards are not scored" in result.stderr
    assert "is --out shared?" in result.stderr
    assert len(parts(elsewhere)) == 2


def test_workers_that_never_start_are_an_error(invoke, line, fill, monkeypatch):
    monkeypatch.setattr(scoring_workers, "child_environment", lambda: {"PYTHONHOME": "/nonexistent"})
    result = invoke(*line(fill(4), "--workers", 1))
    assert result.exit_code == 1, result.output
    assert "3 workers in a row ended before they were ready; the last ended with status 1" in result.stderr


def test_an_altered_engine_and_a_full_disk_are_the_users_to_mend(
    invoke, line, fill, copy_engine, mount_tmpfs, flip_bit
):
    source, engine = fill(40), copy_engine("fp32")
    disk = mount_tmpfs("size=16k")
    result = invoke(*line(source, "--shard-size", 4, "--logits", "--workers", 1, "--out", disk / "out"))
    assert_refused(result, "no space left")
    flip_bit(engine / "model.onnx")
    assert_refused(invoke(*line(source, "--engine", engine)), "was altered")
