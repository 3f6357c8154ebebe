"""ONNX Runtime on an NVIDIA GPU: input and output stay in device memory, bound for the batch sizes used last."""

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from resnet_deploy.backends import find_backend
from resnet_deploy.batching import check_feed
from resnet_deploy.ort_providers import TENSORRT_RTX, open_on, profile_options
from resnet_deploy.ort_session import import_onnxruntime, translate_refusals
from resnet_deploy.runners import tensor_specs

if TYPE_CHECKING:
    from pathlib import Path

    from resnet_deploy.bundle import Bundle
    from resnet_deploy.protocols import Array, TensorSpec
    from resnet_deploy.specs import BatchRange, ModelCard


_CUDA: Final = ("cuda", 0)
_MOST_BOUND: Final = 4  # batches of the largest size that as much memory would hold
_NVIDIA: Final = ("gpu", 0, 0x10DE)  # by its PCI vendor: memory of plugins, which have no name of their own for it


class OrtGpuRunner:
    """Runs one ONNX file on one execution provider.

    Args:
        engine: The ONNX file, or its bytes.
        card: The model it holds.
        batch: Batch sizes to accept.
        provider: Name of the execution provider in ONNX Runtime; it runs, or opening fails.
        memory: Where the provider computes, in ONNX Runtime's words: kind and number of the device, and its vendor.
    """

    def __init__(
        self,
        engine: "Path | bytes",
        card: "ModelCard",
        batch: "BatchRange",
        provider: str,
        *,
        memory: tuple[str | int, ...] = _CUDA,
    ) -> None:
        self.input: TensorSpec
        self.output: TensorSpec
        self.input, self.output = tensor_specs(card)
        self.batch = batch
        options = profile_options(provider, batch, self.input.shape)
        self._session: Any = open_on(provider, engine, options)
        self.device: str = self._session.get_providers()[0]
        self._memory = memory
        self._bound: OrderedDict[int, tuple[Any, Any, Any]] = OrderedDict()  # by batch size, the last one used last
        self._loaded: Any = None  # of them, the one that the batch was loaded into
        ort = import_onnxruntime()
        self._values: Any = ort.OrtValue
        self._without_waiting = ort.RunOptions()
        self._without_waiting.add_run_config_entry("disable_synchronize_execution_providers", "1")

    @classmethod
    def open(cls, bundle: "Bundle", threads: int) -> "OrtGpuRunner":
        """Open the engine of a bundle; threads of the CPU have nothing to do."""
        del threads
        manifest = bundle.manifest
        provider = find_backend(manifest.spec.backend).provider
        memory = _NVIDIA if provider == TENSORRT_RTX else _CUDA
        return cls(bundle.engine_path, manifest.card, manifest.spec.batch, provider, memory=memory)

    def load(self, feed: "Array") -> None:
        """Copy one batch to the device."""
        check_feed(feed, self)
        with translate_refusals():
            self._loaded = self._bound_for(len(feed))
            self._loaded[1].update_inplace(feed)

    def _bound_for(self, size: int) -> tuple[Any, Any, Any]:
        """Return binding, input and output of a batch size; sizes used longest ago make room for a new one.

        One of each size would take memory that grows with the square of the largest.
        """
        bound = self._bound.pop(size, None)
        if bound is None:
            while self._bound and sum(self._bound) + size > _MOST_BOUND * self.batch.max:
                self._bound.popitem(last=False)
            bound = self._bind(size)
        self._bound[size] = bound
        return bound

    def _bind(self, size: int) -> tuple[Any, Any, Any]:
        binding = self._session.io_binding()
        images, logits = (
            self._values.ortvalue_from_shape_and_type([size, *spec.shape], np.dtype(spec.dtype), *self._memory)
            for spec in (self.input, self.output)
        )
        binding.bind_ortvalue_input(self.input.name, images)
        binding.bind_ortvalue_output(self.output.name, logits)
        return binding, images, logits

    def enqueue(self) -> None:
        """Start the batch; this returns before it is done."""
        with translate_refusals():
            self._session.run_with_iobinding(self._loaded[0], self._without_waiting)

    def synchronize(self) -> None:
        """Wait for the device."""
        with translate_refusals():
            self._loaded[0].synchronize_outputs()

    def fetch(self) -> "Array":
        """Copy the logits back, into memory of the caller's own."""
        with translate_refusals():
            logits: Array = self._loaded[2].numpy()
        return logits.copy() if self._memory == ("cpu",) else logits

    def close(self) -> None:
        """Release the session and what is bound to it."""
        self._bound, self._loaded = OrderedDict(), None
        self._session = None
