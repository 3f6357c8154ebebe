"""The reference: the PyTorch network as its user has it, eager and in FP32."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from resnet_deploy.batching import check_feed
from resnet_deploy.errors import BackendError
from resnet_deploy.runners import tensor_specs

if TYPE_CHECKING:
    from resnet_deploy.bundle import Bundle
    from resnet_deploy.protocols import Array, TensorSpec
    from resnet_deploy.specs import BatchRange, ModelCard


class TorchRunner:
    """Runs a network on the CPU, normalising contract tensors as torchvision does: /255, mean, std.

    In the channels-last layout, mostly the faster one for eager PyTorch on a CPU: a peer should be at its best.

    Args:
        network: In FP32; it is put into eval mode and into the channels-last layout.
        card: The model it is.
        batch: Batch sizes to accept.
        threads: Threads for one call, set for the whole process; 0 leaves PyTorch's own choice.
    """

    def __init__(self, network: nn.Module, card: "ModelCard", batch: "BatchRange", *, threads: int = 0) -> None:
        self.input: TensorSpec
        self.output: TensorSpec
        self.input, self.output = tensor_specs(card)
        self.batch = batch
        self._network: nn.Module | None = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = str(next(network.parameters()).device)
        self._normalise = card.preprocess.dtype == "uint8"
        self._mean, self._std = (
            torch.tensor(values).view(1, 3, 1, 1) for values in (card.preprocess.mean, card.preprocess.std)
        )
        self._images = self._logits = torch.empty(0)
        if threads:
            torch.set_num_threads(threads)

    @classmethod
    def open(cls, bundle: "Bundle", threads: int) -> "TorchRunner":
        """Refuse: PyTorch networks are not kept in bundles."""
        raise BackendError(f"{bundle.path} names torch as its backend", hint="build it with another backend")

    def load(self, feed: "Array") -> None:
        """Stage one batch without copying it."""
        check_feed(feed, self)
        self._images = torch.from_numpy(feed)

    @torch.inference_mode()
    def enqueue(self) -> None:
        """Normalise and run the batch; on the CPU this returns when it is done."""
        assert self._network is not None
        images = self._images
        if self._normalise:
            images = (images.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std
        self._logits = self._network(images)

    def synchronize(self) -> None:
        """Return at once: ``enqueue`` has waited."""

    def fetch(self) -> "Array":
        """Return the logits."""
        logits: Array = self._logits.numpy()
        return logits

    def close(self) -> None:
        """Let go of the network."""
        self._network = None
        self._images = self._logits = torch.empty(0)
