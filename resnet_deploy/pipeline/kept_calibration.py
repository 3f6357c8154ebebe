"""The calibration that a bundle keeps, in what is shown of it; of any schema version so far.

Schema 1 had one method for all tensors, in ``spec``; 2 has one for each.
"""

import msgspec

from resnet_deploy import artifact
from resnet_deploy.bundle import CALIBRATION, CALIBRATION_SCHEMA, Bundle
from resnet_deploy.errors import BundleError, ModelError
from resnet_deploy.json_files import decode_json
from resnet_deploy.schemas import UPGRADE, later_version


class KeptTensor(msgspec.Struct, frozen=True):
    """What was observed of a tensor, and the range that each method chose; ``method`` is empty in schema 1."""

    observed: tuple[float, float]
    ranges: dict[str, tuple[float, float]]
    method: str = ""


class _Method(msgspec.Struct, frozen=True):
    method: str


class KeptCalibration(msgspec.Struct, frozen=True):
    """What is shown of a calibration; tensors by name."""

    spec: _Method
    tensors: dict[str, KeptTensor]

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            if self.method_of(name) not in tensor.ranges:
                raise ValueError(f"{name} has no range by {self.method_of(name)}")

    def method_of(self, name: str) -> str:
        """Name the method by which the range of a tensor was taken."""
        return self.tensors[name].method or self.spec.method

    def range_of(self, name: str) -> tuple[float, float]:
        """Return the range of a tensor that was taken, as (low, high).

        Raises:
            ModelError: If the calibration does not know the tensor.
        """
        if name not in self.tensors:
            raise ModelError(f"the calibration has no tensor {name!r}", hint="build the engine again")
        return self.tensors[name].ranges[self.method_of(name)]


def read_calibration(bundle: Bundle) -> KeptCalibration | None:
    """Read the calibration of a bundle; None where it has none.

    Raises:
        BundleError: If it is damaged, or of a later schema.
    """
    if CALIBRATION not in bundle.manifest.files:
        return None
    data = artifact.read_bytes(bundle.path / CALIBRATION)
    if version := later_version(data, CALIBRATION_SCHEMA):
        raise BundleError(f"{bundle.path}: schema_version of {CALIBRATION} is {version}", hint=UPGRADE)
    try:
        return decode_json(data, KeptCalibration)
    except ValueError as error:
        reason = f"{bundle.path}: {CALIBRATION} is damaged: {error}"
        raise BundleError(reason, hint="build the engine again with `resnet-deploy build`") from error
