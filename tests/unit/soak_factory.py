"""Windows of a soak, made of noise that is known."""

import msgspec
import numpy as np
from soak_records import Load, Opening, Reading, Soak, Times, Window

from resnet_deploy.bench.records import MachineState

MIB = 1 << 20
LEVELS = {"resident": 300 * MIB, "proportional": 280 * MIB, "private": 250 * MIB, "heap": 130 * MIB}
LEVELS |= {"files": 8, "threads": 12, "objects": 190_000, "blocks": 650_000}


def noise(rng, count, *, share, memory=0.0):
    """Draw noise with a standard deviation of ``share``, each value correlated with the one before by ``memory``."""
    steps = rng.normal(0, share * (1 - memory**2) ** 0.5, count)
    steps[0] = rng.normal(0, share)
    for index in range(1, count):
        steps[index] += memory * steps[index - 1]
    return steps


def make_windows(rng, count=120, *, memory=0.5):
    """Make windows of a process that keeps what it has, a quarter of a percent of noise in it, and 5 % in latency."""
    amounts = ("resident", "proportional", "private", "heap", "objects", "blocks")
    values = {name: LEVELS[name] * (1 + noise(rng, count, share=0.0025, memory=memory)) for name in amounts}
    latency = {kind: 0.02 * np.exp(noise(rng, count, share=0.05, memory=memory)) for kind in ("call", "submit")}
    return [
        Window(
            start=5.0 * number,
            seconds=5.0,
            processor_s=float(9 * np.exp(rng.normal(0, 0.02))),
            times={kind: Times(200, 1000, float(p50[number]), 3 * float(p50[number])) for kind, p50 in latency.items()},
            outcomes={},
            worst=1e-4,
            wrong=(),
            wrong_count=0,
            reading=Reading(
                **{name: int(value[number]) for name, value in values.items()},
                files=LEVELS["files"],
                threads=LEVELS["threads"],
            ),
            machine=MachineState(round=number, seconds=5.0, used=0.9, elsewhere=0.01, stolen=0.0),
        )
        for number in range(count)
    ]


def make_soak(windows, **changes):
    """Make a soak of windows."""
    made = Soak(
        name="resnet18-int8-onnxruntime",
        backend="onnxruntime",
        precision="int8",
        load=Load(engine="resnet18-int8-onnxruntime", windows=len(windows)),
        opening=Opening(images=32, largest=10.0, apart=2.0, tolerance=0.5),
        windows=tuple(windows),
    )
    return msgspec.structs.replace(made, **changes)


def with_reading(windows, name, change):
    """Change one field of each reading: ``change(number, value)``."""
    return [
        msgspec.structs.replace(
            one,
            reading=msgspec.structs.replace(one.reading, **{name: int(change(number, getattr(one.reading, name)))}),
        )
        for number, one in enumerate(windows)
    ]
