"""PyTorch as its users speed it up: FP16, channels last, ``torch.compile``, CUDA graphs. A peer behind the protocol.

On a GPU images come from the host and logits go back there; on the CPU the network reads them where they are.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import nn

from resnet_deploy.batching import check_feed, run_once
from resnet_deploy.errors import BuildError
from resnet_deploy.runners import tensor_specs

if TYPE_CHECKING:
    from resnet_deploy.protocols import Array, TensorSpec
    from resnet_deploy.specs import BatchRange, ModelCard

_CAPTURE_CALLS: Final = 3  # before a graph is captured, as PyTorch asks for


@dataclass(frozen=True)
class Setup:
    """One way to run a network.

    Attributes:
        dtype: What it computes in.
        channels_last: Layout of weights and activations.
        compiled: Whether ``torch.compile`` goes over it, with its defaults.
        graphs: Whether a batch is one CUDA graph.
        device: Where it runs.
    """

    dtype: Literal["float32", "float16"] = "float32"
    channels_last: bool = False
    compiled: bool = False
    graphs: bool = False
    device: str = "cpu"


class TorchPeer:
    """Runs a network in one way, normalising contract tensors as torchvision does: /255, mean, std.

    Args:
        network: In FP32; it is put into eval mode, and into the data type, layout and device of ``way``.
        card: The model it is.
        batch: Batch sizes to accept.
        way: How to run it.
        threads: CPU threads for one call, set for the whole process: all that run in PyTorch share it. 0 leaves them.
    """

    def __init__(
        self, network: nn.Module, card: "ModelCard", batch: "BatchRange", way: Setup, *, threads: int = 0
    ) -> None:
        self.input: TensorSpec
        self.output: TensorSpec
        self.input, self.output = tensor_specs(card)
        self.batch, self.device = batch, way.device
        self._way = way
        self._dtype: torch.dtype = getattr(torch, way.dtype)
        self._layout = torch.channels_last if way.channels_last else torch.contiguous_format
        network = network.eval().to(device=way.device, dtype=self._dtype, memory_format=self._layout)  # type: ignore[call-overload]
        self._network: Any = torch.compile(network, dynamic=False) if way.compiled else network
        self._normalise = card.preprocess.dtype == "uint8"
        self._mean, self._std = (
            torch.tensor(values, device=way.device).view(1, 3, 1, 1)
            for values in (card.preprocess.mean, card.preprocess.std)
        )
        self._staged: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # pinned and on the device, by batch size
        self._captured: dict[int, tuple[Any, torch.Tensor]] = {}
        self._images = self._logits = torch.empty(0)
        if threads:
            torch.set_num_threads(threads)

    def prepare(self, batches: Sequence[int]) -> None:
        """Let ``torch.compile`` do its work for these batch sizes before any is timed: up to a minute for each.

        Raises:
            BuildError: If it cannot, for want of a C++ compiler for instance.
        """
        import numpy as np

        for batch in sorted(batches):
            feed = np.zeros((batch, *self.input.shape), self.input.dtype)
            try:
                with warnings.catch_warnings():  # the compiler imports what PyTorch itself has deprecated
                    warnings.simplefilter("ignore")
                    run_once(self, feed)
            except RuntimeError as error:  # the base of all that its compiler raises
                line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
                raise BuildError(f"torch.compile refuses the network: {line}") from error

    def load(self, feed: "Array") -> None:
        """Stage one batch; on a GPU, begin to copy it there."""
        check_feed(feed, self)
        images = torch.from_numpy(feed)
        if self._way.device == "cpu":
            self._images = images
            return
        if len(feed) not in self._staged:
            host = torch.empty_like(images, pin_memory=True)
            self._staged[len(feed)] = host, torch.empty_like(images, device=self._way.device)
        host, self._images = self._staged[len(feed)]
        host.copy_(images)
        self._images.copy_(host, non_blocking=True)

    @torch.inference_mode()
    def enqueue(self) -> None:
        """Run the batch; on the CPU this returns when it is done."""
        if not self._way.graphs:
            self._logits = self._compute(self._images)
            return
        size = len(self._images)
        if size not in self._captured:
            self._captured[size] = self._capture(self._images)
        graph, self._logits = self._captured[size]
        graph.replay()

    def _compute(self, images: torch.Tensor) -> torch.Tensor:
        if self._normalise:
            images = (images.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std
        logits: torch.Tensor = self._network(images.to(self._dtype, memory_format=self._layout))
        return logits.float()

    def _capture(self, images: torch.Tensor) -> tuple[Any, torch.Tensor]:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_CAPTURE_CALLS):
                self._compute(images)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._compute(images)
        return graph, logits

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._way.device != "cpu":
            torch.cuda.synchronize()

    def fetch(self) -> "Array":
        """Copy the logits to the host; on the CPU they are the caller's as they are."""
        logits: Array = self._logits.cpu().numpy()
        return logits

    def close(self) -> None:
        """Let go of the network and of its graphs."""
        self._network, self._staged, self._captured = None, {}, {}
        self._images = self._logits = torch.empty(0)
