"""Hostile networks compute the same; what INT8 makes of them is in `test_trained.py`."""

import numpy as np
import pytest
import torch
from hostile import make_hostile
from int8_subjects import UINT8
from torch import nn

from resnet_deploy.export import example_images, reference_logits
from resnet_deploy.models import create_model

# FP32 products and sums round by 6e-8 each, up to 53 layers deep; a factor left out anywhere shows at 1e-2 and above.
RELATIVE_TOLERANCE = 1e-4


@pytest.fixture(autouse=True, scope="module")
def two_threads():
    torch.set_num_threads(2)


def relative_difference(network, other):
    images = example_images(UINT8, batch=4)
    expected, found = (reference_logits(one, UINT8, images) for one in (network, other))
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("stream", [False, True], ids=["inside", "stream"])
@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "plain18"])
def test_a_hostile_network_computes_the_same(architecture, stream):
    network = create_model(architecture, 10).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    hostile = make_hostile(network, stream=stream)
    assert relative_difference(network, hostile) < RELATIVE_TOLERANCE
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    with torch.no_grad():
        hostile.layer2[0].bn1.weight *= 1.25  # the twin: factors that nothing divides
    assert relative_difference(network, hostile) > 10 * RELATIVE_TOLERANCE


def spread(network, other):
    """Decades between the largest and the smallest factor of each BatchNorm, by name."""
    norms = {name: part for name, part in network.named_modules() if isinstance(part, nn.BatchNorm2d)}
    changed = dict(other.named_modules())
    ratios = {name: (changed[name].weight / part.weight).detach() for name, part in norms.items()}
    return {name: float(torch.log10(ratio.max() / ratio.min())) for name, ratio in ratios.items()}


def test_factors_reach_over_the_decades_asked_for():
    network = create_model("resnet18", 10).eval()
    inside = spread(network, make_hostile(network))
    # 64 or more log-uniform factors leave less than 0.6 of 4 decades unused but once in thousands of networks.
    assert all((3.4 < decades <= 4) == name.endswith(".bn1") for name, decades in inside.items())
    assert sum(decades > 0 for decades in inside.values()) == 8
    stream = spread(network, make_hostile(network, stream=True))
    assert len(stream) == 20
    assert min(stream.values()) > 3.4
    assert 1.6 < max(spread(network, make_hostile(network, decades=2)).values()) <= 2


def test_seeds_give_other_factors():
    network = create_model("resnet18", 10).eval()
    one, again, other = (make_hostile(network, seed=seed).layer1[0].bn1.weight for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, rtol=0.1)  # factors differ by decades
