"""The classes of ImageNet-1k: what its folders are called, and what they mean."""

import functools
from importlib import resources
from typing import Final

CLASSES: Final = 1000


@functools.cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """Return the synset and a short English name of each of the 1000 classes, in the order of the logits.

    That order is the one of the sorted synsets, which every published ResNet has.
    """
    table = resources.files("resnet_deploy").joinpath("data/imagenet_classes.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in table.splitlines())
    return tuple((synset, name) for synset, name in rows)
