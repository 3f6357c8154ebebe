"""OpenVINO on the CPU."""

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_deploy.batching import check_feed
from resnet_deploy.host_arrays import writable_view
from resnet_deploy.openvino_session import import_openvino, open_compiled, profile_layers, translate_failures
from resnet_deploy.runners import tensor_specs

if TYPE_CHECKING:
    from pathlib import Path

    from resnet_deploy.bundle import Bundle
    from resnet_deploy.protocols import Array, LayerSeconds, TensorSpec
    from resnet_deploy.specs import BatchRange, ModelCard


class OpenVinoRunner:
    """Runs one model in a request of its own.

    Args:
        engine: The ONNX file or its bytes, or a file in OpenVINO's own format.
        card: The model it holds.
        batch: Batch sizes to accept.
        threads: Threads for all calls together; 0 for one per physical core.
        requests: Calls that may be under way at once, each in a runner that ``and_others`` makes.
    """

    profiler = "OpenVINO"

    def __init__(
        self,
        engine: "Path | bytes",
        card: "ModelCard",
        batch: "BatchRange",
        *,
        threads: int = 0,
        requests: int = 1,
    ) -> None:
        self.input: TensorSpec
        self.output: TensorSpec
        self.input, self.output = tensor_specs(card)
        self.batch = batch
        self._engine, self._threads = engine, threads
        self._tensor: Any = import_openvino().Tensor
        self._compiled: Any = open_compiled(engine, threads=threads, requests=requests)
        self.device: str = self._compiled.get_property("EXECUTION_DEVICES")[0]
        self.notes = _notes(self._compiled, requests)
        self._open_request()

    @classmethod
    def open(cls, bundle: "Bundle", threads: int) -> "OpenVinoRunner":
        """Open the engine of a bundle."""
        manifest = bundle.manifest
        return cls(bundle.engine_path, manifest.card, manifest.spec.batch, threads=threads)

    @classmethod
    def open_several(cls, bundle: "Bundle", threads: int, count: int) -> "tuple[OpenVinoRunner, ...]":
        """Open ``count`` runners on one compiled model, whose weights and threads they share, ``threads`` for each."""
        manifest = bundle.manifest
        first = cls(bundle.engine_path, manifest.card, manifest.spec.batch, threads=threads * count, requests=count)
        return first.and_others(count - 1)

    def and_others(self, count: int) -> "tuple[OpenVinoRunner, ...]":
        """Return this runner and ``count`` others, each a request on the same compiled model and closed by itself."""
        others = tuple(copy.copy(self) for _ in range(count))
        for other in others:
            other._open_request()  # noqa: SLF001
        return (self, *others)

    def _open_request(self) -> None:
        self._request: Any = self._compiled.create_infer_request()
        self._nothing: Any = self._request.get_tensor(self.input.name)  # its own, from before anything was loaded
        self._feed: Array | None = None
        self._out: Array | None = None

    def load(self, feed: "Array") -> None:
        """Stage one batch without copying it."""
        check_feed(feed, self)
        tensor = self._tensor(writable_view(feed), shared_memory=True)
        self._request.set_tensor(self.input.name, tensor)
        self._feed, self._out = feed, None  # the tensor is a view of the feed, and does not keep it

    def write_into(self, out: "Array") -> None:
        """Have the logits of the staged batch copied into ``out``, once.

        A request can be given memory to write to, but must not outlive it: with 2026.4, a batch of another size after
        that memory was freed corrupted the heap. What is the caller's is kept from it.
        """
        self._out = out

    def enqueue(self) -> None:
        """Start the batch; this returns before it is done."""
        with translate_failures():
            self._request.start_async()

    def synchronize(self) -> None:
        """Wait until it is done."""
        with translate_failures():
            self._request.wait()

    def fetch(self) -> "Array":
        """Copy the logits, for the request writes over its own with the next batch; keep nothing of the caller's."""
        logits: Array = self._request.get_tensor(self.output.name).data
        out, self._out = self._out, None
        if out is None:
            out = np.array(logits)
        else:
            np.copyto(out, logits)
        self._request.set_tensor(self.input.name, self._nothing)
        self._feed = None
        return out

    def profile_layers(self, feed: "Array", calls: int) -> "list[LayerSeconds]":
        """Run ``calls`` calls of the model, compiled anew, under OpenVINO's profiler."""
        check_feed(feed, self)
        return profile_layers(self._engine, feed, calls=calls, threads=self._threads)

    def close(self) -> None:
        """Release the request and the model."""
        self._feed = self._out = None
        self._request = self._compiled = self._nothing = None


def _notes(compiled: Any, requests: int) -> tuple[str, ...]:
    """Say how several requests are run; nothing of one."""
    if requests == 1:
        return ()
    streams, threads = (compiled.get_property(name) for name in ("NUM_STREAMS", "INFERENCE_NUM_THREADS"))
    return (f"OpenVINO's hint THROUGHPUT: {requests} requests in {streams} streams that share {threads} threads",)
