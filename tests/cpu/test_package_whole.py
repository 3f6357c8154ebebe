"""`package --triton` killed, crowded and on other file systems: a model is whole or not there."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_line import files

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")
pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="Triton's schema is in its client")

from triton_stand_in import Server

from resnet_deploy.integrations.triton.folders import origin
from resnet_deploy.locks import locked_file

ROOT = Path(__file__).parents[2]
LOCK = ".resnet-deploy.lock"


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
