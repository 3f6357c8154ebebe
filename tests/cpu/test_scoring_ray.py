"""`predict FOLDER --out DIR --ray` on a cluster of this machine, whose actors are killed."""

import os
import shutil
import signal
import threading
import time
import warnings
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")
pytest.importorskip("pyarrow", reason="scores are Parquet tables")
pytest.importorskip("ray.data", reason="it is Ray that gives out the shards")

import ray
from scoring_images import assert_each_once, draw_pictures, lay_out, parts, scores

from resnet_deploy.errors import BundleError
from resnet_deploy.integrations import ray as adapter
from resnet_deploy.pipeline import scoring_ray
from resnet_deploy.pipeline.scoring_ray import Parcel

ROOT = Path(__file__).parents[2]
# Ray leaves sockets and child processes to the garbage collector, and warns of what it does itself.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("ResourceWarning", "DeprecationWarning")]


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two cores; its workers find this very package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            num_cpus=2,
            object_store_memory=150_000_000,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def line(deployment):
    """A command line that scores a folder on the cluster: (images, output, options) -> arguments."""

    def make(source, out, *options):
        engine = ("--engine", str(deployment.engines["fp32"]))
        return ["predict", str(source), "--out", str(out), *engine, "--ray", *map(str, options)]

    return make


def busy_actors():
    """Process ids of the actors that score."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if words.startswith(b"ray::") and b"MapWorker" in words:
            found.append(int(entry.name))
    return found


def test_each_image_once_though_actors_are_killed(cluster, invoke, line, pictures, tmp_path):
    source, out = lay_out(pictures, tmp_path / "photos", 300), tmp_path / "out"
    (source / "bad.jpg").touch()
    killed = []

    def kill_two():
        for least in (2, 6):
            while len(parts(out)) < least or not busy_actors():
                time.sleep(0.01)
            victim = busy_actors()[0]
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)

    killer = threading.Thread(target=kill_two, daemon=True)
    killer.start()
    result = invoke(*line(source, out, "--shard-size", 10, "--workers", 2))
    killer.join(timeout=1)
    assert result.exit_code == 0, result.output
    assert len(killed) == 2
    assert result.stdout.startswith("300 images scored, 1 bad; 301 of them now")
    assert len(parts(out)) == 31
    assert_each_once(out, source, {"bad.jpg"})


def test_the_same_by_uri_and_then_what_is_missing(cluster, invoke, line, pictures, tmp_path):
    source, out = lay_out(pictures, tmp_path / "photos", 30), tmp_path / "out"
    by_uri = line(f"file://{source}", f"file://{out}", "--shard-size", 10)
    result = invoke(*by_uri)
    assert result.exit_code == 0, result.output
    assert_each_once(out, source)
    before = scores(out)
    (out / "part-00001.parquet").unlink()
    result = invoke(*by_uri)
    assert result.stdout.startswith("30 images scored, 0 bad; 10 of them now"), result.output
    assert scores(out).equals(before)


def test_more_workers_than_there_is_room_for(cluster, invoke, line, pictures, tmp_path):
    result = invoke(*line(lay_out(pictures, tmp_path / "photos", 3), tmp_path / "out", "--workers", 3, "--threads", 1))
    assert result.exit_code == 2
    assert "has room for 2 workers of 1 threads, not for 3" in result.stderr


def test_an_item_that_kills_its_actors_is_given_up_and_the_rest_is_done(cluster):
    def make():
        import os

        return lambda item: os.kill(os.getpid(), 9) if item == 3 else item * 2

    pool = adapter.Pool(actors=1, cpus=1, gpus=0, attempts=2)
    assert sorted(adapter.map_on_actors(make, range(5), pool)) == [(0, 0), (1, 2), (2, 4), (3, None), (4, 8)]


# --- the engine on its way to other machines


@pytest.fixture
def parcel(deployment, tmp_path, monkeypatch):
    """A bundle that was sent from a machine whose folder is not to be seen here."""
    import hashlib

    store = []
    monkeypatch.setattr(scoring_ray.ray, "put", lambda value: store.append(value) or 0)
    monkeypatch.setattr(scoring_ray.ray, "get", lambda reference: store[reference])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    engine = shutil.copytree(deployment.engines["fp32"], tmp_path / "engine")
    sent = Parcel.of(engine, hashlib.sha256((engine / "manifest.json").read_bytes()).hexdigest())
    assert sent.unpack() == engine  # as long as it is here, too
    shutil.rmtree(engine)
    return sent, store


def test_an_engine_is_unpacked_by_digest_and_verified(parcel, deployment):
    sent, store = parcel
    folder = sent.unpack()
    assert folder.name == sent.sha256
    names = {path.name for path in deployment.engines["fp32"].iterdir()}
    assert {path.name for path in folder.iterdir()} == names
    written = folder.stat().st_ino
    assert sent.unpack().stat().st_ino == written  # once
    (folder / "model.onnx").write_bytes(b"damaged")
    assert (sent.unpack() / "model.onnx").read_bytes() == store[0]["model.onnx"]
    shutil.rmtree(folder)
    store[0]["model.onnx"] += b"!"
    with pytest.raises(BundleError, match=r"model\.onnx was altered"):
        sent.unpack()
    assert not folder.exists()
