"""What the device's own clock says of a call: its three steps, and its layers as TensorRT's profiler has them."""

from typing import TYPE_CHECKING, Any

from resnet_deploy.cuda.memory import DeviceBuffer
from resnet_deploy.cuda.streams import Event, Stream
from resnet_deploy.protocols import LayerSeconds, StepSeconds
from resnet_deploy.runners.trt_lanes import Context
from resnet_deploy.trt_api import new_profiler

if TYPE_CHECKING:
    from resnet_deploy.cuda.runtime import Cuda
    from resnet_deploy.runners.trt_engine import TrtEngine
    from resnet_deploy.runners.trt_lanes import Lanes
    from resnet_deploy.runners.trt_slots import Slot


class StepTimer:
    """Events before and after each step of a call.

    The host puts all of a call into the streams before it waits, so that it launches the second step while the device
    is busy with the images. Where these arrive before the launch does, the device waits for it, and the wait counts.

    Args:
        cuda: The device.
    """

    def __init__(self, cuda: "Cuda") -> None:
        self._marks = [Event(cuda, timing=True) for _ in range(6)]

    def run(self, slot: "Slot", lanes: "Lanes", copies: Stream, compute: Stream) -> StepSeconds:
        """Run what is staged in ``slot``, copying its images in one stream and all else in the other."""
        up, uploaded, begun, ended, down, downloaded = self._marks
        up.record(copies)
        slot.send_images(copies)
        uploaded.record(copies)
        compute.wait(slot.uploaded)
        begun.record(compute)
        lanes.run((slot.size, slot.images.pointer, slot.logits.pointer), compute)
        ended.record(compute)
        down.record(compute)
        slot.send_logits(compute)
        downloaded.record(compute)
        copies.synchronize()  # `uploaded` comes after the event that the other stream waited for
        compute.synchronize()
        return StepSeconds(
            h2d=uploaded.seconds_since(up), device=ended.seconds_since(begun), d2h=downloaded.seconds_since(down)
        )

    def close(self) -> None:
        """Release the events."""
        for mark in self._marks:
            mark.close()


def profile_layers(engine: "TrtEngine", slot: "Slot", stream: Stream, calls: int) -> list[LayerSeconds]:
    """Run the batch that is on the device ``calls`` times under TensorRT's profiler, in a context without graphs.

    The profiler tells names and no kinds.

    Raises:
        DeviceError: If TensorRT or CUDA refuses.
    """
    profiler = new_profiler(engine.api)
    memory: list[DeviceBuffer] = []

    def reserve(nbytes: int) -> DeviceBuffer | None:
        if nbytes and not memory:
            memory.append(DeviceBuffer(engine.cuda, nbytes))
        return memory[0] if memory else None

    profiled = Context(engine)
    try:
        profiled.set((slot.size, slot.images.pointer, slot.logits.pointer), stream, reserve)
        profiled.enqueue(stream)  # once without: what a first call puts off is no layer's time
        stream.synchronize()
        profiled.report_to(profiler)
        for _ in range(calls):
            profiled.enqueue(stream)
            stream.synchronize()
    finally:
        stream.synchronize()
        profiled.forget()
        for buffer in memory:
            buffer.close()
    seconds: dict[str, Any] = profiler.seconds
    return [LayerSeconds(name, "", total / calls) for name, total in seconds.items()]
