"""The runner that does nothing: it measures the harness and drives tests."""

from typing import TYPE_CHECKING, Final

import numpy as np

from resnet_deploy.batching import check_feed
from resnet_deploy.runners import tensor_specs
from resnet_deploy.specs import BatchRange, ModelCard

if TYPE_CHECKING:
    from resnet_deploy.bundle import Bundle
    from resnet_deploy.protocols import Array, TensorSpec

NULL: Final = "null"  # the name that it appears under, in records and in the table of backends


class NullRunner:
    """Accepts what an engine of the model accepts and answers zeros, at once."""

    def __init__(self, card: ModelCard, batch: BatchRange) -> None:
        self.input: TensorSpec
        self.output: TensorSpec
        self.input, self.output = tensor_specs(card)
        self.batch = batch
        self.device = "none"
        self._size = 0

    @classmethod
    def open(cls, bundle: "Bundle", threads: int) -> "NullRunner":
        """Stand in for a bundle's engine."""
        del threads
        return cls(bundle.manifest.card, bundle.manifest.spec.batch)

    def load(self, feed: "Array") -> None:
        """Check the batch as every runner does."""
        check_feed(feed, self)
        self._size = len(feed)

    def enqueue(self) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Do nothing."""

    def fetch(self) -> "Array":
        """Return zeros."""
        return np.zeros((self._size, *self.output.shape), np.float32)

    def close(self) -> None:
        """Do nothing."""
