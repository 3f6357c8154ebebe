"""What `package --triton` refuses, and what it leaves as it is."""

from pathlib import Path

import numpy as np
import pytest
from command_line import assert_refused, files

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")
pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="Triton's schema is in its client")

from triton_stand_in import Server

ROOT = Path(__file__).parents[2]
LOCK = ".resnet-deploy.lock"


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


def test_a_damaged_interface_is_refused(deployment, package, invoke, tmp_path):
    (package(deployment.engines["fp32"]) / "net/1/interface.json").write_text("[")
    line = ("package", deployment.engines["int8"], "--triton", tmp_path / "models", "--name", "net")
    assert_refused(invoke(*line), "net/1/interface.json is damaged", "choose another --name")


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
