"""Engines built ahead for machines of several kinds: a folder of bundles, and the index that a machine chooses from.

::

    engines/fleet/
        index.json                     the engines by preference, each by digest
        fp16-tensorrt-rtx-sm89/        an engine bundle
        int8-onnxruntime/              another
"""

from pathlib import Path
from typing import Final

import msgspec

from resnet_deploy import artifact
from resnet_deploy.bundle import MANIFEST_MIB, Bundle, Measured, Requirements, is_plain_name, open_bundle
from resnet_deploy.errors import BundleError
from resnet_deploy.json_files import decode_json
from resnet_deploy.schemas import UPGRADE, later_version
from resnet_deploy.specs import Precision

INDEX: Final = "index.json"
SCHEMA_VERSION: Final = 1
_AGAIN: Final = "write it again with `resnet-deploy prebuild`"


class FleetEngine(msgspec.Struct, frozen=True, kw_only=True):
    """One engine of a fleet.

    Attributes:
        folder: Of its bundle, inside the fleet's.
        backend, precision: What it is.
        requires: What a machine must have to run it.
        size_bytes: Of the engine.
        manifest_sha256: Digest of the bundle's manifest, which holds those of its files.
        measured: Accuracy, and where it ran latency, as it was built.
    """

    folder: str
    backend: str
    precision: Precision
    requires: Requirements
    size_bytes: int
    manifest_sha256: str
    measured: Measured


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """The engines of one model, the preferred first."""

    schema_version: int = SCHEMA_VERSION
    onnx_sha256: str
    weights_sha256: str
    engines: tuple[FleetEngine, ...]


def is_fleet(path: Path) -> bool:
    """Whether there is an index in the folder at ``path``."""
    return artifact.is_folder(path) and artifact.is_file(path / INDEX)


def describe_bundle(bundle: Bundle) -> FleetEngine:
    """Make the entry of a bundle that lies in the fleet's folder."""
    manifest = bundle.manifest
    return FleetEngine(
        folder=bundle.path.name,
        backend=manifest.spec.backend,
        precision=manifest.spec.precision,
        requires=manifest.requires,
        size_bytes=bundle.engine_path.stat().st_size,
        manifest_sha256=artifact.sha256_file(bundle.manifest_path),
        measured=manifest.measured,
    )


def write_fleet(folder: Path, bundles: list[Bundle]) -> Fleet:
    """Write the index of bundles in ``folder``, in the order of preference."""
    chain = bundles[0].manifest.chain
    engines = tuple(map(describe_bundle, bundles))
    fleet = Fleet(onnx_sha256=chain.onnx, weights_sha256=chain.weights, engines=engines)
    artifact.write_bytes(folder / INDEX, msgspec.json.format(msgspec.json.encode(fleet), indent=1) + b"\n")
    return fleet


def read_fleet(folder: Path) -> Fleet:
    """Read the index in ``folder``.

    Raises:
        FileError: If it cannot be read.
        BundleError: If it is damaged, or of a later schema.
    """
    path = folder / INDEX
    data = artifact.read_bytes(path, most_mib=MANIFEST_MIB)
    if version := later_version(data, SCHEMA_VERSION):
        raise BundleError(f"{path} is of schema_version {version}", hint=UPGRADE)
    try:
        fleet = decode_json(data, Fleet)
    except ValueError as error:
        raise BundleError(f"{path} is damaged: {error}", hint=_AGAIN) from error
    for engine in fleet.engines:
        if not is_plain_name(engine.folder):
            raise BundleError(f"{path} names {engine.folder!r}, which is no folder inside the fleet", hint=_AGAIN)
    return fleet


def folders_beside(bundle: Bundle) -> tuple[Path, ...]:
    """List where the model of a bundle may be: beside it or, where it is one of a fleet, beside that."""
    folder = bundle.path.resolve().parent
    return (folder, folder.parent) if is_fleet(folder) else (folder,)


def open_engine(folder: Path, engine: FleetEngine) -> Bundle:
    """Open the bundle of an engine.

    Raises:
        FileError: If it is not there.
        BundleError: If it is damaged, or not the one that the index was made of.
    """
    bundle = open_bundle(folder / engine.folder)
    if artifact.sha256_file(bundle.manifest_path) != engine.manifest_sha256:
        raise BundleError(f"{bundle.path} is not the engine that {folder / INDEX} names", hint=_AGAIN)
    return bundle
