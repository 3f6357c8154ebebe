"""PyTorch as its users speed it up: FP16, channels last, `torch.compile`, CUDA graphs. Peers, behind the same protocol.

On the CPU the same code runs without graphs, which is how it is tested where there is no GPU.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from resnet_deploy.batching import check_feed
from resnet_deploy.runners import tensor_specs

if TYPE_CHECKING:
    from resnet_deploy.protocols import Array, TensorSpec
    from resnet_deploy.specs import BatchRange, ModelCard

WARMUP_CALLS = 3


@dataclass(frozen=True)
class Way:
    """One way to run a network.

    Attributes:
        name: What the table calls it.
        dtype: What it computes in.
        channels_last: Layout of weights and activations.
        compiled: Whether `torch.compile` goes over it.
        graphs: Whether a batch is one CUDA graph.
    """

    name: str
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    compiled: bool = False
    graphs: bool = False


WAYS = (
    Way("torch FP32 eager"),
    Way("torch FP32 channels-last", channels_last=True),
    Way("torch FP16 eager", torch.float16),
    Way("torch FP16 channels-last", torch.float16, channels_last=True),
    Way("torch FP16 compiled", torch.float16, channels_last=True, compiled=True),
    Way("torch FP16 graphs", torch.float16, channels_last=True, graphs=True),
)


class TorchPeer:
    """Runs a network in one way, on one device; images come from the host, and logits go back there."""

    def __init__(self, network: nn.Module, card: "ModelCard", batch: "BatchRange", way: Way, device: str) -> None:
        self.input: TensorSpec
        self.output: TensorSpec
        self.input, self.output = tensor_specs(card)
        self.batch, self.device = batch, device
        self._way = way
        self._layout = torch.channels_last if way.channels_last else torch.contiguous_format
        network = network.eval().to(device=device, dtype=way.dtype, memory_format=self._layout)  # type: ignore[call-overload]
        self._network: Any = torch.compile(network) if way.compiled else network
        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1)
            for values in (card.preprocess.mean, card.preprocess.std)
        )
        self._staged: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # pinned and on the device, by batch size
        self._captured: dict[int, tuple[Any, torch.Tensor]] = {}
        self._size = 0
        self._logits = torch.empty(0)

    def load(self, feed: "Array") -> None:
        """Copy a batch of uint8 images to the device."""
        check_feed(feed, self)
        self._size = len(feed)
        if self._size not in self._staged:
            host = torch.empty(feed.shape, dtype=torch.uint8, pin_memory=self.device != "cpu")
            self._staged[self._size] = host, torch.empty(feed.shape, dtype=torch.uint8, device=self.device)
        host, images = self._staged[self._size]
        host.copy_(torch.from_numpy(feed))
        images.copy_(host, non_blocking=True)

    @torch.inference_mode()
    def enqueue(self) -> None:
        """Run the batch."""
        _, images = self._staged[self._size]
        if not self._way.graphs:
            self._logits = self._compute(images)
            return
        if self._size not in self._captured:
            self._captured[self._size] = self._capture(images)
        graph, self._logits = self._captured[self._size]
        graph.replay()

    def _compute(self, images: torch.Tensor) -> torch.Tensor:
        normalised = (images.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std
        logits: torch.Tensor = self._network(normalised.to(self._way.dtype, memory_format=self._layout))
        return logits.float()

    def _capture(self, images: torch.Tensor) -> tuple[Any, torch.Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP_CALLS):
                self._compute(images)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._compute(images)
        return graph, logits

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device != "cpu":
            torch.cuda.synchronize()

    def fetch(self) -> "Array":
        """Copy the logits to the host."""
        logits: Array = self._logits.cpu().numpy()
        return logits

    def close(self) -> None:
        """Let go of the network and of its graphs."""
        self._network, self._staged, self._captured = None, {}, {}
        self._logits = torch.empty(0)
