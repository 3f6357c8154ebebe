"""Train one arm on the digits, and write down every step."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from gradients import gradient_norms, input_gradients, likeness_by_distance, walk, weight_norms
from results import Recipe, Run
from torch import Tensor, nn
from twins import chain_of, make_arm

from resnet_deploy.models import ResNet

SIDE = 32  # pixels: enough for four halvings and more
HELD_OUT = 360
SETTLING = 512  # images that BatchNorm's statistics are taken from
CHUNK = 64  # images that are looked at together without training
WALK = 256  # points between two images
DIGITS = 4  # significant ones of the norms, of which there are many


class Part(NamedTuple):
    """Images (N, 3, 32, 32), from -1 to 1, and their labels (N,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Digits:
    """The data: a fixed, stratified split of scikit-learn's 1797 digits."""

    train: Part
    held_out: Part


def load_digits() -> Digits:
    """Enlarge the 8x8 scans to 32x32, and split them."""
    from sklearn import datasets, model_selection

    scans, labels = datasets.load_digits(return_X_y=True)
    gray = torch.from_numpy(scans).float().reshape(-1, 1, 8, 8) / 8 - 1  # from 0..16
    images = nn.functional.interpolate(gray, size=SIDE, mode="bicubic", align_corners=False)
    trained, held = model_selection.train_test_split(
        torch.arange(len(labels)).numpy(), test_size=HELD_OUT, stratify=labels, random_state=0
    )
    # Channels last in memory, which convolutions on a CPU prefer.
    whole = Part(
        images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last), torch.from_numpy(labels).long()
    )
    return Digits(*(Part(whole.images[part], whole.labels[part]) for part in (trained, held)))


def train_arm(arm: str, seed: int, digits: Digits, recipe: Recipe, advance: Callable[[], None]) -> Run:
    """Train an arm from scratch; the same arguments give the same run on the same machine and number of threads.

    Args:
        arm: Name of the architecture.
        seed: Decides the first weights and the order of the images, the same for all arms.
        digits: The data.
        recipe: How to train.
        advance: Called after each step.
    """
    started = time.perf_counter()
    network = make_arm(arm, seed)
    chain = chain_of(network)
    likeness = measure_likeness(network, digits.train)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=recipe.rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    losses, errors, gradients, weights, held_out = [], [], [], [], []
    for epoch, batches in enumerate(draw_epochs(len(digits.train.labels), recipe, seed)):
        if epoch == dropping_epoch(recipe):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate / 10
        for batch in batches:
            loss, error = backpropagate(network, Part(digits.train.images[batch], digits.train.labels[batch]))
            losses.append(loss)
            errors.append(error)
            gradients.append(brief(gradient_norms(chain.values())))
            weights.append(brief(weight_norms(chain.values())))
            optimizer.step()
            advance()
        settle(network, digits.train.images[:SETTLING])
        held_out.append(error_of(network, digits.held_out))
    return Run(
        arm=arm,
        seed=seed,
        layers=tuple(chain),
        losses=tuple(losses),
        errors=tuple(errors),
        gradients=tuple(gradients),
        weights=tuple(weights),
        held_out=tuple(held_out),
        training_error=error_of(network, digits.train),
        likeness=brief(likeness),
        seconds=round(time.perf_counter() - started, 1),
    )


def draw_epochs(count: int, recipe: Recipe, seed: int) -> Iterator[Tensor]:
    """Yield for each epoch the indices of its batches, (steps, batch); the incomplete last batch is left out."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(recipe.epochs):
        order = torch.randperm(count, generator=generator)
        yield order[: count // recipe.batch * recipe.batch].reshape(-1, recipe.batch)


def dropping_epoch(recipe: Recipe) -> int:
    """Return the epoch before which the rate is divided by ten: two thirds of them, rounded up."""
    return -(-2 * recipe.epochs // 3)


def backpropagate(network: ResNet, batch: Part) -> tuple[float, float]:
    """Compute a batch's gradients afresh, and return its mean cross-entropy and the share answered wrong."""
    network.train()
    network.zero_grad()
    logits = network(batch.images)
    loss = nn.functional.cross_entropy(logits, batch.labels)
    torch.autograd.backward(loss)
    return loss.item(), wrong(logits, batch.labels)


def settle(network: ResNet, images: Tensor) -> None:
    """Take BatchNorm's statistics for evaluation from ``images``, with the weights as they are now.

    The running averages that training leaves lag behind weights that still change fast, and the deeper the network the
    more that distorts: an error would be told that is none of the network's.
    """
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    momentums = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    network.train()
    with torch.no_grad():
        for batch in torch.split(images, CHUNK):
            network(batch)
    for norm, momentum in zip(norms, momentums, strict=True):
        norm.momentum = momentum


def error_of(network: ResNet, part: Part) -> float:
    """Measure the share of images answered wrong, in evaluation mode."""
    network.eval()
    with torch.inference_mode():
        logits = torch.cat([network(batch) for batch in torch.split(part.images, CHUNK)])
    return wrong(logits, part.labels)


def measure_likeness(network: ResNet, part: Part) -> list[float]:
    """Measure how alike gradients are along a walk from the first image to the first of another digit."""
    settle(network, part.images[:SETTLING])
    network.eval()
    other = int((part.labels != part.labels[0]).nonzero()[0])
    return likeness_by_distance(input_gradients(network, walk(part.images[0], part.images[other], WALK)))


def wrong(logits: Tensor, labels: Tensor) -> float:
    """Compute the share of rows whose largest logit is not the label's."""
    return int((logits.argmax(1) != labels).sum()) / len(labels)


def brief(numbers: list[float]) -> tuple[float, ...]:
    """Round to the significant digits that are kept."""
    return tuple(float(f"{number:.{DIGITS}g}") for number in numbers)
