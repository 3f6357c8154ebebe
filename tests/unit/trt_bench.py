"""The TensorRT runner on stand-ins for CUDA and TensorRT, and what tests of it share."""

import gc

import numpy as np
import pytest
from cuda_stand_in import CudaStandIn
from trt_stand_in import TrtStandIn, plan

from resnet_deploy.cuda.memory import DeviceBuffer, PinnedBuffer, upload
from resnet_deploy.cuda.runtime import Cuda
from resnet_deploy.cuda.streams import Stream
from resnet_deploy.device_arrays import DeviceArray
from resnet_deploy.runners.trt import TrtRunner
from resnet_deploy.runners.trt_engine import ContextOptions, TrtEngine
from resnet_deploy.specs import BatchRange, ModelCard, Preprocess

SEEDS = [None, *range(5)]
CARD = ModelCard(
    architecture="resnet18",
    num_classes=3,
    weights="none",
    weights_sha256="",
    preprocess=Preprocess(image_size=2, resize=2),
)
FLAVOURS = pytest.mark.parametrize("rtx", [False, True], ids=["trt", "rtx"])


class Bench:
    """A runner on stand-ins, and what a test looks at."""

    def __init__(self, *, seed=None, rtx=False, reuse=False, devices=1, data=None, **options):
        self.cuda_stand_in = CudaStandIn(devices=devices, seed=seed, reuse=reuse)
        self.trt = TrtStandIn(self.cuda_stand_in, rtx=rtx)
        self.cuda = Cuda(devices - 1, self.cuda_stand_in)
        self.cuda_stand_in.home = self.cuda.device
        self.engine = TrtEngine(self.trt.api(), data or plan(), self.cuda, ContextOptions(**options))
        self.runner = TrtRunner(self.engine, CARD, BatchRange(1, 2, 8))

    def on_device(self, feed, stream=None):
        """Put a feed on the device, ready; keep what is returned."""
        stream = stream or Stream.create(self.cuda)
        with PinnedBuffer(self.cuda, feed.nbytes) as pinned:
            pinned.view(feed.shape, feed.dtype.name)[...] = feed
            buffer = DeviceBuffer(self.cuda, feed.nbytes)
            upload(self.cuda, buffer.pointer, pinned.pointer, feed.nbytes, stream)
            stream.synchronize()
        return DeviceArray(self.cuda, buffer.pointer, feed.shape, feed.dtype.name, owner=buffer)

    def graphs(self):
        return len(self.cuda_stand_in.graphs)

    def launches(self):
        return self.cuda_stand_in.names().count("cudaGraphLaunch")

    def close(self):
        """Close the runner; hold the stand-ins to account."""
        self.runner.close()
        gc.collect()
        assert self.cuda_stand_in.misuses == []


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
