"""OpenVINO on the CPU."""

from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_deploy.batching import check_feed
from resnet_deploy.openvino_session import import_openvino, open_compiled, profile_layers, translate_failures
from resnet_deploy.runners import tensor_specs

if TYPE_CHECKING:
    from pathlib import Path

    from resnet_deploy.bundle import Bundle
    from resnet_deploy.protocols import Array, LayerSeconds, TensorSpec
    from resnet_deploy.specs import BatchRange, ModelCard


class OpenVinoRunner:
    """Runs one ONNX file in a request of its own.

    Args:
        engine: The ONNX file, or its bytes.
        card: The model it holds.
        batch: Batch sizes to accept.
        threads: Threads for one call; 0 for one per physical core.
    """

    profiler = "OpenVINO"

    def __init__(self, engine: "Path | bytes", card: "ModelCard", batch: "BatchRange", *, threads: int = 0) -> None:
        self.input: TensorSpec
        self.output: TensorSpec
        self.input, self.output = tensor_specs(card)
        self.batch = batch
        self._engine, self._threads = engine, threads
        self._tensor: Any = import_openvino().Tensor
        compiled = open_compiled(engine, threads=threads)
        self.device: str = compiled.get_property("EXECUTION_DEVICES")[0]
        self._request: Any = compiled.create_infer_request()
        self._feed: Array = np.empty(0)

    @classmethod
    def open(cls, bundle: "Bundle", threads: int) -> "OpenVinoRunner":
        """Open the engine of a bundle."""
        manifest = bundle.manifest
        return cls(bundle.engine_path, manifest.card, manifest.spec.batch, threads=threads)

    def load(self, feed: "Array") -> None:
        """Stage one batch without copying it."""
        check_feed(feed, self)
        self._feed = feed  # the tensor is a view of it
        self._request.set_tensor(self.input.name, self._tensor(feed, shared_memory=True))

    def enqueue(self) -> None:
        """Start the batch; this returns before it is done."""
        with translate_failures():
            self._request.start_async()

    def synchronize(self) -> None:
        """Wait until it is done."""
        with translate_failures():
            self._request.wait()

    def fetch(self) -> "Array":
        """Copy the logits: the request writes over its own with the next batch."""
        logits: Array = np.array(self._request.get_tensor(self.output.name).data)
        return logits

    def profile_layers(self, feed: "Array", calls: int) -> "list[LayerSeconds]":
        """Run ``calls`` calls of the model, compiled anew, under OpenVINO's profiler."""
        check_feed(feed, self)
        return profile_layers(self._engine, feed, calls=calls, threads=self._threads)

    def close(self) -> None:
        """Release the request and the model."""
        self._feed = np.empty(0)
        self._request = None
