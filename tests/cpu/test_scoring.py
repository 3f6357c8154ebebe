"""`predict FOLDER --out DIR`: one row for every image, whatever happens meanwhile."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import assert_refused, files

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")
pytest.importorskip("pyarrow", reason="scores are Parquet tables")

import pyarrow.parquet as pq
from PIL import Image
from scoring_images import assert_each_once, draw_pictures, errors, lay_out, parts, scores

import resnet_deploy
from resnet_deploy.locks import locked_file
from resnet_deploy.pipeline import scoring_workers
from resnet_deploy.pipeline.scoring import ScoringWay

ROOT = Path(__file__).parents[2]
# Kernels may round differently at another batch size, as they do where bad images move the others: a few units in the
# last place of logits, which is far below this.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def fill(pictures, tmp_path):
    """Lay out images: (count) -> folder."""
    return lambda count, name="photos": lay_out(pictures, tmp_path / name, count)


@pytest.fixture
def line(deployment, tmp_path):
    """A command line that scores a folder: (images, options) -> arguments."""

    def make(source, *options):
        engine = deployment.engines["fp32"]
        return ["predict", str(source), "--out", str(tmp_path / "out"), "--engine", str(engine), *map(str, options)]

    return make


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


# --- what is written


def test_rows_are_what_the_engine_says(invoke, line, fill, deployment, tmp_path):
    source, out = fill(50), tmp_path / "out"
    result = invoke(*line(source, "--shard-size", 16, "--top", 3, "--logits", "--workers", 1))
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert result.stdout.startswith("50 images scored, 0 bad; 50 of them now, at ")
    assert result.stdout.endswith(f" images/s: {out}\n")
    assert parts(out) == [f"part-{number:05}.parquet" for number in range(4)]
    assert [pq.read_metadata(out / name).num_rows for name in parts(out)] == [16, 16, 16, 2]
    assert_each_once(out, source)
    rows = scores(out).to_pylist()
    paths = [source / row["path"] for row in rows]
    with resnet_deploy.load(deployment.engines["fp32"]) as engine:
        classified, logits = engine.classify(paths, top=3), engine(paths)
    for row, best, own in zip(rows, classified, logits, strict=True):
        assert row["path_bytes"] is None
        assert row["classes"] == [one.index for one in best]
        assert row["labels"] == [one.label for one in best]
        assert np.allclose(row["probabilities"], [one.probability for one in best], atol=TOLERANCE, rtol=0)
        assert np.allclose(row["logits"], own, atol=TOLERANCE, rtol=0)
    # The twin: the tolerance tells one image from the next.
    assert not np.allclose(rows[0]["probabilities"], rows[1]["probabilities"], atol=TOLERANCE, rtol=0)
    schema = pq.read_schema(out / "part-00000.parquet")
    assert str(schema.field("logits").type) == "fixed_size_list<element: float>[10]"
    manifest = (deployment.engines["fp32"] / "manifest.json").read_bytes()
    about = {key.decode(): value.decode() for key, value in schema.metadata.items()}
    assert about["resnet_deploy.engine"] == deployment.engines["fp32"].name
    assert about["resnet_deploy.engine_sha256"] == hashlib.sha256(manifest).hexdigest()


def test_bad_images_of_many_kinds_have_a_row_of_their_own(invoke, line, fill, tmp_path):
    source, out = fill(20), tmp_path / "out"
    sound = (source / "a" / "0000.jpg").read_bytes()
    (source / "empty.jpg").touch()
    (source / "text.jpg").write_text("not an image")
    (source / "cut.jpg").write_bytes(sound[: len(sound) // 2])
    (source / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (source / "loop.jpg").symlink_to(source / "loop.jpg")
    os.mkfifo(source / "pipe.jpg")
    Image.new("L", (40, 40)).save(source / "a" / "zgrey.jpg")  # sound
    shutil.copy(source / "text.jpg", source / os.fsdecode(b"caf\xe9.jpg"))
    bad = {"empty.jpg", "text.jpg", "cut.jpg", "gone.jpg", "loop.jpg", "pipe.jpg", os.fsdecode(b"caf\xe9.jpg")}
    result = invoke(*line(source, "--shard-size", 8, "--workers", 1))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1] == f"what is wrong with the bad ones: {out}/_errors"
    assert_each_once(out, source, bad)
    said = errors(out)
    assert "not an image" in said["text.jpg"]
    assert "damaged" in said["cut.jpg"]
    assert "no such file" in said["gone.jpg"].lower()
    assert "not a regular file" in said["pipe.jpg"]
    # Made sound, and its shard removed, an image changes sides.
    (source / "empty.jpg").write_bytes(sound)
    for name in parts(out):
        (out / name).unlink()
    assert invoke(*line(source, "--shard-size", 8, "--workers", 1)).exit_code == 0
    assert_each_once(out, source, bad - {"empty.jpg"})
    # And a shard without any has no table of errors left: they would be in two tables.
    for name in bad:
        shutil.copy(source / "a" / "0000.jpg", source / "new.jpg")
        (source / "new.jpg").rename(source / name)
    for name in parts(out):
        (out / name).unlink()
    assert invoke(*line(source, "--shard-size", 8, "--workers", 1)).exit_code == 0
    assert_each_once(out, source)
    assert list((out / "_errors").iterdir()) == []


def test_names_that_are_not_utf8_are_kept_to_the_byte(invoke, line, fill, tmp_path):
    source, out = fill(4), tmp_path / "out"
    name = b"b/\xff\xfe.jpg"
    os.link(source / "a" / "0000.jpg", source / os.fsdecode(name))
    result = invoke(*line(source, "--workers", 1))
    assert result.exit_code == 0, result.output
    assert_each_once(out, source)
    odd = [row for row in scores(out).to_pylist() if row["path_bytes"] is not None]
    assert [(row["path"], row["path_bytes"]) for row in odd] == [("b/\\xff\\xfe.jpg", name)]


# --- what is refused


def test_requests_that_cannot_be_met(invoke, line, fill, tmp_path, deployment, monkeypatch):
    source = fill(3)
    (tmp_path / "empty").mkdir()
    before = files(tmp_path)
    assert_refused(invoke(*line(tmp_path / "empty")), "no images", ".jpg")
    assert_refused(invoke(*line(tmp_path / "gone")), "no such folder", "check the path")
    assert_refused(invoke(*line(source / "a" / "0000.jpg")), "0000.jpg is not a folder")
    assert_refused(invoke(*line(source, source)), "2 places to score into one --out", "one folder")
    assert_refused(invoke(*line(source, "--top", 0)), "top 0 is not positive")
    assert_refused(invoke(*line(source, "--shard-size", 0)), "shard size 0 is not positive")
    assert_refused(invoke(*line(source, "--ray-address", "auto")), "--ray-address has no effect with worker", "--ray")
    assert_refused(invoke(*line("nonsense://bucket/photos")), "nonsense://bucket/photos", "s3://")
    engine = ("--engine", deployment.engines["fp32"])
    assert_refused(invoke("predict", source, *engine), "is a folder", "add --out")
    for option in ("--logits", "--ray", "--workers=2", "--shard-size=9", "--ray-address=auto"):
        image = source / "a" / "0000.jpg"
        assert_refused(invoke("predict", image, *engine, option), f"{option.split('=')[0]} has no effect", "--out DIR")
    assert files(tmp_path) == before


def test_two_commands_do_not_score_into_one_folder(invoke, line, fill, tmp_path):
    source, out = fill(4), tmp_path / "out"
    out.mkdir()
    with locked_file(out / "_scoring.lock"):
        assert_refused(invoke(*line(source, "--workers", 1)), "another command is scoring into it", "another --out")
    assert files(out) == {}
    result = invoke(*line(source, "--workers", 1))
    assert result.exit_code == 0, result.output
    assert_each_once(out, source)


def test_a_folder_of_other_scores_is_refused_with_what_differs(invoke, line, fill, deployment, tmp_path):
    source, out = fill(10), tmp_path / "out"
    assert invoke(*line(source, "--shard-size", 4, "--workers", 1)).exit_code == 0
    before = files(out)
    same = ("--shard-size", 4, "--workers", 1)
    another = ["--engine", str(deployment.engines["int8"])]
    assert_refused(invoke(*line(source, *same), *another), "engine was resnet18-fp32", "choose another --out")
    assert_refused(invoke(*line(source)), "shard_size was 4, is 4096")
    assert_refused(invoke(*line(source, *same, "--top", 2)), "top was 5, is 2")
    assert_refused(invoke(*line(source, *same, "--logits")), "logits was False, is True")
    assert_refused(invoke(*line(fill(10, "others"), *same)), "source was ")
    (source / "a" / "0000.jpg").rename(source / "a" / "new.jpg")
    assert_refused(invoke(*line(source, *same)), "list_sha256 was ")
    (source / "a" / "new.jpg").unlink()
    assert_refused(invoke(*line(source, *same)), "images was 10, is 9")
    assert files(out) == before
    (out / "_scoring.json").unlink()
    assert_refused(invoke(*line(source, *same)), "part-00000.parquet is of another request")
    (out / "_scoring.json").write_text("{")
    assert_refused(invoke(*line(source, *same)), "_scoring.json is damaged")


def test_a_request_of_which_nothing_came_is_not_in_the_way(invoke, line, fill, tmp_path):
    source, out = fill(4), tmp_path / "out"
    assert invoke(*line(source, "--workers", 1)).exit_code == 0
    (out / "part-00000.parquet").unlink()
    (out / "_errors").mkdir()
    (out / "_errors" / "part-00007.parquet").touch()
    assert_refused(invoke(*line(source, "--top", 2)), "top was 5, is 2")  # an old table would be read with the new
    (out / "_errors" / "part-00007.parquet").unlink()
    result = invoke(*line(source, "--top", 2, "--workers", 1000))
    assert result.exit_code == 0, result.output
    assert_each_once(out, source)
    (session,) = json.loads((out / "_scoring.json").read_text())["sessions"]
    assert session["workers"] == 1  # there is one shard


def test_images_that_are_all_gone_end_the_run(invoke, line, fill, tmp_path, monkeypatch):
    """As on a machine where the folder is there, and another one is mounted."""
    source, out = fill(8), tmp_path / "out"
    honest = scoring_workers.score_in_processes

    def score(task, shards, workers):
        for image in source.glob("b/*.jpg"):
            image.unlink()
        return honest(task, shards, workers)

    monkeypatch.setattr("resnet_deploy.cli.predict.way", lambda values: contextlib.nullcontext(ScoringWay(score=score)))
    result = invoke(*line(source, "--shard-size", 4, "--workers", 1))
    assert_refused(result, "none of 4 images in a row is there any more", "mounted")
    assert parts(out) == ["part-00000.parquet"]
    assert errors(out) == {}


def test_what_is_whole_stays_and_what_is_not_is_done_again(invoke, line, fill, tmp_path):
    source, out = fill(20), tmp_path / "out"
    (source / "bad.jpg").touch()
    options = ("--shard-size", 5, "--workers", 1)
    assert invoke(*line(source, *options)).exit_code == 0
    before = files(out)
    result = invoke(*line(source, *options))
    assert "nothing was left to do" in result.stdout
    assert {name for name, state in files(out).items() if state != before[name]} == {"_scoring.json"}
    (out / "part-00001.parquet").unlink()
    (out / "part-00002.parquet").write_bytes(b"PAR1")  # as an object store may keep of a worker that was killed
    short = pq.read_table(out / "part-00003.parquet")
    pq.write_table(short.slice(1), out / "part-00003.parquet")  # whole as a file, and a row short
    (out / "_errors" / "part-00004.parquet").unlink()
    result = invoke(*line(source, *options))
    assert result.stdout.startswith("20 images scored, 1 bad; 16 of them now"), result.output
    assert_each_once(out, source, {"bad.jpg"})
    sessions = json.loads((out / "_scoring.json").read_text())["sessions"]
    assert [session["shards"] for session in sessions] == [5, 0, 4]


# --- workers that die


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
