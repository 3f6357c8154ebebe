"""`predict FOLDER --out DIR`: one row for every image, whatever happens meanwhile."""

import contextlib
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from command_line import assert_refused, files

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")
pytest.importorskip("pyarrow", reason="scores are Parquet tables")

import pyarrow.parquet as pq
from PIL import Image
from scoring_images import assert_each_once, errors, parts, scores

import resnet_deploy
from resnet_deploy.locks import locked_file
from resnet_deploy.pipeline import scoring_workers
from resnet_deploy.pipeline.scoring import ScoringWay

# Kernels may round differently at another batch size, as they do where bad images move the others: a few units in the
# last place of logits, which is far below this.
TOLERANCE = 1e-5


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
