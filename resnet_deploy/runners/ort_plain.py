"""ONNX Runtime as its quick start calls it: a session with default options, fed and asked by name."""

from typing import TYPE_CHECKING

from resnet_deploy.batching import check_feed
from resnet_deploy.ort_session import open_plain_session, translate_refusals
from resnet_deploy.runners import tensor_specs

if TYPE_CHECKING:
    from pathlib import Path

    from resnet_deploy.protocols import Array, TensorSpec
    from resnet_deploy.specs import BatchRange, ModelCard


class PlainOrtRunner:
    """Runs one ONNX file as a user of ONNX Runtime does who has read no further: a peer.

    Args:
        model: The ONNX file.
        card: The model it holds.
        batch: Batch sizes to accept.
        threads: Threads for one call; 0 leaves the choice to ONNX Runtime.
    """

    def __init__(self, model: "Path", card: "ModelCard", batch: "BatchRange", *, threads: int = 0) -> None:
        self.input: TensorSpec
        self.output: TensorSpec
        self.input, self.output = tensor_specs(card)
        self.batch = batch
        self._session = open_plain_session(model, threads=threads)
        self.device: str = self._session.get_providers()[0]
        self._feed: dict[str, Array] = {}
        self._outputs: list[Array] = []

    def load(self, feed: "Array") -> None:
        """Stage one batch without copying it."""
        check_feed(feed, self)
        self._feed = {self.input.name: feed}

    def enqueue(self) -> None:
        """Run the batch; this returns when it is done."""
        with translate_refusals():
            self._outputs = self._session.run(None, self._feed)

    def synchronize(self) -> None:
        """Return at once: ``enqueue`` has waited."""

    def fetch(self) -> "Array":
        """Return the logits, in memory that ONNX Runtime gave away."""
        return self._outputs[0]

    def close(self) -> None:
        """Release the session."""
        self._feed, self._outputs = {}, []
        self._session = None
