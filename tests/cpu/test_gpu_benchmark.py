"""The benchmark for GPUs, as far as a CPU can tell: its peers compute what they should, and what its table says."""

from dataclasses import replace

import gpu
import numpy as np
import pytest
import torch

from resnet_deploy.batching import infer
from resnet_deploy.models import create_model
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.runners.pytorch import TorchRunner
from resnet_deploy.runners.torch_peer import TorchPeer
from resnet_deploy.specs import BatchRange, ModelCard, Preprocess

CONTRACT = Preprocess(image_size=32, resize=32)
CARD = ModelCard(architecture="resnet18", num_classes=10, weights="none", weights_sha256="0" * 64, preprocess=CONTRACT)
BATCH = BatchRange(1, 2, 4)


ON_CPU = {name: replace(way, device="cpu") for name, way in gpu.WAYS.items() if not way.graphs and not way.compiled}
FIRST = next(iter(ON_CPU))


@pytest.mark.parametrize("way", ON_CPU.values(), ids=ON_CPU)
def test_a_peer_computes_what_the_reference_does(way):
    torch.manual_seed(0)
    weights = create_model("resnet18", 10).state_dict()

    def network():
        made = create_model("resnet18", 10)
        made.load_state_dict(weights)
        return made

    images = synthetic_images(CONTRACT, 5)
    expected = infer(TorchRunner(network(), CARD, BATCH), images)
    found = infer(TorchPeer(network(), CARD, BATCH, way), images)
    # FP16 rounds to 11 bits in each of 20 layers; FP32 adds up in another order.
    tolerance = 2e-2 if way.dtype == "float16" else 1e-5
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < tolerance * scale
    wrong = network()
    wrong.fc.bias.data += 0.1 * scale
    other = infer(TorchPeer(wrong, CARD, BATCH, way), images)
    assert np.abs(other - expected).max() > tolerance * scale


def test_ways_are_told_apart():
    assert len(set(gpu.WAYS.values())) == len(gpu.WAYS)
    assert {way.device for way in gpu.WAYS.values()} == {"cuda"}
    assert {(way.compiled, way.graphs) for way in gpu.WAYS.values()} == {(False, False), (True, False), (False, True)}


RECORD = {
    "environment": {"gpu": {"gpus": [{"name": "NVIDIA H100 80GB HBM3"}]}},
    "model": {"architecture": "resnet50", "image_size": 224},
    "flop_per_image": gpu.FLOP_PER_IMAGE,
    "samples": {
        "torch FP32 eager": [{"batch": 1, "seconds": [0.01, 0.01, 0.5]}, {"batch": 32, "seconds": [0.032]}],
        "tensorrt int8": [{"batch": 32, "seconds": [0.0005]}],
    },
    "enqueue_seconds": {"torch FP32 eager": 0.0021, "tensorrt int8": 1.25e-5},
    "failures": {"tensorrt-rtx fp16": "TensorRT-RTX does not support compute capability 9.0 (Hopper)"},
}


def test_the_table_has_rates_and_their_bound():
    head, _, torch_row, int8_row, failed, _, published = gpu.table(RECORD)
    assert head == "|  | images/s, batch 1 | images/s, batch 32 | of the bound | enqueue, µs |"
    assert torch_row.startswith("| torch FP32 eager | 6 | 1,000 |")  # images over time: 3 in 0.52 s
    # 64,000 images/s of 2 x 989e12 / 8.2e9 = 241,220
    assert int8_row.endswith("| 64,000 | 26.5% | 12.5 |")
    assert "Hopper" in failed
    assert "94,600" in published


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H200", 989e12),
        ("Tesla T4", 65e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA Something", None),
    ],
)
def test_peaks_are_of_the_gpus_that_have_them(name, peak):
    assert gpu.peak_of(name) == peak


@pytest.mark.parametrize(
    "change",
    [
        {"environment": {"gpu": {"gpus": [{"name": "NVIDIA Something"}]}}},
        {"model": {"architecture": "resnet18", "image_size": 224}},
    ],
)
def test_without_a_peak_or_for_another_model_no_bound_is_claimed(change):
    assert "%" not in "".join(gpu.table(RECORD | change))


def test_without_a_gpu_it_says_so_and_measures_nothing(monkeypatch):
    from click.testing import CliRunner

    from resnet_deploy import environment

    if environment.collect().gpu.gpus:
        pytest.skip("there is a GPU")
    result = CliRunner().invoke(gpu.main, [])
    assert result.exit_code == 2
    assert "no NVIDIA GPU" in result.stderr


def test_the_host_s_share_of_a_call_is_measured(monkeypatch):
    monkeypatch.setattr(gpu, "ENQUEUES", 3)
    peer = TorchPeer(create_model("resnet18", 10), CARD, BATCH, ON_CPU[FIRST])
    lineup = gpu.Lineup([gpu.Entrant(FIRST, peer)], {})
    found = gpu.enqueue_seconds(lineup, synthetic_images(CONTRACT, 2))
    assert 1e-4 < found[FIRST] < 10  # on the CPU it waits for the network: a millisecond and more
