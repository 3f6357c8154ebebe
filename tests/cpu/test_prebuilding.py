"""A fleet's engines: built in processes of their own, listed in one index, chosen from where one is loaded."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from command_line import assert_refused

import resnet_deploy
from resnet_deploy import artifact, environment
from resnet_deploy.bundle import MANIFEST, open_bundle, write_manifest
from resnet_deploy.cli.prebuild import fleet_specs
from resnet_deploy.cli.prebuild import prebuild as command
from resnet_deploy.driver import Gpu, GpuProbe
from resnet_deploy.errors import BackendError, BuildError, BundleError, FileError, SpecError
from resnet_deploy.fleet import INDEX, describe_bundle, is_fleet, read_fleet, write_fleet
from resnet_deploy.locks import locked_file
from resnet_deploy.pipeline import prebuilding
from resnet_deploy.pipeline.building import RANDOM, BuildInputs, build
from resnet_deploy.pipeline.prebuilding import engine_name, one_for_each_target, prebuild, require_whole
from resnet_deploy.pipeline.verifying import find_source
from resnet_deploy.protocols import Silent
from resnet_deploy.specs import BatchRange, BuildSpec, CalibrationSpec
from resnet_deploy.trt_options import TrtOptions

SMALL = BatchRange(1, 2, 4)
ORT = {"backend": "onnxruntime", "batch": SMALL}


def specs(*precisions):
    return [
        BuildSpec(**ORT, precision=name, calibration=CalibrationSpec() if name == "int8" else None)
        for name in precisions
    ]


@pytest.fixture(scope="module")
def fleet(deployment, tmp_path_factory) -> Path:
    """INT8 and FP32 for ONNX Runtime, in that order."""
    folder = tmp_path_factory.mktemp("fleet") / "engines"
    inputs = BuildInputs(deployment.model, calib=RANDOM)
    prebuilt = prebuild(inputs, specs("int8", "fp32"), folder, 2, Silent())
    require_whole(prebuilt)
    assert prebuilt.fleet == read_fleet(folder)
    return folder


@pytest.fixture
def copy(fleet, tmp_path) -> Path:
    return Path(shutil.copytree(fleet, tmp_path / "engines"))


# --- the index


def test_the_index_says_what_there_is(fleet, deployment):
    found = read_fleet(fleet)
    assert [engine.folder for engine in found.engines] == ["int8-onnxruntime", "fp32-onnxruntime"]
    assert found.onnx_sha256 == artifact.sha256_file(deployment.model)
    assert {path.name for path in fleet.iterdir()} == {INDEX, *(engine.folder for engine in found.engines)}
    for engine in found.engines:
        bundle = open_bundle(fleet / engine.folder)
        bundle.verify_files()
        assert engine == describe_bundle(bundle)
        assert engine.size_bytes == bundle.engine_path.stat().st_size
        assert engine.measured.by == "engine"
    assert is_fleet(fleet)
    assert not is_fleet(fleet / "int8-onnxruntime")


def test_a_second_run_builds_nothing(copy, deployment):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file() and path.name != INDEX}
    index = (copy / INDEX).read_bytes()
    prebuild(BuildInputs(deployment.model, calib=RANDOM), specs("int8", "fp32"), copy, 1, Silent())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (copy / INDEX).read_bytes() == index


def test_two_commands_do_not_fill_one_folder(copy, deployment):
    """They would list each other's engines, which have the same names and other batch sizes."""
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    inputs = BuildInputs(deployment.model, calib=RANDOM)
    with locked_file(copy / ".prebuild.lock"), pytest.raises(FileError, match="another command is building into it"):
        prebuild(inputs, specs("fp32", "fp16"), copy, 1, Silent())
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path != copy} == {
        path: when for path, when in before.items() if path != copy
    }


def test_what_cannot_be_built_is_told_and_the_rest_is_built(deployment, tmp_path):
    folder = tmp_path / "engines"
    inputs = BuildInputs(deployment.model, calib=str(tmp_path / "nowhere"))
    prebuilt = prebuild(inputs, specs("int8", "fp32"), folder, 1, Silent())
    assert [engine.folder for engine in prebuilt.fleet.engines] == ["fp32-onnxruntime"]
    (failure,) = prebuilt.failures
    assert failure.name == "int8-onnxruntime"
    assert "nowhere" in failure.message
    assert failure.hint
    with pytest.raises(BuildError, match=r"int8-onnxruntime was not built: .*nowhere"):
        require_whole(prebuilt)


def test_nothing_that_can_be_built_leaves_no_index(tmp_path):
    folder = tmp_path / "engines"
    (tmp_path / "no.onnx").write_bytes(b"no model")
    prebuilt = prebuild(BuildInputs(tmp_path / "no.onnx"), specs("fp32"), folder, 1, Silent())
    assert prebuilt.fleet is None
    assert not artifact.exists(folder / INDEX)


def test_what_cannot_come_true_is_refused_before_anything_is_built(deployment, tmp_path, monkeypatch):
    monkeypatch.setattr(prebuilding, "ProcessPoolExecutor", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(FileError, match=r"no\.onnx does not exist"):
        prebuild(BuildInputs(tmp_path / "no.onnx"), specs("fp32"), tmp_path / "engines", 1, Silent())
    for asked, message in (
        (BuildSpec(backend="onnxruntime", precision="bf16"), "onnxruntime"),
        (BuildSpec(backend="tensorrt", precision="fp16"), "cannot build for tensorrt"),
    ):
        with pytest.raises(BackendError, match=message) as caught:
            prebuild(BuildInputs(deployment.model), [*specs("fp32"), asked], tmp_path / "engines", 1, Silent())
        assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_requests_that_make_no_sense(tmp_path):
    inputs = BuildInputs(tmp_path / "no.onnx")
    with pytest.raises(SpecError, match="asked for twice"):
        prebuild(inputs, specs("fp32", "fp32"), tmp_path / "engines", 1, Silent())
    with pytest.raises(SpecError, match="0 processes"):
        prebuild(inputs, specs("fp32"), tmp_path / "engines", 0, Silent())
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="is not a folder"):
        prebuild(inputs, specs("fp32"), tmp_path / "file", 1, Silent())


# --- choosing


def test_an_application_gets_the_first_engine_that_fits(fleet):
    with resnet_deploy.load(fleet) as engine:
        assert engine.bundle.path.name == "int8-onnxruntime"
        shape = engine.manifest.card.preprocess.shape
        assert engine(np.zeros((3, *shape), np.uint8)).shape == (3, engine.manifest.card.num_classes)


def test_an_engine_for_another_machine_is_passed_over(copy, monkeypatch):
    demand(copy, "int8-onnxruntime", compute_capabilities=("8.6",))
    hopper = GpuProbe((Gpu("Synthetic GPU", "9.0", 2**34),), "13.0")
    here = msgspec.structs.replace(environment.collect(), gpu=hopper)
    monkeypatch.setattr(environment, "collect", lambda: here)
    with resnet_deploy.load(copy) as engine:
        assert engine.bundle.path.name == "fp32-onnxruntime"


def test_no_engine_for_this_machine_says_why_not(copy):
    for name in ("int8-onnxruntime", "fp32-onnxruntime"):
        demand(copy, name, library="numpy", version="0.0.1")
    with pytest.raises(BundleError, match="has no engine for this machine") as caught:
        resnet_deploy.load(copy)
    assert caught.value.message.count("requires.version is numpy 0.0.1") == 2


def test_a_fleet_of_no_engine_says_so(copy):
    index = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps(index | {"engines": []}))
    with pytest.raises(BundleError, match="has no engine for this machine: it has none at all"):
        resnet_deploy.load(copy)


def demand(folder: Path, name: str, **requires) -> None:
    """Let an engine of the fleet ask for something, and the index know of it."""
    bundle = open_bundle(folder / name)
    wanted = msgspec.structs.replace(bundle.manifest.requires, **requires)
    write_manifest(bundle.path, msgspec.structs.replace(bundle.manifest, requires=wanted))
    write_fleet(folder, [open_bundle(folder / engine.folder) for engine in read_fleet(folder).engines])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index | {"schema_version": 99}, "is of schema_version 99"),
        (lambda index: index | {"engines": 3}, "is damaged"),
        (lambda index: {**index, "engines": [index["engines"][0] | {"folder": "../x"}]}, "no folder inside the fleet"),
    ],
)
def test_a_damaged_index_is_refused(copy, change, message):
    index = json.loads((copy / INDEX).read_text())
    (copy / INDEX).write_text(json.dumps(change(index)))
    with pytest.raises(BundleError, match=message) as caught:
        resnet_deploy.load(copy)
    assert caught.value.hint


def test_an_engine_that_was_exchanged_is_not_taken(copy):
    """A manifest that is whole in itself, and not the one that was indexed."""
    bundle = open_bundle(copy / "int8-onnxruntime")
    write_manifest(bundle.path, msgspec.structs.replace(bundle.manifest, notes=("something else",)))
    (copy / "fp32-onnxruntime" / MANIFEST).unlink()
    with pytest.raises(BundleError, match=r"int8-onnxruntime is not the engine that .*index\.json names"):
        resnet_deploy.load(copy)


def test_an_index_older_than_an_engine_is_refused(copy, deployment):
    """What a run leaves that is killed between an engine and the index, over an older fleet."""
    other = BuildInputs(deployment.model, output=copy / "fp32-onnxruntime")
    build(other, msgspec.structs.replace(specs("fp32")[0], batch=BatchRange(1, 1, 2)), Silent())
    rest = msgspec.structs.replace(read_fleet(copy), engines=read_fleet(copy).engines[1:])
    artifact.write_bytes(copy / INDEX, msgspec.json.encode(rest))
    with pytest.raises(BundleError, match=r"fp32-onnxruntime is not the engine that .*index\.json names") as caught:
        resnet_deploy.load(copy)
    assert "prebuild" in caught.value.hint
    prebuild(BuildInputs(deployment.model), specs("fp32"), copy, 1, Silent())  # which builds it as it was asked for
    with resnet_deploy.load(copy) as engine:
        assert engine.manifest.spec.batch == SMALL


def test_an_engine_that_would_not_run_here_need_not_be_whole(copy, monkeypatch):
    demand(copy, "int8-onnxruntime", compute_capabilities=("8.6",))
    shutil.rmtree(copy / "int8-onnxruntime")
    hopper = GpuProbe((Gpu("Synthetic GPU", "9.0", 2**34),), "13.0")
    here = msgspec.structs.replace(environment.collect(), gpu=hopper)
    monkeypatch.setattr(environment, "collect", lambda: here)
    with resnet_deploy.load(copy) as engine:
        assert engine.bundle.path.name == "fp32-onnxruntime"


def test_a_backend_that_this_version_does_not_know_is_passed_over(copy):
    index = json.loads((copy / INDEX).read_text())
    index["engines"][0]["backend"] = "of-the-future"
    (copy / INDEX).write_text(json.dumps(index))
    with resnet_deploy.load(copy) as engine:
        assert engine.bundle.path.name == "fp32-onnxruntime"


def test_a_fleet_is_no_engine_and_says_which_are_in_it(copy):
    with pytest.raises(FileError, match=r"has no manifest\.json") as caught:
        open_bundle(copy)
    assert caught.value.hint == "name an engine in it: fp32-onnxruntime, int8-onnxruntime"


# --- what is asked for


def asked(**options):
    typed = [word for name, value in options.items() for word in (f"--{name}", value)]
    with command.make_context("prebuild", typed) as context:
        return fleet_specs(dict(context.params))


def test_an_engine_for_each_target():
    found = asked(precisions="int8, fp16", targets="sm89,sm120", calib="images")
    assert [engine_name(spec) for spec in found] == [
        "int8-tensorrt-rtx-sm89",
        "int8-tensorrt-rtx-sm120",
        "fp16-tensorrt-rtx-sm89",
        "fp16-tensorrt-rtx-sm120",
        "int8-onnxruntime",
        "fp16-onnxruntime",
    ]
    assert {spec.calibration is not None for spec in found if spec.precision == "int8"} == {True}
    assert [spec.trt.targets for spec in found[:2]] == [("8.9",), ("12.0",)]


def test_no_target_is_the_compilers_own_choice():
    assert [engine_name(spec) for spec in asked()] == ["fp16-tensorrt-rtx", "fp16-onnxruntime"]
    whole = BuildSpec(backend="tensorrt-rtx", precision="fp16", trt=TrtOptions())
    assert one_for_each_target(whole) == [whole]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precisions": "fp16,fp12"}, "no such precision: 'fp12'"),
        ({"backends": "onnxruntime", "targets": "sm89"}, "--targets has no effect without tensorrt-rtx"),
        ({"precisions": "int8"}, "INT8 needs calibration images"),
        ({"precisions": "fp16, fp8", "targets": "sm89"}, "FP8 needs calibration images"),
        ({"targets": ""}, "is no GPU generation"),
        ({"targets": "sm90"}, "does not support compute capability 9.0"),
    ],
)
def test_requests_that_would_have_no_effect(changes, message):
    with pytest.raises(SpecError, match=message) as caught:
        asked(**changes)
    assert caught.value.hint


def test_the_model_of_a_fleets_engine_is_found_beside_the_fleet(deployment, tmp_path):
    folder = tmp_path / "fleet"
    require_whole(prebuild(BuildInputs(deployment.model), specs("fp32"), folder, 1, Silent()))
    bundle = open_bundle(folder / "fp32-onnxruntime")
    with pytest.raises(FileError, match="is not beside it"):
        find_source(bundle, None)
    shutil.copy(deployment.model, tmp_path)
    assert find_source(bundle, None).sha256 == bundle.manifest.chain.onnx
    (folder / INDEX).unlink()  # a folder that happens to lie there is no fleet
    with pytest.raises(FileError, match="is not beside it"):
        find_source(bundle, None)


# --- the command


def test_options_that_would_have_no_effect_are_refused(invoke, workplace):
    line = "prebuild engines/resnet18.onnx --precisions fp16 --backends onnxruntime"
    for more in ("--calib calibration", "--calib-percentile 99", "--no-equalize", "--skip-corrupt"):
        result = invoke(*f"{line} {more}".split())
        assert_refused(result, f"{more.split()[0]} has no effect with")
    assert not (workplace / "engines/fleet").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_its_workers_and_leaves_no_half(deployment, tmp_path, number):
    """Sent to the command alone, as a container does; what has been built stays."""
    pytest.importorskip("tensorrt_rtx", reason="its builds take long enough to be interrupted")
    targets = "sm75,sm80,sm86,sm89,sm120,sm121"
    arguments = [deployment.model, "--targets", targets, "--backends", "tensorrt-rtx", "--jobs", "2", "-o", "fleet"]
    code = "import sys; from resnet_deploy.cli import main; main(prog_name='resnet-deploy')"
    started = subprocess.Popen([sys.executable, "-c", code, "prebuild", *arguments], cwd=tmp_path)
    while not list(tmp_path.glob("fleet/.fp16-*")):  # until one is being built
        assert started.poll() is None
        time.sleep(0.05)
    workers = workers_of(started.pid)
    assert len(workers) == 2
    started.send_signal(number)
    assert started.wait(timeout=60) == 128 + number
    assert not any(alive(worker) for worker in workers)
    left = {path.name for path in (tmp_path / "fleet").iterdir()} if (tmp_path / "fleet").exists() else set()
    assert not [name for name in left if name.startswith(".fp16")]
    assert INDEX not in left
    assert len(left) < 6


def test_a_worker_that_is_killed_is_told_of(deployment, tmp_path):
    """As by a system that is short of memory; nothing waits for it."""

    def kill_one():
        while not (workers := workers_of(os.getpid())):
            time.sleep(0.01)
        os.kill(workers[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    prebuilt = prebuild(BuildInputs(deployment.model), specs("fp32", "fp16"), tmp_path / "engines", 1, Silent())
    killer.join()
    assert prebuilt.fleet is None
    assert [one.name for one in prebuilt.failures] == ["fp32-onnxruntime", "fp16-onnxruntime"]
    with pytest.raises(BuildError, match=r"fp32-onnxruntime was not built \(and 1 more\): .* was killed") as caught:
        require_whole(prebuilt)
    assert "memory" in caught.value.hint
    assert not (tmp_path / "engines").exists()


def workers_of(pid: int) -> list[int]:
    """Numbers of the processes that a process builds in; Python's own helper, which ends by itself, is none."""
    started = [
        int(one) for task in Path(f"/proc/{pid}/task").iterdir() for one in (task / "children").read_text().split()
    ]
    return [one for one in started if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
