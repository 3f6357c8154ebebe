"""Peers: each computes the model that the engines are of; one that cannot be had is in the record with the reason."""

import contextlib
import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from resnet_deploy import capabilities
from resnet_deploy.batching import infer
from resnet_deploy.bench_spec import BenchSpec
from resnet_deploy.bundle import open_bundle
from resnet_deploy.capabilities import have_modules
from resnet_deploy.datasets import find_images
from resnet_deploy.errors import BuildError, DataError, FileError, SpecError
from resnet_deploy.models import load_model
from resnet_deploy.ort_session import open_session
from resnet_deploy.pipeline import peers
from resnet_deploy.pipeline.benchmarking import bench
from resnet_deploy.pipeline.lineup import BenchInputs, Calibrated, Lineup
from resnet_deploy.pipeline.peers import PEERS, choose_peers, find_model, images_of, need_images, with_peers
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.protocols import Silent
from resnet_deploy.quantize.other_tools import quantize_apart
from resnet_deploy.runners.torch_peer import Setup, TorchPeer
from resnet_deploy.specs import BatchRange, ModelCard, Preprocess
from resnet_deploy.verify import compare_logits

# Looked for and not imported: NNCF patches functions of PyTorch.
MISSING = have_modules({module: extra for peer in PEERS for module, extra in peer.extras.items()}).reason
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "nothing is missing")
NAMES = [peer.name for peer in PEERS]
ONE_BATCH = BenchSpec(batches=(4,), seconds=0.01, rounds=1)
# Decibels against the exported model on ONNX Runtime. FP32 adds up in another order: 119 and more were measured. INT8
# calibrated on twelve images keeps 23 (ONNX Runtime's tool) and 18 (NNCF) of this untrained network; other images, or
# these with their colours swapped, leave 8 to 10 of any.
FLOORS = {"fp32": 100.0, "int8": 14.0}
WRONG_DB = 12.0


@dataclass(frozen=True)
class Opened:
    """All peers of the session's model, and what their answers are held against."""

    lineup: Lineup
    images: np.ndarray
    expected: np.ndarray


@contextlib.contextmanager
def open_peers(deployment, names, calib=None, spec=ONE_BATCH):
    path = deployment.engines["int8"]
    inputs = BenchInputs(engines=(path,), peers=tuple(names), peer_calib=calib)
    empty = Lineup((), (), deployment.card, 2)
    with with_peers(empty, [open_bundle(path)], inputs, spec, Silent()) as lineup:
        yield lineup


@pytest.fixture(scope="module")
def opened(deployment):
    images = synthetic_images(deployment.card.preprocess, 8, seed=5)
    expected = open_session(deployment.model).run(["logits"], {"images": images})[0]
    with warnings.catch_warnings():  # what torch.compile imports later is none of ours
        warnings.simplefilter("ignore")
        with open_peers(deployment, ["all"], str(deployment.calibration)) as lineup:
            yield Opened(lineup, images, expected)


def candidate(opened, name):
    return next(one for one in opened.lineup.candidates if one.entrant.name == name)


def test_all_peers_are_here(opened):
    assert opened.lineup.not_run == ()
    assert [one.entrant.name for one in opened.lineup.candidates] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_peer_answers_as_the_exported_model_does(opened, name):
    peer = candidate(opened, name)
    found = infer(peer.entrant.runner, opened.images)
    assert compare_logits(opened.expected, found).sqnr_db > FLOORS[peer.precision]
    swapped = infer(peer.entrant.runner, np.ascontiguousarray(opened.images[..., ::-1]))
    assert compare_logits(opened.expected, swapped).sqnr_db < WRONG_DB
    shifted = infer(peer.entrant.runner, np.roll(opened.images, 1, axis=0))
    assert compare_logits(opened.expected, shifted).sqnr_db < WRONG_DB


@pytest.mark.parametrize("name", [peer.name for peer in PEERS if peer.calibrates])
def test_int8_of_others_is_int8(opened, name):
    peer = candidate(opened, name)
    exact = compare_logits(opened.expected, infer(peer.entrant.runner, opened.images)).sqnr_db
    assert exact < 60.0  # FP32 has more than 100
    assert peer.size_bytes < 0.3 * candidate(opened, "onnxruntime-plain").size_bytes


def test_records_say_what_a_peer_is(opened, deployment):
    for one in opened.lineup.candidates:
        assert (one.role, one.bundle) == ("peer", None)
        assert one.size_bytes > 1e6
        assert len(one.sha256) == 64
    assert candidate(opened, "torch-compile").settings.startswith("torch 2.")
    assert "torch.compile(model, dynamic=False)" in candidate(opened, "torch-compile").settings
    assert candidate(opened, "openvino-nncf").settings.startswith("openvino 20")
    assert ", nncf " in candidate(opened, "openvino-nncf").settings
    digests = {one.sha256 for one in opened.lineup.candidates}
    assert len(digests) == 4  # weights, the exported model, and one for each tool


def test_peers_calibrated_on_the_data_are_noticed(opened, deployment):
    fitted = [
        one.entrant.name for one in opened.lineup.candidates if one.was_fitted_to(find_images(deployment.calibration))
    ]
    assert fitted == ["onnxruntime-int8", "openvino-nncf"]
    assert not any(one.was_fitted_to(find_images(deployment.data)) for one in opened.lineup.candidates)


def test_openvino_has_a_request_for_each_caller_and_torch_one_caller(deployment):
    spec = BenchSpec(batches=(1,), seconds=0.01, rounds=1, concurrency=(1, 2))
    with open_peers(deployment, ["openvino-fp32", "torch-eager"], spec=spec) as lineup:
        by_name = {one.name: one for one in lineup.entrants}
        (pair,) = by_name["openvino-fp32"].others
        assert len(pair.runners) == 2
        assert pair.runners[0]._compiled is pair.runners[1]._compiled
        assert by_name["torch-eager"].others == ()


def test_peers_take_their_turns_with_the_engines(deployment):
    engine = deployment.engines["int8"]
    inputs = BenchInputs(engines=(engine,), pytorch=False, peers=("onnxruntime-plain", "openvino-fp32"))
    record = bench(inputs, BenchSpec(batches=(1, 2), seconds=0.02, rounds=2), threads=1, progress=Silent())
    assert [(one.name, one.role) for one in record.engines] == [
        (engine.name, "engine"),
        ("onnxruntime-plain", "peer"),
        ("openvino-fp32", "peer"),
    ]
    for one in record.engines:
        assert [samples.batch for samples in one.latency] == [1, 2]
        assert (one.settings == "") == (one.role == "engine")


# --- what cannot be had


def test_a_peer_that_cannot_be_called_as_asked_is_listed_and_the_others_measured(deployment):
    engine = deployment.engines["int8"]
    inputs = BenchInputs(engines=(engine,), pytorch=False, peers=("torch-eager", "openvino-fp32"))
    spec = BenchSpec(batches=(1,), seconds=0.02, rounds=2, concurrency=(2,))
    record = bench(inputs, spec, threads=1, progress=Silent())
    assert [one.name for one in record.engines] == [engine.name, "openvino-fp32"]
    assert [(one.name, one.reason) for one in record.not_run] == [
        ("torch-eager", "it can be called in none of the ways that are measured: add one caller, or host")
    ]
    with pytest.raises(ValueError, match="no latencies of"):
        type(record.engines[0])(**msgspec.structs.asdict(record.engines[0]) | {"latency": ()})


def test_peers_calibrate_on_as_many_images_as_the_engines_did(deployment):
    few = deployment.engines["int8"]
    assert images_of([open_bundle(few)]) == open_bundle(few).manifest.spec.calibration.max_images
    assert images_of([open_bundle(deployment.engines["fp32"])]) == 512
    bundle = open_bundle(few)
    spec = bundle.manifest.spec
    calibration = msgspec.structs.replace(spec.calibration, max_images=spec.calibration.max_images + 1)
    spec = msgspec.structs.replace(spec, calibration=calibration)
    other = dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, spec=spec))
    with pytest.raises(SpecError, match="the engines were calibrated on at most"):
        images_of([bundle, other])


def test_a_peer_without_its_library_is_listed_with_what_would_help(deployment, monkeypatch):
    is_installed = capabilities._is_installed
    monkeypatch.setattr(capabilities, "_is_installed", lambda module: module != "nncf" and is_installed(module))
    with open_peers(deployment, ["openvino-nncf", "onnxruntime-plain"], str(deployment.calibration)) as lineup:
        assert [one.name for one in lineup.entrants] == ["onnxruntime-plain"]
    (missing,) = lineup.not_run
    assert (missing.name, missing.backend, missing.precision) == ("openvino-nncf", "openvino", "int8")
    assert missing.reason == 'nncf is not installed: pip install "resnet-deploy[peers]"'


def test_a_tool_that_fails_is_listed_with_its_last_line(deployment, monkeypatch):
    def broken(tool, model, images, output):
        quantize_apart(tool, images, images, output)  # which is no model

    monkeypatch.setattr("resnet_deploy.quantize.other_tools.quantize_apart", broken)
    with open_peers(deployment, ["onnxruntime-int8"], str(deployment.calibration)) as lineup:
        assert lineup.candidates == ()
    (failed,) = lineup.not_run
    assert failed.reason.startswith("onnxruntime could not quantize the model: ")
    assert "\n" not in failed.reason


def test_a_network_that_does_not_compile_is_one_line(monkeypatch):
    def refuse(images):
        del images
        raise RuntimeError("\nNo working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr("torch.compile", lambda network, **_: refuse)
    contract = Preprocess(image_size=32, resize=32)
    card = ModelCard(architecture="resnet18", num_classes=10, weights="none", weights_sha256="", preprocess=contract)
    network = load_model("resnet18", None, num_classes=10).module
    peer = TorchPeer(network, card, BatchRange(1, 1, 4), Setup(compiled=True))
    with pytest.raises(BuildError, match=r"torch\.compile refuses the network: No working C\+\+ compiler found$"):
        peer.prepare((1,))


def test_what_tools_write_is_gone_in_the_end(deployment, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_peers(deployment, ["openvino-nncf"], "random") as lineup:
        assert [path.name for path in tmp_path.glob("*/*.bin")] == ["nncf.bin"]
        assert lineup.candidates[0].calibrated_on == Calibrated("", 100)  # noise
    assert list(tmp_path.iterdir()) == []


# --- what is refused


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"peers": ("torch-slow",)}, "unknown peer 'torch-slow'"),
        ({"peers": ("all", "torch-eager"), "peer_calib": "random"}, "unknown peer 'all'"),
        ({"peers": ("torch-eager", "torch-eager")}, "the peer torch-eager is named twice"),
        ({"peers": ("torch-eager", "openvino-nncf")}, "openvino-nncf needs images to calibrate on"),
        ({"peers": ("torch-eager",), "peer_calib": "random"}, "--peer-calib has no effect: no peer calibrates"),
        ({"peer_calib": "random"}, "--peer-calib has no effect"),
    ],
)
def test_requests_that_make_no_sense(given, match):
    with pytest.raises(SpecError, match=match) as caught:
        choose_peers(BenchInputs(engines=(Path("x"),), **given))
    assert caught.value.hint


def test_peers_are_in_the_order_of_the_table():
    chosen = choose_peers(BenchInputs(engines=(), peers=("openvino-fp32", "torch-eager")))
    assert [peer.name for peer in chosen] == ["torch-eager", "openvino-fp32"]
    assert need_images(("all",))
    assert not need_images(("torch-eager",))
    assert not need_images(())


def test_observations_calibrate_no_peer(deployment):
    observations = deployment.engines["int8"] / "observations.safetensors"
    with (
        pytest.raises(DataError, match="observations have none"),
        open_peers(deployment, ["openvino-nncf"], str(observations)),
    ):
        pass


def test_the_exported_model_must_be_beside_the_engines(deployment, copy_engine, tmp_path):
    engine = copy_engine("int8")
    (engine.parent / "other.onnx").write_bytes(b"another model")
    inputs = BenchInputs(engines=(engine,), pytorch=False, peers=("onnxruntime-plain",))
    with pytest.raises(FileError, match="the exported model is not beside the engines") as caught:
        bench(inputs, ONE_BATCH, threads=1, progress=Silent())
    assert "--peers" in caught.value.hint
    (engine.parent / "renamed.onnx").write_bytes(deployment.model.read_bytes())
    found = find_model([engine.parent], {open_bundle(engine).manifest.chain.onnx})
    assert found == engine.parent / "renamed.onnx"


def test_an_engine_named_like_a_peer_is_refused(deployment, copy_engine, tmp_path):
    twin = copy_engine("int8", to=tmp_path / "torch-eager")
    with pytest.raises(SpecError, match="more than one engine would appear as 'torch-eager'"):
        bench(BenchInputs(engines=(twin,), peers=("torch-eager",)), ONE_BATCH, threads=1, progress=Silent())


def test_the_table_names_what_exists():
    from resnet_deploy.backends import find_backend

    for peer in peers.PEERS:
        find_backend(peer.backend)
        assert peer.settings
        assert peer.extras
    assert len(set(NAMES)) == len(NAMES)
