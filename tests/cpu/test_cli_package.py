"""`package --triton`: what it writes is read back as Triton reads it, and answers as the engine does."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
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
from resnet_deploy.integrations.triton.folders import origin
from resnet_deploy.locks import locked_file
from resnet_deploy.protocols import Silent
from resnet_deploy.specs import BatchRange, BuildSpec, ExportSpec

ROOT = Path(__file__).parents[2]
LOCK = ".resnet-deploy.lock"


@pytest.fixture(scope="module")
def float_engines(tmp_path_factory):
    """Engines of the float32 contract by batch: any, and a fixed one."""
    pytest.importorskip("torch", reason="it exports the model")
    from resnet_deploy.pipeline.building import BuildInputs, build
    from resnet_deploy.pipeline.exporting import export

    folder = tmp_path_factory.mktemp("float")
    labels = tuple(f"class {number}" for number in range(5))
    spec = ExportSpec(
        architecture="resnet18", weights="none", num_classes=5, image_size=32, resize=32, labels=labels, dtype="float32"
    )
    model = export(spec, folder / "resnet18.onnx", Silent()).path
    engines = {}
    for batch in ("1:8:16", "4"):
        wanted = BuildSpec(backend="onnxruntime", precision="fp32", batch=BatchRange.parse(batch))
        output = folder / f"batch-{batch.replace(':', '-')}"
        engines[batch] = build(BuildInputs(model, output=output), wanted, Silent()).bundle.path
    return engines


@pytest.fixture
def package(invoke, tmp_path):
    """Package an engine into ``tmp_path/models`` under the name `net`: (engine, options) -> repository."""

    def run(engine, *options):
        done = invoke("package", engine, "--triton", tmp_path / "models", "--name", "net", *options)
        assert done.exit_code == 0, done.output
        return tmp_path / "models"

    return run


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


# --- refusals


def test_a_folder_that_is_not_ours_is_refused(deployment, invoke, tmp_path):
    folder = tmp_path / "models/net"
    (folder / "1").mkdir(parents=True)
    line = ("package", deployment.engines["fp32"], "--triton", tmp_path / "models", "--name", "net")
    for config in (None, 'name: "net"\n'):
        if config is not None:
            (folder / "config.pbtxt").write_text(config)
        before = files(tmp_path)
        assert_refused(invoke(*line), "was not made by `resnet-deploy package`", "choose another --name")
        assert files(tmp_path) == before


def test_an_edited_configuration_is_not_overwritten(deployment, package, invoke, tmp_path):
    config = package(deployment.engines["fp32"]) / "net/config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 4"))
    before = files(tmp_path)
    line = ("package", deployment.engines["int8"], "--triton", tmp_path / "models", "--name", "net")
    assert_refused(invoke(*line), "config.pbtxt was edited since it was made", "give what was edited as options")
    assert files(tmp_path) == before


def test_a_version_of_another_interface_is_refused(deployment, float_engines, package, invoke, tmp_path):
    package(deployment.engines["fp32"])
    before = files(tmp_path)
    line = ("package", float_engines["1:8:16"], "--triton", tmp_path / "models", "--name", "net")
    assert_refused(invoke(*line), "has another interface (preprocess, classes, labels)", "choose another --name")
    assert files(tmp_path) == before  # no model around it either


@pytest.mark.parametrize("batches", [("1:8:16", "4"), ("4", "1:8:16")], ids=["fixed", "combined"])
def test_a_version_of_another_first_dimension_is_refused(float_engines, package, invoke, tmp_path, batches):
    package(float_engines[batches[0]])
    before = files(tmp_path)
    line = ("package", float_engines[batches[1]], "--triton", tmp_path / "models", "--name", "net")
    assert_refused(invoke(*line), "net_preprocess has another interface (batch)", "choose another --name")
    assert files(tmp_path) == before


def test_versions_share_their_labels_where_they_have_any(deployment, copy_engine, package, invoke, tmp_path):
    bare, other = tmp_path / "bare", tmp_path / "other"
    copy_engine("fp32", to=bare, change=lambda manifest: manifest["card"].update(labels=[]))
    swapped = ["one", "zero", *deployment.card.labels[2:]]
    copy_engine("fp32", to=other, change=lambda manifest: manifest["card"].update(labels=swapped))
    package(deployment.engines["fp32"])
    line = ("package", other, "--triton", tmp_path / "models", "--name", "net")
    assert_refused(invoke(*line), "has another interface (labels)", "choose another --name")
    package(bare)
    assert Server(tmp_path / "models").models["net"].version == 2
    package(deployment.engines["fp32"])
    assert Server(tmp_path / "models").models["net"].labels["logits"] == list(deployment.card.labels)


def test_an_edited_interface_is_refused(deployment, package, invoke, tmp_path):
    interface = package(deployment.engines["fp32"]) / "net/1/interface.json"
    interface.write_text(interface.read_text().replace("{", '{"more": 1,', 1))
    line = ("package", deployment.engines["int8"], "--triton", tmp_path / "models", "--name", "net")
    assert_refused(invoke(*line), "has another interface (its file was edited)")


def test_a_name_that_a_model_around_another_has_is_refused(float_engines, package, invoke, tmp_path):
    package(float_engines["1:8:16"])
    before = files(tmp_path)
    line = ("package", float_engines["1:8:16"], "--triton", tmp_path / "models", "--name", "net_ensemble")
    assert_refused(invoke(*line), "net_ensemble has another interface (kind)")
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpus", "0"), "--gpus has no effect with onnxruntime engines"),
        (("--gpus", "zero"), "'zero' is not a list of numbers"),
        (("--cuda-graphs",), "--cuda-graphs has no effect"),
        (("--instances", "0"), "0 instances"),
        (("--name", "a/b"), "'a/b' cannot name a model"),
        (("--max-delay", "-5"), "a delay of -5 microseconds"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(deployment, invoke, tmp_path, options, message):
    done = invoke("package", deployment.engines["fp32"], "--triton", tmp_path / "models", *options)
    assert_refused(done, message)
    assert list(tmp_path.iterdir()) == []


def test_a_backend_that_triton_lacks_is_refused(copy_engine, invoke, tmp_path):
    engine = copy_engine("fp32", change=lambda manifest: manifest["spec"].update(backend="tensorrt-rtx"))
    done = invoke("package", engine, "--triton", tmp_path / "models")
    assert_refused(done, "Triton has no backend that runs tensorrt-rtx engines", "build with --backend tensorrt")
    assert not (tmp_path / "models").exists()


def test_a_damaged_bundle_is_refused(copy_engine, flip_bit, invoke, tmp_path):
    engine = copy_engine("fp32")
    flip_bit(engine / "model.onnx")
    assert_refused(invoke("package", engine, "--triton", tmp_path / "models"), "model.onnx was altered")
    assert_refused(invoke("package", tmp_path / "none", "--triton", tmp_path / "models"), "none does not exist")
    assert not (tmp_path / "models").exists()


def test_golden_inputs_that_are_none_are_refused(copy_engine, rewrite, reseal, invoke, tmp_path):
    """Their digest says that nothing was altered since, and no more."""
    engine = copy_engine("fp32")
    rewrite(engine / "golden.npz", b"no archive")
    reseal(engine, "golden.npz")
    assert_refused(invoke("package", engine, "--triton", tmp_path / "models"), "golden.npz is damaged", "build")
    np.savez(tmp_path / "other.npz", images=np.zeros((2, 8, 8, 3), np.uint8), logits=np.zeros((2, 10), np.float32))
    rewrite(engine / "golden.npz", (tmp_path / "other.npz").read_bytes())
    reseal(engine, "golden.npz")
    assert_refused(invoke("package", engine, "--triton", tmp_path / "models"), "do not fit card.preprocess", "build")
    assert not (tmp_path / "models").exists()


def test_a_repository_that_is_a_file_is_refused(deployment, invoke, tmp_path):
    (tmp_path / "models").write_text("")
    assert_refused(invoke("package", deployment.engines["fp32"], "--triton", tmp_path / "models"), "is not a folder")


def test_as_json(deployment, invoke, tmp_path):
    done = invoke("package", deployment.engines["int8"], "--triton", tmp_path / "models", "--json")
    found = json.loads(done.stdout)
    name = open_bundle(deployment.engines["int8"]).manifest.name
    assert found["models"] == [{"name": name, "version": 1, "state": "new"}]
    assert (found["bundle"], found["repository"]) == (name, str(tmp_path / "models"))
    assert len(found["notes"]) <= 1  # of the INT8 dot product, where this CPU has one


# --- whole or not at all

KILLED = """
import os, shutil, signal, sys
def stop_halfway(source, target):
    with open(target, "wb") as file:
        file.write(open(source, "rb").read(1000))
    os.kill(os.getpid(), signal.SIGKILL)
shutil.copyfile = stop_halfway
from resnet_deploy.cli import main
main(sys.argv[1:], prog_name="resnet-deploy")
"""


def killed(*line):
    """Run the command line in a process that is killed while it copies the engine."""
    command = [sys.executable, "-c", KILLED, *map(str, line)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def folders(repository):
    """List what Triton takes for models: the file of the lock, which a killed command leaves behind, is none."""
    return [path for path in repository.iterdir() if path.name != LOCK]


def test_killed_before_there_is_a_model(deployment, package, tmp_path):
    repository = tmp_path / "place/models"
    repository.mkdir(parents=True)
    line = ("package", deployment.engines["fp32"], "--triton", repository, "--name", "net")
    killed(*line)
    assert folders(repository) == []  # not so much as a hidden folder, which Triton would take for a model
    assert len(list((tmp_path / "place").glob(".net.*.tmp"))) == 1


def test_killed_beside_an_older_version(deployment, package, tmp_path):
    repository = package(deployment.engines["fp32"])
    before = files(repository)
    killed("package", deployment.engines["int8"], "--triton", repository, "--name", "net")
    assert {path: what for path, what in files(repository).items() if path != LOCK} == before
    assert len(list(tmp_path.glob(".net.*.tmp"))) == 1
    package(deployment.engines["int8"])  # which clears up
    assert list(tmp_path.glob(".net.*")) == []
    assert not (repository / LOCK).exists()
    assert Server(repository).models["net"].version == 2


def test_killed_in_a_repository_that_is_a_file_system(deployment, invoke, mount_tmpfs):
    """There is no place beside it, and what is left in it is refused by the server."""
    repository = mount_tmpfs("size=200m")
    killed("package", deployment.engines["fp32"], "--triton", repository, "--name", "net")
    (left,) = folders(repository)
    server = Server(repository)
    assert (server.models, server.refused) == ({}, {left.name: "directory name must equal model name"})
    assert invoke("package", deployment.engines["fp32"], "--triton", repository, "--name", "net").exit_code == 0
    assert set(Server(repository).models) == {"net"}
    assert [path.name for path in repository.iterdir()] == ["net"]


@pytest.fixture
def bind(tmp_path):
    """Mount a folder at a second place: one disk by every number, but nothing can be renamed between them."""
    points = []

    def mount(source, point):
        for folder in (source, point):
            folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["mount", "--bind", source, point], check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot bind a folder: {done.stderr.strip()}")
        points.append(point)

    if shutil.which("mount") is None:
        pytest.skip("there is no mount command")
    yield mount
    for point in points:
        subprocess.run(["umount", point], check=True)


def test_a_repository_that_is_a_bind_mount(deployment, package, bind, tmp_path):
    """It has the number of the disk it lies on, so that it is no file system of its own by that."""
    bind(tmp_path / "disk", tmp_path / "models")
    assert (tmp_path / "models").stat().st_dev == tmp_path.stat().st_dev
    package(deployment.engines["fp32"])
    package(deployment.engines["int8"])
    assert Server(tmp_path / "models").models["net"].version == 2
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["net"]
    assert list(tmp_path.glob(".net.*")) == []


def test_a_model_that_is_a_link_to_another_file_system(deployment, package, mount_tmpfs, tmp_path):
    disk = mount_tmpfs("size=400m")
    package(deployment.engines["fp32"])
    (tmp_path / "models/net").rename(tmp_path / "aside")
    shutil.copytree(tmp_path / "aside", disk / "volume/net")
    (tmp_path / "models/net").symlink_to(disk / "volume/net")
    package(deployment.engines["int8"])
    assert (tmp_path / "models/net").readlink() == disk / "volume/net"
    assert Server(tmp_path / "models").models["net"].version == 2
    assert [path.name for path in disk.iterdir()] == ["volume"]
    assert [path.name for path in (disk / "volume").iterdir()] == ["net"]


def test_who_reads_meanwhile_sees_whole_models(deployment, package, tmp_path):
    """A server that polls, while versions come: it never finds a folder without what its configuration names."""
    repository = package(deployment.engines["fp32"])
    broken, polls, begun, done = [], [], threading.Event(), threading.Event()

    def poll():
        """Look at least once before, and once after."""
        net, is_last = repository / "net", False
        while not is_last:
            is_last = done.is_set()
            # A version that was seen stays; a listing may be cut short where the folder was exchanged meanwhile.
            newest = max((int(path.name) for path in net.iterdir() if path.name.isdigit()), default=1)
            parts = [net / str(newest) / name for name in ("model.onnx", "manifest.json", "interface.json")]
            lacking = [part for part in (*parts, net / "labels.txt", net / "warmup/images") if not part.is_file()]
            if lacking or folders(repository) != [net] or origin((net / "config.pbtxt").read_bytes()) != "ours":
                broken.append((newest, lacking))
            polls.append(newest)
            begun.set()

    watcher = threading.Thread(target=poll)
    watcher.start()
    assert begun.wait(60)
    try:
        for precision in ("int8", "fp16", "fp32"):
            package(deployment.engines[precision])
    finally:
        done.set()
        watcher.join()
    assert broken == []
    assert (polls[0], polls[-1]) == (1, 4)
    assert Server(repository).models["net"].version == 4


def test_two_at_once_get_numbers_of_their_own(deployment, package, invoke, tmp_path):
    """Who comes while another packages waits, and sees what that one has added."""
    aside = package(deployment.engines["fp32"]).rename(tmp_path / "aside")
    repository = tmp_path / "models"
    repository.mkdir()
    second = threading.Thread(target=package, args=[deployment.engines["int8"]])
    with locked_file(repository / LOCK):
        second.start()
        second.join(0.5)  # were it not to wait, it would be done
        (aside / "net").rename(repository / "net")
    second.join()
    assert Server(repository).models["net"].version == 2


WITHOUT_EXTRAS = """
import sys
for name in ("torch", "onnx", "onnx_ir", "onnxruntime", "openvino", "tritonclient", "google.protobuf", "safetensors"):
    sys.modules[name] = None
from resnet_deploy.cli import main
main(sys.argv[1:], prog_name="resnet-deploy")
"""


def test_a_uint8_engine_is_packaged_without_any_extra(deployment, float_engines, tmp_path):
    def run(engine):
        line = ["package", str(engine), "--triton", str(tmp_path / "models"), "--name", "net"]
        command = [sys.executable, "-c", WITHOUT_EXTRAS, *line]
        return subprocess.run(
            command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )

    done = run(deployment.engines["fp32"])
    assert (done.returncode, done.stderr) == (0, "")
    done = run(float_engines["1:8:16"])
    assert done.returncode == 2
    assert "the normalisation is an ONNX graph, which takes ONNX to write" in done.stderr
    assert 'pip install "resnet-deploy[export]"' in done.stderr
