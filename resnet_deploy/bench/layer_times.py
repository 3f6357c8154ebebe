"""Where the time of a call goes, by each backend's own profiler."""

from typing import TYPE_CHECKING, Final

import numpy as np

from resnet_deploy.bench.records import LayerTime, LayerTimes
from resnet_deploy.protocols import ProfilesLayers

if TYPE_CHECKING:
    from resnet_deploy.protocols import Array, Runner

_CALLS: Final = 20


def layer_times(runner: "Runner", images: "Array", batch: int) -> LayerTimes | None:
    """Profile ``runner`` on a batch of ``batch`` images, repeated as needed; None where it has no profiler."""
    if not isinstance(runner, ProfilesLayers):
        return None
    feed = np.ascontiguousarray(images[np.arange(batch) % len(images)])
    layers = runner.profile_layers(feed, _CALLS)
    return LayerTimes(
        batch=batch,
        calls=_CALLS,
        profiler=runner.profiler,
        layers=tuple(LayerTime(name=one.name, kind=one.kind, seconds=one.seconds) for one in layers),
    )
