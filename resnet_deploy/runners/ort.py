"""ONNX Runtime on the CPU."""

from typing import TYPE_CHECKING

from resnet_deploy.batching import check_feed
from resnet_deploy.ort_session import open_session, profile_kernels, translate_refusals
from resnet_deploy.runners import tensor_specs

if TYPE_CHECKING:
    from pathlib import Path

    from resnet_deploy.bundle import Bundle
    from resnet_deploy.protocols import Array, LayerSeconds, TensorSpec
    from resnet_deploy.specs import BatchRange, ModelCard


class OrtRunner:
    """Runs one ONNX file in a session of its own.

    Args:
        engine: The ONNX file, or its bytes.
        card: The model it holds.
        batch: Batch sizes to accept.
        threads: Threads for one call; 0 leaves the choice to ONNX Runtime.
        as_written: Simulate a graph meant for another backend, as ``open_session`` does.
    """

    profiler = "ONNX Runtime"

    def __init__(
        self,
        engine: "Path | bytes",
        card: "ModelCard",
        batch: "BatchRange",
        *,
        threads: int = 0,
        as_written: bool = False,
    ) -> None:
        self.input: TensorSpec
        self.output: TensorSpec
        self.input, self.output = tensor_specs(card)
        self.batch = batch
        self._engine, self._threads = engine, threads
        self._session = open_session(engine, threads=threads, as_written=as_written)
        self.device: str = self._session.get_providers()[0]
        self._feed: dict[str, Array] = {}
        self._outputs: list[Array] = []
        self._out: Array | None = None

    @classmethod
    def open(cls, bundle: "Bundle", threads: int) -> "OrtRunner":
        """Open the engine of a bundle."""
        manifest = bundle.manifest
        return cls(bundle.engine_path, manifest.card, manifest.spec.batch, threads=threads)

    def load(self, feed: "Array") -> None:
        """Stage one batch without copying it."""
        check_feed(feed, self)
        self._feed, self._out = {self.input.name: feed}, None

    def write_into(self, out: "Array") -> None:
        """Have ONNX Runtime write the logits of the staged batch into ``out``."""
        self._out = out

    def enqueue(self) -> None:
        """Run the batch; on the CPU this returns when it is done."""
        with translate_refusals():
            if self._out is None:
                self._outputs = self._session.run([self.output.name], self._feed)
            else:
                self._run_into(self._out)

    def _run_into(self, out: "Array") -> None:
        """Run with input and output bound to the caller's memory.

        By a binding of its own (1 µs): one that stays keeps the array that was bound to it last, which is the caller's.
        """
        binding = self._session.io_binding()
        for name, feed in self._feed.items():
            binding.bind_cpu_input(name, feed)
        binding.bind_output(self.output.name, "cpu", 0, out.dtype, out.shape, out.ctypes.data)
        self._session.run_with_iobinding(binding)
        self._outputs = [out]

    def synchronize(self) -> None:
        """Return at once: ``enqueue`` has waited."""

    def fetch(self) -> "Array":
        """Return the logits, in memory that ONNX Runtime gave away, or where they were wanted; keep nothing."""
        (logits,) = self._outputs
        self._feed, self._outputs, self._out = {}, [], None
        return logits

    def profile_layers(self, feed: "Array", calls: int) -> "list[LayerSeconds]":
        """Run ``calls`` calls in a session of their own under ONNX Runtime's profiler."""
        check_feed(feed, self)
        return profile_kernels(self._engine, feed, calls=calls, threads=self._threads)

    def close(self) -> None:
        """Release the session."""
        self._feed, self._outputs, self._out = {}, [], None
        self._session = None
