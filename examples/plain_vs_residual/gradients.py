"""What gradients look like: how large they are in each layer, and how alike they are for images that are alike.

A gradient that grows or shrinks from layer to layer leaves no rate of learning that suits all layers. A gradient that
changes entirely when the image hardly does is noise to the optimizer: "shattered", as Balduzzi et al. call it
(https://arxiv.org/abs/1702.08591).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def gradient_norms(layers: Iterable[nn.Conv2d]) -> list[float]:
    """Compute the Euclidean norm of the gradient of each layer's weights, after a backward pass."""
    gradients = [layer.weight.grad for layer in layers]
    assert all(gradient is not None for gradient in gradients), "no backward pass was made"
    return [float(gradient.norm()) for gradient in gradients if gradient is not None]


def weight_norms(layers: Iterable[nn.Conv2d]) -> list[float]:
    """Compute the Euclidean norm of each layer's weights.

    A convolution before a BatchNorm does the same at any scale of its weights. How far a step turns it is told by the
    gradient's norm over this one.
    """
    return [float(layer.weight.detach().norm()) for layer in layers]


def input_gradients(network: nn.Module, images: Tensor) -> Tensor:
    """Differentiate the sum of the logits by each image.

    Args:
        network: In evaluation mode, so that an image does not reach the logits of another.
        images: (N, 3, H, W), normalised.

    Returns:
        (N, 3 * H * W).
    """
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network(images).sum(), images)
    return gradient.flatten(1)


def walk(start: Tensor, end: Tensor, points: int) -> Tensor:
    """Go from one image (3, H, W) to another in a straight line, in equal steps: (points, 3, H, W)."""
    shares = torch.linspace(0, 1, points)[:, None, None, None]
    return (1 - shares) * start + shares * end


def likeness_by_distance(gradients: Tensor) -> list[float]:
    """Correlate gradients along a walk: for each distance in steps, the mean cosine of all pairs that far apart.

    The mean over the walk is taken away first: what all gradients share would hide how they change.

    Args:
        gradients: (N, D), in the order of the walk.

    Returns:
        N / 2 numbers, beginning with 1 at distance 0. White noise falls to 0 at once, a Brownian walk slowly.
    """
    directions = nn.functional.normalize(gradients - gradients.mean(0), dim=1)
    cosines = directions @ directions.T
    return [float(cosines.diagonal(distance).mean()) for distance in range(len(gradients) // 2)]
