"""Reading, writing and downloading weights; the downloads come from a server in a thread."""

import hashlib
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from resnet_deploy import checkpoints
from resnet_deploy.checkpoints import (
    fit_state_dict,
    read_state_dict,
    state_dict_digest,
    write_state_dict,
)
from resnet_deploy.errors import FileError, WeightsError


def small_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv1.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "bn1.running_var": torch.rand(4, generator=generator),
        "bn1.num_batches_tracked": torch.tensor(7),
        "half": torch.randn(5, generator=generator).bfloat16(),
    }


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert len(left) > 0
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


# --- files


@pytest.mark.parametrize("suffix", checkpoints.PICKLE_SUFFIXES)
@pytest.mark.parametrize("wrap", [None, "state_dict", "model", "model_state_dict"])
def test_reads_pickles_and_unwraps_them(tmp_path: Path, suffix: str, wrap: str | None) -> None:
    path = tmp_path / f"weights{suffix}"
    state = small_state()
    torch.save({wrap: state, "epoch": 3, "optimizer": {"lr": 0.1}} if wrap else OrderedDict(state), path)
    assert_same(read_state_dict(path), state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_strips_the_prefix_of_wrappers(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "wrapped.pth"
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in small_state().items()}}, path)
    assert_same(read_state_dict(path), small_state())


@pytest.mark.parametrize("key", checkpoints.CONTAINER_KEYS)
def test_two_sets_of_weights_are_one_too_many(tmp_path: Path, key: str) -> None:
    path = tmp_path / "averaged.pth"
    torch.save({key: small_state(), f"{key}_ema": small_state()}, path)
    with pytest.raises(WeightsError, match=f"holds two sets of weights: {key} and {key}_ema") as caught:
        read_state_dict(path)
    assert f"['{key}_ema']" in caught.value.hint


def test_keeps_a_prefix_that_only_some_names_have(tmp_path: Path) -> None:
    path = tmp_path / "mixed.pth"
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(state, path)
    assert_same(read_state_dict(path), state)


def test_safetensors_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "weights.safetensors"
    state = small_state()
    state["conv1.weight"] = state["conv1.weight"].to(memory_format=torch.channels_last)
    write_state_dict(path, state, {"recipe": "abc"})
    assert_same(read_state_dict(path), state)
    with checkpoints.safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"recipe": "abc"}
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]


def test_equal_weights_give_equal_files() -> None:
    metadata = {f"key {number}": "é" for number in range(12)}  # so many that an order by chance is never the same
    found = {checkpoints.state_dict_bytes(small_state(), metadata) for _ in range(3)}
    assert len(found) == 1
    (data,) = found
    assert all(safetensors.torch.load(data)[name].equal(tensor) for name, tensor in small_state().items())
    assert json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"] == metadata


def test_the_comparison_notices_one_changed_value() -> None:
    changed = small_state()
    changed["conv1.weight"][0, 0, 0, 0] += 1e-6
    with pytest.raises(AssertionError):
        assert_same(changed, small_state())


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="absent") as caught:
        read_state_dict(tmp_path / "absent.pth")
    assert caught.value.hint
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(FileError, match="folder"):
        read_state_dict(tmp_path / "folder.pth")


def test_unknown_suffix_names_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="imagenet-v3") as caught:
        read_state_dict(Path("imagenet-v3"))
    assert "imagenet-v1" in caught.value.hint
    assert ".safetensors" in caught.value.hint


@pytest.mark.parametrize("kept", [0, 1, 10, 400, -1])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files(tmp_path: Path, kind: str, kept: int) -> None:
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        write_state_dict(path, small_state(), {})
    else:
        torch.save(small_state(), path, _use_new_zipfile_serialization=kind == "zip")
    assert_same(read_state_dict(path), small_state())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match="damaged") as caught:
        read_state_dict(path)
    assert "\n" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("name", ["noise.pth", "noise.safetensors"])
def test_noise_is_not_a_checkpoint(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(hashlib.sha512(b"noise").digest() * 100)
    with pytest.raises(WeightsError, match="damaged"):
        read_state_dict(path)


class Payload:
    """Makes a file when unpickled by a reader that runs what it reads."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    path, target = tmp_path / "evil.pth", tmp_path / "was-run"
    content = {"conv1.weight": torch.ones(1), "payload": Payload(target)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="more than tensors") as caught:
        read_state_dict(path)
    assert "state_dict()" in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint
    assert not target.exists()
    torch.load(path, weights_only=False)  # the payload is a real one
    assert target.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, pickle.HIGHEST_PROTOCOL])
def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    path, target = tmp_path / "evil.pth", tmp_path / "was-run"
    path.write_bytes(pickle.dumps(Payload(target), protocol))
    with pytest.raises(WeightsError):
        read_state_dict(path)
    assert not target.exists()


def test_a_whole_module_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(WeightsError, match="more than tensors"):
        read_state_dict(tmp_path / "module.pt")


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": 3}, torch.ones(2)], ids=repr)
def test_no_state_dict_inside(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        read_state_dict(tmp_path / "odd.pth")


def test_what_is_no_tensor_is_named(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.ones(1), "lr": 0.1}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match="'lr'"):
        read_state_dict(tmp_path / "odd.pth")


UNUSUAL = {
    "meta": (lambda: torch.ones(2, device="meta"), "has a shape and no values"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "is stored as torch.sparse_coo"),
    "compressed": (lambda: torch.eye(3).to_sparse_csr(), "is stored as torch.sparse_csr"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "is a nested tensor"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "is quantized already"),
}


@pytest.mark.filterwarnings("ignore")  # PyTorch warns of what it means to change about some of these
@pytest.mark.parametrize(("make", "fault"), UNUSUAL.values(), ids=UNUSUAL.keys())
def test_tensors_that_are_no_arrays_of_numbers(tmp_path: Path, make: Callable[[], torch.Tensor], fault: str) -> None:
    torch.save({"conv1.weight": torch.ones(1), "fc.weight": make()}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=rf"fc\.weight in .*odd\.pth {fault}") as caught:
        read_state_dict(tmp_path / "odd.pth")
    assert caught.value.hint


def _fail(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("call", "name"),
    [("safetensors.torch.load", "a.safetensors"), ("torch.load", "a.pth"), ("torch._C.PyTorchFileReader", "a.pth")],
)
def test_short_memory_is_not_put_on_the_file(monkeypatch, tmp_path: Path, call: str, name: str) -> None:
    path = tmp_path / name
    (safetensors.torch.save_file if path.suffix == ".safetensors" else torch.save)({"a": torch.ones(9)}, path)
    monkeypatch.setattr(call, _fail(MemoryError()))
    with pytest.raises(MemoryError):
        read_state_dict(path)
    monkeypatch.setattr(call, _fail(ValueError()))
    with pytest.raises(WeightsError, match="damaged"):
        read_state_dict(path)


@pytest.mark.parametrize(("asked", "expected"), [(36, MemoryError), (1 << 60, WeightsError)])
def test_what_the_allocator_was_asked_for_tells_whose_fault_it_is(monkeypatch, tmp_path, asked, expected) -> None:
    torch.save({"a": torch.ones(9)}, tmp_path / "a.pth")
    said = f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {asked} bytes. Error code 12"
    monkeypatch.setattr("torch.load", _fail(RuntimeError(said)))
    with pytest.raises(expected):
        read_state_dict(tmp_path / "a.pth")


# --- digest and fit


def test_digest_ignores_order_format_and_counters(tmp_path: Path) -> None:
    state = small_state()
    digest = state_dict_digest(state)
    assert len(digest) == 64
    counted = dict(reversed(state.items())) | {"bn1.num_batches_tracked": torch.tensor(8)}
    assert state_dict_digest(counted) == digest
    write_state_dict(tmp_path / "a.safetensors", state, {"any": "thing"})
    assert state_dict_digest(read_state_dict(tmp_path / "a.safetensors")) == digest


@pytest.mark.parametrize(
    "change",
    [
        {"bn1.running_var": torch.zeros(4)},
        {"half": small_state()["half"].float()},
        {"conv1.weight": small_state()["conv1.weight"].reshape(4, 27)},
        {"one more": torch.ones(1)},
    ],
    ids=["value", "dtype", "shape", "name"],
)
def test_digest_notices(change: dict[str, torch.Tensor]) -> None:
    assert state_dict_digest(small_state() | change) != state_dict_digest(small_state())


def test_fit_converts_to_the_expected_dtypes() -> None:
    expected = {"a": torch.zeros(2, device="meta"), "n": torch.zeros((), dtype=torch.int64, device="meta")}
    fitted = fit_state_dict({"n": torch.tensor(1), "a": torch.ones(2).half()}, expected, "w.pth", "net")
    assert [(name, tensor.dtype) for name, tensor in fitted.items()] == [("a", torch.float32), ("n", torch.int64)]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": torch.ones(2)}, "b is missing$"),
        ({}, "a is missing, the first of 2 faults$"),
        ({"a": torch.ones(2), "b": torch.ones(1), "c": torch.ones(1)}, "c does not belong$"),
        ({"a": torch.ones(3), "b": torch.ones(1)}, r"a has shape \(3,\), not \(2,\)$"),
        ({"a": torch.tensor([1.0, torch.nan]), "b": torch.ones(1)}, "a in w.pth holds values that are not finite"),
        ({"a": torch.ones(2), "b": torch.tensor([-torch.inf])}, "b in w.pth holds values that are not finite"),
        ({"a": torch.ones(2), "b": torch.tensor([1e300]).double() * 1e10}, "b in w.pth .* not finite"),
        ({"a": torch.ones(2, dtype=torch.int8), "b": torch.ones(1)}, "a in w.pth holds torch.int8"),
    ],
)
def test_fit_refuses(state: dict[str, torch.Tensor], message: str) -> None:
    expected = {"a": torch.zeros(2), "b": torch.zeros(1)}
    with pytest.raises(WeightsError, match=message) as caught:
        fit_state_dict(state, expected, "w.pth", "net")
    assert caught.value.hint
