"""`package --triton`: what it writes is read back as Triton reads it, and answers as the engine does."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from command_line import assert_refused, files

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")
pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="Triton's schema is in its client")

from google.protobuf import json_format
from triton_stand_in import RefusedError, Server
from tritonclient.utils import triton_to_np_dtype

from resnet_deploy.bundle import open_bundle
from resnet_deploy.engine import load
from resnet_deploy.images import batch_from_images

ROOT = Path(__file__).parents[2]
LOCK = ".resnet-deploy.lock"


def golden(engine):
    """The golden inputs and answers of a bundle."""
    with np.load(open_bundle(engine).golden_path) as kept:
        return kept["images"], kept["logits"]


def assert_same_logits(found, expected):
    # The same kernels on the same machine, whose threads may part a sum otherwise: a few units in the last place.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


# --- round trip


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_served_engine_answers_as_the_bundle_does(deployment, package, precision):
    engine = deployment.engines[precision]
    server = Server(package(engine))
    assert (set(server.models), server.refused) == ({"net"}, {})
    images, logits = golden(engine)
    assert_same_logits(server.infer("net", {"images": images})["logits"], logits)
    with pytest.raises(AssertionError):  # such a comparison can fail
        assert_same_logits(server.infer("net", {"images": images[::-1].copy()})["logits"], logits)
    with load(engine) as loaded:
        best = [[f"{one.label}" for one in row] for row in loaded.classify(list(deployment.data.rglob("*.png"))[:3], 2)]
        prepared = loaded.prepare(list(deployment.data.rglob("*.png"))[:3])
    classified = server.classify("net", {"images": prepared}, 2)
    assert [[one.split(":", 2)[2] for one in row] for row in classified] == best


def test_the_files_are_the_bundles(deployment, package):
    engine = deployment.engines["int8"]
    repository = package(engine)
    for name in ("model.onnx", "manifest.json"):
        assert (repository / "net/1" / name).read_bytes() == (engine / name).read_bytes()
    assert sorted(files(repository)) == [
        *("net", "net/1", "net/1/interface.json", "net/1/manifest.json", "net/1/model.onnx"),
        *("net/config.pbtxt", "net/labels.txt", "net/warmup", "net/warmup/images"),
    ]


@pytest.mark.parametrize("batch", ["1:8:16", "4"])
def test_an_ensemble_answers_to_pixels(float_engines, package, tmp_path, draw_image, batch):
    engine = float_engines[batch]
    server = Server(package(engine))
    assert (set(server.models), server.refused) == ({"net", "net_preprocess", "net_ensemble"}, {})
    images, logits = golden(engine)
    count = 4 if batch == "4" else len(images)
    assert_same_logits(server.infer("net", {"images": images[:count]})["logits"], logits[:count])
    # The way of a client: decoded, resized and cropped, and no more.
    paths = [tmp_path / f"{seed}.png" for seed in range(4)]
    for seed, path in enumerate(paths):
        draw_image(path, seed)
    with load(engine) as loaded:
        normalized = loaded.prepare(paths)
        expected = loaded(normalized)
    card = open_bundle(engine).manifest.card
    pixels = batch_from_images(paths, msgspec.structs.replace(card.preprocess, dtype="uint8", layout="NHWC"))
    before = server.infer("net_preprocess", {"images": pixels})["normalized"]
    np.testing.assert_array_equal(before, normalized)  # to the bit: the same operations in the same order
    assert_same_logits(server.infer("net_ensemble", {"images": pixels})["logits"], expected)
    with pytest.raises(AssertionError):
        assert_same_logits(server.infer("net_ensemble", {"images": 255 - pixels})["logits"], expected)
    assert server.models["net_ensemble"].labels["logits"] == [f"class {number}" for number in range(5)]


def test_a_batch_that_the_engine_does_not_take_is_not_asked_for(float_engines, deployment, package, tmp_path):
    server = Server(package(float_engines["4"]))
    with pytest.raises(RefusedError, match="shape"):
        server.infer("net", {"images": np.zeros((3, 3, 32, 32), np.float32)})
    shutil.rmtree(tmp_path / "models")
    server = Server(package(deployment.engines["fp32"]))
    with pytest.raises(RefusedError, match="a batch of 65, at most 64"):
        server.infer("net", {"images": np.zeros((65, 32, 32, 3), np.uint8)})


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('name: "images"', 'name: "pixels"', "the model has"),
        ("dims: [10]", "dims: [11]", "the configuration"),
        ("dims: [32, 32, 3]", "dims: [3, 32, 32]", "the configuration"),
        ("TYPE_UINT8", "TYPE_FP32", "tensor(uint8)"),
        ("max_batch_size: 64", "max_batch_size: 0", "the configuration"),
        ('"model.onnx"', '"model.plan"', "unable to find"),
        ('name: "net"', 'name: "not"', "directory name"),
        ("max_batch_size", "max_batchsize", "no field named"),
    ],
)
def test_a_configuration_that_is_wrong_is_caught(deployment, package, old, new, reason):
    """The stand-in of the server is no rubber stamp."""
    repository = package(deployment.engines["fp32"])
    config = repository / "net/config.pbtxt"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    server = Server(repository)
    assert server.models == {}
    assert reason in server.refused["net"]


def test_warmup_data_that_is_short_is_caught(deployment, package):
    repository = package(deployment.engines["fp32"])
    data = repository / "net/warmup/images"
    data.write_bytes(data.read_bytes()[:-1])
    assert "warmup expects" in Server(repository).refused["net"]


def test_an_ensemble_without_its_models_is_caught(float_engines, package):
    repository = package(float_engines["1:8:16"])
    shutil.rmtree(repository / "net_preprocess")
    assert "net_preprocess, which is not there" in Server(repository).refused["net_ensemble"]


# --- the client of the documentation


class Client:
    """Triton's client, but for the way to the server: its requests are its own."""

    def __init__(self, server):
        self.server = server

    def get_model_config(self, name):
        """As the HTTP protocol has it: the configuration as JSON."""
        config = self.server.models[name].config
        return json.loads(json_format.MessageToJson(config, preserving_proto_field_name=True))

    def infer(self, name, inputs, outputs):
        """Answer with classes, as strings."""
        (given,), (asked,) = inputs, outputs
        request = given._get_tensor()
        array = np.frombuffer(given._get_binary_data(), triton_to_np_dtype(request["datatype"]))
        feed = {request["name"]: array.reshape(request["shape"])}
        count = asked._get_tensor()["parameters"]["classification"]
        found = self.server.classify(name, feed, count)
        return type("Answer", (), {"as_numpy": lambda _, output: np.char.encode(found, "utf-8").astype(object)})()


def test_the_client_of_the_documentation(deployment, float_engines, package, tmp_path, draw_image, monkeypatch, capsys):
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/how-to/triton.md").read_text(), re.DOTALL)
    paths = [tmp_path / f"{seed}.png" for seed in range(3)]
    for seed, path in enumerate(paths):
        draw_image(path, seed)
    for engine, names in (
        (deployment.engines["int8"], ["net"]),
        (float_engines["1:8:16"], ["net", "net_ensemble"]),
    ):
        server = Server(package(engine))
        monkeypatch.setattr("tritonclient.http.InferenceServerClient", lambda _, server=server: Client(server))
        with load(engine) as loaded:
            expected = [[one.label for one in row] for row in loaded.classify(paths, 3)]
        for name in names:
            monkeypatch.setattr(sys, "argv", ["client.py", name, *map(str, paths)])
            capsys.readouterr()
            exec(compile(snippet, "docs/triton.md", "exec"), {})
            lines = capsys.readouterr().out.splitlines()
            found = [[line.strip() for line in lines[start + 1 : start + 4]] for start in (0, 4, 8)]
            assert found == expected
        shutil.rmtree(tmp_path / "models")


# --- versions


def test_packaging_twice_changes_nothing(deployment, package, invoke, tmp_path):
    engine = deployment.engines["fp32"]
    before = files(package(engine))
    done = invoke("package", engine, "--triton", tmp_path / "models", "--name", "net")
    assert "net/: version 1, unchanged" in done.output
    assert files(tmp_path / "models") == before  # times too: a server that polls would load it again
    again = tmp_path / "again"
    assert invoke("package", engine, "--triton", again, "--name", "net").exit_code == 0
    for path in files(again):
        if (again / path).is_file():
            assert (again / path).read_bytes() == (tmp_path / "models" / path).read_bytes()


def test_what_a_killed_command_left_goes_though_the_model_is_there(deployment, package, tmp_path):
    """Killed when the new folder was in its place, and the old one still under the temporary name."""
    package(deployment.engines["int8"])
    (tmp_path / ".net.abcdefgh.tmp").mkdir()
    package(deployment.engines["int8"])
    assert list(tmp_path.glob(".net.*")) == []


def test_another_engine_is_the_next_version(deployment, package):
    package(deployment.engines["fp32"])
    repository = package(deployment.engines["int8"])
    old = (repository / "net/1/model.onnx").stat()
    assert old.st_nlink == 1  # the folder that it was linked from is gone
    server = Server(repository)
    assert server.models["net"].version == 2
    images, logits = golden(deployment.engines["int8"])
    assert_same_logits(server.infer("net", {"images": images})["logits"], logits)
    # And back: what is wanted is the newest, whatever was before.
    package(deployment.engines["fp32"])
    server = Server(repository)
    assert server.models["net"].version == 3
    images, logits = golden(deployment.engines["fp32"])
    assert_same_logits(server.infer("net", {"images": images})["logits"], logits)


def test_an_older_version_is_copied_where_there_are_no_links(deployment, package, monkeypatch):
    repository = package(deployment.engines["fp32"])
    old = (repository / "net/1/model.onnx").read_bytes()

    def refuse(*paths, **how):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    package(deployment.engines["int8"])
    assert (repository / "net/1/model.onnx").read_bytes() == old
    assert Server(repository).models["net"].version == 2


def test_other_options_change_the_configuration_and_no_version(deployment, package, invoke, tmp_path):
    engine = deployment.engines["fp32"]
    package(engine)
    before = (tmp_path / "models/net/1/model.onnx").read_bytes()
    done = invoke("package", engine, "--triton", tmp_path / "models", "--name", "net", "--instances", "2")
    assert "net/: version 1, rewritten" in done.output
    assert "count: 2" in (tmp_path / "models/net/config.pbtxt").read_text()
    assert (tmp_path / "models/net/1/model.onnx").read_bytes() == before
    assert not (tmp_path / "models/net/2").exists()


def test_a_version_may_be_named(deployment, package, invoke, tmp_path):
    package(deployment.engines["fp32"], "--version", "7")
    package(deployment.engines["fp32"], "--version", "7")  # the same bundle
    assert Server(tmp_path / "models").models["net"].version == 7
    line = ("package", deployment.engines["int8"], "--triton", tmp_path / "models", "--name", "net", "--version")
    for number in ("7", "3"):
        assert_refused(invoke(*line, number), f"is at version 7, and Triton would not serve {number}", "--version 8")
    assert_refused(invoke(*line, "0"), "version 0", "from 1")
    package(deployment.engines["int8"])
    assert Server(tmp_path / "models").models["net"].version == 8


def test_a_version_is_an_int64(deployment, package, invoke, tmp_path):
    last = 2**63 - 1
    line = ("package", deployment.engines["int8"], "--triton", tmp_path / "models", "--name", "net")
    assert_refused(invoke(*line, "--version", last + 1), f"version {last + 1}", f"from 1 to {last}")
    package(deployment.engines["fp32"], "--version", last)
    assert_refused(invoke(*line), f"is at version {last}, and Triton knows no later one", "choose another --name")
    package(deployment.engines["fp32"])  # the same bundle needs none
    assert Server(tmp_path / "models").models["net"].version == last


def test_what_else_is_in_the_models_folder_stays(deployment, package):
    repository = package(deployment.engines["fp32"])
    (repository / "net/configs").mkdir()
    (repository / "net/configs/other.pbtxt").write_text("theirs")
    (repository / "net/link").symlink_to("nowhere")
    package(deployment.engines["int8"])
    assert (repository / "net/configs/other.pbtxt").read_text() == "theirs"
    assert (repository / "net/link").readlink() == Path("nowhere")
    assert Server(repository).models["net"].version == 2


def test_models_of_others_are_not_touched(deployment, package, tmp_path):
    other = tmp_path / "models/other/1"
    other.mkdir(parents=True)
    (other / "model.onnx").write_bytes(b"theirs")
    (tmp_path / "models/notes.txt").write_text("theirs")
    before = files(tmp_path / "models")
    package(deployment.engines["fp32"])
    after = files(tmp_path / "models")
    assert {name: after[name] for name in before} == before


def test_as_json(deployment, invoke, tmp_path):
    done = invoke("package", deployment.engines["int8"], "--triton", tmp_path / "models", "--json")
    found = json.loads(done.stdout)
    name = open_bundle(deployment.engines["int8"]).manifest.name
    assert found["models"] == [{"name": name, "version": 1, "state": "new"}]
    assert (found["bundle"], found["repository"]) == (name, str(tmp_path / "models"))
    assert len(found["notes"]) <= 1  # of the INT8 dot product, where this CPU has one
