"""The KServe example as a process of its own, asked by Triton's clients."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import resnet_deploy
from resnet_deploy.bundle import MANIFEST, seal

# Not imported: kserve and tritonclient define the same messages, and no process can hold both.
if importlib.util.find_spec("kserve") is None:
    pytest.skip("kserve is the server", allow_module_level=True)
grpcclient = pytest.importorskip("tritonclient.grpc", reason="it asks over gRPC")
httpclient = pytest.importorskip("tritonclient.http", reason="it asks over HTTP")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException

ROOT = Path(__file__).parents[2]
START_S = 60  # a bound, on a machine that is busy: it takes about 5
NAME = "resnet18-fp32-onnxruntime"
# KServe lets 8 MiB come over gRPC in any case, which no batch of these small images exceeds.
WITHOUT_DEFAULT = "import inference_server; inference_server.MAX_GRPC_MESSAGE_LENGTH = 0; inference_server.main()"


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen
    http: str
    grpc: str
    log: Path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(engine, folder, name=NAME, program=(ROOT / "examples/kserve/inference_server.py",)):
    http, grpc = free_port(), free_port()
    command = [sys.executable, *program, "--engine", engine, "--http_port", str(http), "--grpc_port", str(grpc)]
    log = folder / "server.log"
    with log.open("w") as output:
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'examples/kserve'}"}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    server = Server(process, f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", log)
    wait_until(lambda: is_ready(server, name), server)
    return server


def is_ready(server, name):
    try:
        with (
            httpclient.InferenceServerClient(server.http) as http,
            grpcclient.InferenceServerClient(server.grpc) as grpc,
        ):
            return http.is_model_ready(name) and grpc.is_model_ready(name)
    except (OSError, InferenceServerException):
        return False


def wait_until(condition, server):
    end = time.monotonic() + START_S
    while not condition():
        assert server.process.poll() is None, server.log.read_text()
        assert time.monotonic() < end, server.log.read_text()
        time.sleep(0.1)


def stop(server):
    """Ask it to stop, as Kubernetes does; it must end by itself."""
    server.process.send_signal(signal.SIGTERM)
    try:
        return server.process.wait(timeout=START_S)
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def server(engines, tmp_path_factory):
    running = start(engines.onnxruntime, tmp_path_factory.mktemp("kserve"))
    yield running
    assert stop(running) == 0, running.log.read_text()


@pytest.fixture(scope="module")
def engine(engines):
    with resnet_deploy.load(engines.onnxruntime) as loaded:
        yield loaded


@pytest.fixture
def http(server):
    with httpclient.InferenceServerClient(server.http, concurrency=8) as client:
        yield client


@pytest.fixture
def grpc(server):
    with grpcclient.InferenceServerClient(server.grpc) as client:
        yield client


def ask(client, images, *, library=httpclient, datatype="UINT8", name="images", model=NAME, **binary):
    given = library.InferInput(name, list(images.shape), datatype)
    given.set_data_from_numpy(images, **binary)
    return client.infer(model, [given]).as_numpy("logits")


def post(server, body, **headers):
    """Status and error of a request that no client would make."""
    connection = HTTPConnection(server.http, timeout=60)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", f"/v2/models/{NAME}/infer", data, headers)
        answer = connection.getresponse()
        return answer.status, json.load(answer).get("error")
    finally:
        connection.close()


def as_json(images, **changes):
    """A request of the protocol, with changes to its input."""
    given = {"name": "images", "datatype": "UINT8", "shape": list(images.shape), "data": images.ravel().tolist()}
    return {"inputs": [given | changes]}


def test_metadata_is_that_of_the_bundle(http, grpc):
    inputs = [{"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]
    outputs = [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
    metadata = http.get_model_metadata(NAME)
    assert (metadata["name"], metadata["inputs"], metadata["outputs"]) == (NAME, inputs, outputs)
    over_grpc = grpc.get_model_metadata(NAME)
    assert [(one.name, one.datatype, list(one.shape)) for one in over_grpc.inputs] == [
        ("images", "UINT8", [-1, 32, 32, 3])
    ]
    assert http.is_server_live()
    assert http.is_server_ready()


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("count", [1, 3])
def test_http_answers_to_the_bit(http, engine, noise, count, binary):
    images = noise(count)
    answer = ask(http, images, binary_data=binary)
    assert answer.dtype == np.float32
    np.testing.assert_array_equal(answer, engine(images))
    assert not np.array_equal(answer, engine(images[:, ::-1]))  # the comparison tells images apart


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_outputs_come_as_asked_for(http, engine, noise, binary):
    images = noise(2)
    given = httpclient.InferInput("images", list(images.shape), "UINT8")
    given.set_data_from_numpy(images)
    answer = http.infer(NAME, [given], outputs=[httpclient.InferRequestedOutput("logits", binary_data=binary)])
    np.testing.assert_array_equal(answer.as_numpy("logits"), engine(images))
    assert ("data" in answer.get_response()["outputs"][0]) is not binary


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_classes_are_named_as_triton_names_them(http, grpc, engine, noise, binary):
    images = noise(3)
    logits, labels = engine(images), engine.manifest.card.labels
    expected = [[f"{row[index]:f}:{index}:{labels[index]}" for index in np.argsort(-row)] for row in logits]
    answers = []
    for client, library, options in ((http, httpclient, {"binary_data": binary}), (grpc, grpcclient, {})):
        given = library.InferInput("images", list(images.shape), "UINT8")
        given.set_data_from_numpy(images)
        for count in (2, 99):
            asked = library.InferRequestedOutput("logits", class_count=count, **options)
            answers.append(client.infer(NAME, [given], outputs=[asked]).as_numpy("logits"))
    for answer, count in zip(answers, (2, 10, 2, 10), strict=True):
        # Text over JSON, bytes otherwise.
        found = [[one if isinstance(one, str) else one.decode() for one in row] for row in answer]
        assert found == [row[:count] for row in expected]
    assert expected[0] != expected[1]


@pytest.mark.parametrize("count", [-1, "many", True, 1.5])
def test_a_number_of_classes_that_is_none_is_refused(server, noise, count):
    request = as_json(noise(1)) | {"outputs": [{"name": "logits", "parameters": {"classification": count}}]}
    status, error = post(server, request)
    assert status == 400
    assert "classification" in error
    assert "\n" not in error


def test_more_images_than_the_engine_takes_at_once(grpc, engine, noise):
    images = np.tile(noise(10), (10, 1, 1, 1))
    assert len(images) > engine.manifest.spec.batch.max
    np.testing.assert_array_equal(ask(grpc, images, library=grpcclient), engine(images))


def test_requests_side_by_side_keep_their_own_answers(server, engine, noise):
    batches = [noise(1 + number % 3, seed=number) for number in range(24)]

    def ask_alone(batch):  # gevent's client belongs to one thread
        with httpclient.InferenceServerClient(server.http) as client:
            return ask(client, batch)

    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(ask_alone, batches))
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_array_equal(answer, engine(batch))


def test_files_over_grpc_are_decoded_by_the_contract(grpc, engine, noise, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, pixels in zip(paths, noise(3, 40, 36), strict=True):
        Image.fromarray(pixels).save(path)
    files = np.array([path.read_bytes() for path in paths], dtype=np.object_)
    answer = ask(grpc, files, library=grpcclient, datatype="BYTES")
    np.testing.assert_array_equal(answer, engine(paths))
    files[1] = files[1][:70]
    with pytest.raises(InferenceServerException, match="image 1: ") as refused:
        ask(grpc, files, library=grpcclient, datatype="BYTES")
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": np.zeros((1, 16, 16, 3), np.uint8)},
            r"has shape \(1, 16, 16, 3\), the engine takes \(N, 32, 32, 3\)",
        ),
        ({"images": np.zeros((1, 32, 32, 3), np.float32), "datatype": "FP32"}, "datatype FP32, the model takes UINT8"),
        ({"images": np.zeros((0, 32, 32, 3), np.uint8)}, r"shape \(0, 32, 32, 3\): there is no image in it"),
        ({"name": "pixels"}, r"inputs \['pixels'\], the model takes \['images'\]"),
    ],
    ids=["shape", "datatype", "none", "name"],
)
def test_what_does_not_fit_is_refused_with_the_reason(http, engine, noise, binary, changes, message):
    given = {"images": noise(1), "binary_data": binary} | changes
    with pytest.raises(InferenceServerException, match=message) as refused:
        ask(http, **given)
    assert refused.value.status() == "400"
    np.testing.assert_array_equal(ask(http, noise(1)), engine(noise(1)))  # and the next one is answered


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": [0.5] * 3072}, "input images has data that are no UINT8"),
        ({"data": [256] * 3072}, "input images: "),
        ({"data": [-1] * 3072}, "input images: "),
        ({"data": ["1"] * 3072}, "input images has data that are no UINT8"),
        ({"data": [[1, 2], [3]]}, "input images: "),
        ({"shape": [-1, 32, 32, 3]}, "has shape [-1, 32, 32, 3]: sizes are whole numbers"),
        ({"shape": ["one"]}, "shape"),
        ({"datatype": "BYTES", "data": ["a file"], "shape": [1]}, "are taken over gRPC alone"),
        ({"data": None}, "data"),
    ],
    ids=["fractions", "large", "negative", "text", "ragged", "shape", "words", "files", "none"],
)
def test_json_that_does_not_fit_is_refused_in_one_line(server, noise, changes, message):
    status, error = post(server, as_json(noise(1), **changes))
    assert (status, "\n" in error, len(error) < 200) == (400, False, True)
    assert message in error
    assert post(server, as_json(noise(1))) == (200, None)  # and the next one is answered


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"inputs": [', {}),
        (b"[]", {}),
        (b'{"inputs": [', {"Inference-Header-Content-Length": "12"}),
        (b'{"no": 1}', {"Inference-Header-Content-Length": "9"}),
        (b"{}", {"Inference-Header-Content-Length": "some"}),
    ],
)
def test_what_is_no_request_is_refused_in_one_line(server, body, headers):
    status, error = post(server, body, **headers)
    assert (status, "\n" in error, len(error) < 200) == (400, False, True)


def test_files_over_http_are_refused_in_one_line(http, noise, tmp_path):
    Image.fromarray(noise(1)[0]).save(tmp_path / "image.png")
    for data in ((tmp_path / "image.png").read_bytes(), b"text"):
        with pytest.raises(InferenceServerException, match="are taken over gRPC alone") as refused:
            ask(http, np.array([data], dtype=np.object_), datatype="BYTES")
        assert refused.value.status() == "400"
        assert len(refused.value.message()) < 200


@pytest.fixture
def wide(engines, tmp_path):
    """An OpenVINO engine that takes half a second's work in one batch."""
    bundle = tmp_path / "wide"
    shutil.copytree(engines.openvino, bundle)
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["spec"]["batch"]["max"] = 1024
    (bundle / MANIFEST).write_bytes(seal(manifest))
    return bundle


def test_an_openvino_engine_answers_its_largest_batch_before_it_stops(wide, noise, tmp_path):
    name = "resnet18-fp32-openvino"
    server = start(wide, tmp_path, name, ("-c", WITHOUT_DEFAULT))
    images = np.tile(noise(8), (128, 1, 1, 1))
    with resnet_deploy.load(wide) as engine:
        assert len(images) == engine.manifest.spec.batch.max
        expected = engine(images)
    with grpcclient.InferenceServerClient(server.grpc) as client, ThreadPoolExecutor(1) as caller:
        with pytest.raises(InferenceServerException, match="larger than max"):  # the limit is that of the batch
            ask(client, np.tile(images, (2, 1, 1, 1)), library=grpcclient, model=name)
        answer = caller.submit(ask, client, images, library=grpcclient, model=name)
        wait_until(lambda: "GRPCInferenceService/ModelInfer" in server.log.read_text(), server)
        assert stop(server) == 0, server.log.read_text()
        np.testing.assert_array_equal(answer.result(), expected)


def test_a_bundle_that_is_not_there(tmp_path):
    program = ROOT / "examples/kserve/inference_server.py"
    command = [sys.executable, program, "--engine", tmp_path / "none"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
