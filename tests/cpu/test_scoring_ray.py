"""`predict FOLDER --out DIR --ray` on a cluster of this machine, whose actors are killed."""

import os
import shutil
import signal
import socket
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")
pytest.importorskip("pyarrow", reason="scores are Parquet tables")
pytest.importorskip("ray.data", reason="it is Ray that gives out the shards")

import ray
from command_line import assert_refused
from scoring_images import assert_each_once, lay_out, parts, scores

from resnet_deploy.errors import BackendError, BundleError, SpecError
from resnet_deploy.integrations import ray as adapter
from resnet_deploy.pipeline import scoring_ray
from resnet_deploy.pipeline.scoring_ray import Parcel
from resnet_deploy.pipeline.scoring_shard import ScoringTask

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


@pytest.fixture
def line(deployment):
    """A command line that scores a folder on the cluster: (images, output, options) -> arguments."""

    def make(source, out, *options):
        engine = ("--engine", str(deployment.engines["fp32"]))
        return ["predict", str(source), "--out", str(out), *engine, "--ray", *map(str, options)]

    return make


def busy_actors():
    """Process ids of the actors that score on the cluster of this very process; others' are left alone."""
    found, parents = [], {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words, status = (entry / "cmdline").read_bytes(), (entry / "stat").read_text()
        except OSError:
            continue
        parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])
        if words.startswith(b"ray::") and b"MapWorker" in words:
            found.append(int(entry.name))
    return [process for process in found if is_descendant(process, parents)]


def is_descendant(process, parents):
    while process in parents and process != os.getpid():
        process = parents[process]
    return process == os.getpid()


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
    by_uri = line(f"file://{source}", f"file://{out}", "--shard-size", 10, "--workers", 1)
    result = invoke(*by_uri)
    assert result.exit_code == 0, result.output
    assert_each_once(out, source)
    before = scores(out)
    (out / "part-00001.parquet").unlink()
    result = invoke(*by_uri)
    assert result.stdout.startswith("30 images scored, 0 bad; 10 of them now"), result.output
    assert scores(out).equals(before)


def test_more_workers_than_there_is_room_for(cluster, invoke, line, pictures, tmp_path):
    source, out = lay_out(pictures, tmp_path / "photos", 3), tmp_path / "out"
    options = ("--workers", 3, "--threads", 1)
    result = invoke(*line(source, out, *options, "--shard-size", 1))
    assert_refused(result, "has room for 2 workers of 1 threads, not for 3", "fewer --workers")
    assert not out.exists()


def test_gpus_that_are_not_there_are_not_waited_for(monkeypatch):
    task = ScoringTask("engine", "0", "photos", "scores", "1", 5, logits=False, threads=1, on_gpu=True)
    monkeypatch.setattr(adapter, "cluster_gpus", lambda: 1)
    monkeypatch.setattr(adapter, "node_cpus", lambda: (8,))
    with pytest.raises(SpecError, match="has 1 GPUs, not one for each of 2 workers"):
        scoring_ray.score_with_ray(task, [], 2)
    scoring_ray.score_with_ray(task, [], 1).close()
    scoring_ray.score_with_ray(replace(task, on_gpu=False), [], 2).close()


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
@pytest.mark.parametrize("by_environment", [False, True])
def test_nobody_at_the_address(monkeypatch, address, by_environment):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray would wait for minutes"))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        address = address.format(nobody.getsockname()[1])
        monkeypatch.setenv("RAY_ADDRESS", address if by_environment else "auto")
        with (
            pytest.raises(BackendError, match=f"no Ray cluster answers at {address}: "),
            adapter.connected(None if by_environment else address),
        ):
            pass


def test_all_other_addresses_are_rays_to_judge(monkeypatch):
    asked = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *, address, **_: asked.append(address))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        addresses = [f"127.0.0.1:{server.getsockname()[1]}", "auto", "head:none", None]
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        for address in addresses:
            with adapter.connected(address):
                pass
    assert asked == addresses


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
