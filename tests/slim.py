"""Networks of fewer channels, for what does not depend on how many there are."""

import torch
from torch import nn

from resnet_deploy.models import ResNet


def slim(network: ResNet, factor: int = 4) -> ResNet:
    """Give every layer a share of its channels, and weights that are drawn anew, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for part in list(network.modules()):
            for name, layer in list(part.named_children()):
                if isinstance(layer, nn.Conv2d):
                    inputs = layer.in_channels if layer.in_channels == 3 else layer.in_channels // factor
                    outputs = layer.out_channels // factor
                    made = nn.Conv2d(inputs, outputs, layer.kernel_size, layer.stride, layer.padding, bias=False)
                    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
                    setattr(part, name, made)
                elif isinstance(layer, nn.BatchNorm2d):
                    setattr(part, name, nn.BatchNorm2d(layer.num_features // factor))
                elif isinstance(layer, nn.Linear):
                    setattr(part, name, nn.Linear(layer.in_features // factor, layer.out_features))
    return network
