"""The Ray Serve example on a local cluster of two CPUs, asked over HTTP."""

import asyncio
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import resnet_deploy

ray = pytest.importorskip("ray", reason="it runs the replicas")
serve = pytest.importorskip("ray.serve", reason="ray[serve] is the server")

# Requests come together in batches of other sizes than here, at which a backend may round differently.
ROUNDING = 1e-5
EXAMPLE = Path(__file__).parents[2] / "examples/ray_serve"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address(engines):
    package = Path(resnet_deploy.__file__).parents[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{EXAMPLE}{os.pathsep}{package}")  # where replicas look
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of a change to come
        patch.syspath_prepend(str(EXAMPLE))
        from classifier import Settings, application

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            port = free_port()
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(application(Settings(engine=engines.onnxruntime)))
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.fixture(scope="module")
def paths(noise, tmp_path_factory):
    folder, paths = tmp_path_factory.mktemp("images"), []
    for number, pixels in enumerate(noise(24, 40, 36)):
        paths.append(folder / f"{number}.{('png', 'jpg')[number % 2]}")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def post(url, data):
    """Status and JSON of the answer."""
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/octet-stream"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_requests_side_by_side_keep_their_own_answers(address, engines, paths):
    with ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(lambda path: post(f"{address}/classify?top=3", path.read_bytes()), paths))
    with resnet_deploy.load(engines.onnxruntime) as engine:
        expected = engine.classify(paths, top=3)
    assert [status for status, _ in answers] == [200] * len(paths)
    for (_, answer), best in zip(answers, expected, strict=True):
        assert [(one["index"], one["label"]) for one in answer] == [(one.index, one.label) for one in best]
        assert [one["probability"] for one in answer] == pytest.approx([one.probability for one in best], abs=ROUNDING)
    firsts = [best[0].probability for best in expected]
    assert max(firsts) - min(firsts) > 10 * ROUNDING  # answers that were exchanged would show


def test_what_the_client_got_wrong_is_a_400(address, paths):
    whole = paths[0].read_bytes()
    for body, reason in ((b"no image", "image: not an image"), (whole[:70], "image: "), (b"", "image: not an image")):
        status, answer = post(f"{address}/classify", body)
        assert status == 400
        assert answer["error"].startswith(reason)
        assert "\n" not in answer["error"]
    assert post(f"{address}/classify?top=0", whole) == (400, {"error": "top 0 is not positive"})
    status, answer = post(f"{address}/classify?top=abc", whole)
    assert (status, list(answer)) == (400, ["error"])
    assert answer["error"].startswith("top 'abc': ")
    assert post(f"{address}/classify", whole)[0] == 200  # and the replica lives


class Request:
    """One whose body is there at once."""

    async def body(self):
        return b"a file"


class SlowEngine:
    """Prepares until it is let go, and counts what is submitted."""

    def __init__(self):
        self.begun, self.let_go, self.submitted = threading.Event(), threading.Event(), []

    def prepared(self, data):
        self.begun.set()
        assert self.let_go.wait(60)
        return data

    def submit(self, image, **options):
        self.submitted.append(image)
        return Future()


@pytest.mark.parametrize("while_decoding", [True, False], ids=["decoding", "waiting"])
def test_a_request_whose_client_has_gone_is_not_run(example_path, while_decoding):
    example_path("ray_serve")
    from classifier import Classifier

    engine = SlowEngine()
    replica = SimpleNamespace(_engine=engine, _prepared=engine.prepared)

    async def leave():
        request = asyncio.create_task(Classifier.classify(replica, Request(), 1))
        await asyncio.to_thread(engine.begun.wait, 60)
        if not while_decoding:
            engine.let_go.set()
            while not engine.submitted:
                await asyncio.sleep(0.01)
        request.cancel()
        engine.let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await request

    asyncio.run(leave())  # which waits for the thread
    assert len(engine.submitted) == (0 if while_decoding else 1)


def test_a_corrupt_file_fails_alone(address, paths):
    bodies = [path.read_bytes() for path in paths[:8]] + [b"no image"] * 4
    with ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(lambda body: post(f"{address}/classify", body)[0], bodies))
    assert answers == [200] * 8 + [400] * 4


def test_a_request_under_way_is_answered_before_the_replica_stops(address, engines, paths):
    from classifier import Settings, application

    # A request then waits two seconds for company, in which the application is deleted.
    settings = Settings(engine=engines.onnxruntime, max_delay_ms=2000)
    serve.run(application(settings), name="patient", route_prefix="/patient")
    assert post(f"{address}/patient/classify", b"no image")[0] == 400  # the way there has been gone once
    with ThreadPoolExecutor(1) as caller:
        answer = caller.submit(post, f"{address}/patient/classify", paths[0].read_bytes())
        time.sleep(0.5)  # until it is there, which takes milliseconds
        assert not answer.done()
        serve.delete("patient")
        assert answer.result()[0] == 200
    assert list(serve.status().applications) == ["default"]
