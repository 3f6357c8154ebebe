"""Networks that are hard to quantize and compute the same: channels rescaled over several orders of magnitude.

ReLU, pooling and residual sums commute with a positive factor per channel, so a BatchNorm's output channels may be
multiplied by f where every convolution that reads them divides its weights by f. Trained checkpoints come like that
(Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", figure 2); here the
factors are known.
"""

import copy

import torch
from torch import Tensor, nn

from resnet_deploy.models import Block, Bottleneck, ResNet


def make_hostile(network: ResNet, *, decades: float = 4, stream: bool = False, seed: int = 0) -> ResNet:
    """Copy a network with its channels rescaled and its function kept, up to rounding; ``network`` is left as it was.

    Args:
        network: In evaluation mode: the statistics of its BatchNorms stay as they are.
        decades: Orders of magnitude that the factors are spread over, log-uniformly around 1.
        stream: Rescale what flows from block to block too, stem and pooled features included; otherwise only what
            stays inside a block.
        seed: The same seed gives the same factors.
    """
    hostile = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)

    def factors(norm: nn.BatchNorm2d, *, spread: bool = True) -> Tensor:
        exponents = (torch.rand(norm.num_features, generator=generator) - 0.5) * decades
        return torch.pow(10.0, exponents) if spread else torch.ones_like(exponents)

    with torch.no_grad():
        current = factors(hostile.bn1, spread=stream)
        _multiply(hostile.bn1, current)
        for block in (module for module in hostile.modules() if isinstance(module, Block)):
            _divide(block.conv1, current)
            inner = [(block.bn1, block.conv2)]
            last = block.bn2
            if isinstance(block, Bottleneck):
                inner.append((block.bn2, block.conv3))
                last = block.bn3
            for norm, reader in inner:
                chosen = factors(norm)
                _multiply(norm, chosen)
                _divide(reader, chosen)
            projected = block.downsample is not None
            following = current if block.shortcuts and not projected else factors(last, spread=stream)
            if block.downsample is not None:
                _divide(block.downsample[0], current)
                _multiply(block.downsample[1], following)
            _multiply(last, following)
            current = following
        _divide(hostile.fc, current)
    return hostile


def _multiply(norm: nn.BatchNorm2d, factors: Tensor) -> None:
    """Multiply what a BatchNorm gives."""
    norm.weight *= factors
    norm.bias *= factors


def _divide(layer: nn.Module, factors: Tensor) -> None:
    """Divide what a layer takes, through its weights: (out, in, ...)."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    layer.weight /= factors.view(1, -1, *[1] * (layer.weight.ndim - 2))
