"""The engine bundle: a folder that says what it holds, where it came from, and whom it suits.

::

    engines/<name>/
        model.onnx | model.plan   the engine, exactly as its backend takes it
        lowered.onnx              what the plan was compiled from, for rebuilding elsewhere (plans only)
        calibration.json          the observed and chosen ranges (INT8 and FP8)
        observations.safetensors  the histograms that they were chosen from (INT8 and FP8)
        corrections.safetensors   what was added to the biases, layer by layer (INT8 and FP8, where images allowed it)
        search.json               what was given back its precision to keep to a limit, and what that cost
        layers.json               what the engine inspector says of the plan (TensorRT)
        timing.cache              how long kernels took when it was compiled (TensorRT, where a cache was asked for)
        golden.npz                a few inputs and the outputs expected of this engine
        build.log                 what the compiler said
        manifest.json             all of the above by digest, everything below, and its own digest as ``sha256``
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from resnet_deploy import artifact
from resnet_deploy.environment import Environment
from resnet_deploy.errors import BundleError, FileError
from resnet_deploy.json_files import decode_json
from resnet_deploy.onnx_wire import has_external_tensors
from resnet_deploy.specs import BuildSpec, ModelCard

SCHEMA_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
GOLDEN: Final = "golden.npz"
MANIFEST_MIB: Final = 32  # that it may have; 100,000 classes fill a third
CALIBRATION: Final = "calibration.json"
CALIBRATION_SCHEMA: Final = 2
SEARCH: Final = "search.json"
OBSERVATIONS: Final = "observations.safetensors"
CORRECTIONS: Final = "corrections.safetensors"
LAYERS: Final = "layers.json"
LOWERED: Final = "lowered.onnx"
LOG: Final = "build.log"
TIMINGS: Final = "timing.cache"
_DIGEST: Final = "sha256"
_ONNX: Final = ".onnx"
_ONNX_MIB: Final = 2048  # protobuf has no larger messages


class HashChain(msgspec.Struct, frozen=True, kw_only=True):
    """SHA-256 of every step from the weights to the engine; empty where a step does not apply.

    ``images`` are those that ``calibration`` was made from, as ``ImageDataset.digest`` has it; empty for noise.
    """

    weights: str
    onnx: str
    images: str = ""
    calibration: str = ""
    lowered: str
    engine: str


class Requirements(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine must have to run the engine.

    Attributes:
        library: Distribution that runs it, such as ``onnxruntime``.
        version: The exact version of it, where the engine demands that; empty where any supported one will do.
        later_versions: Whether later versions of the same major release will do too.
        compute_capabilities: GPU generations the engine holds code for, such as ``8.9``; empty on CPU.
        least_compute_capability: The first GPU generation of those that run it; empty for no such bound.
        int8_dot_product: Whether the CPU must have one (VNNI or its kin): without it, full-range INT8 saturates.
    """

    library: str
    version: str = ""
    later_versions: bool = False
    compute_capabilities: tuple[str, ...] = ()
    least_compute_capability: str = ""
    int8_dot_product: bool = False

    def takes_version(self, installed: str) -> bool:
        """Whether that version of the library runs the engine."""
        if not self.version or installed == self.version:
            return True
        here, built = _numbers(installed), _numbers(self.version)
        return self.later_versions and bool(built) and here[:1] == built[:1] and here >= built

    def takes_gpu(self, compute_capability: str) -> str:
        """Name the field that a GPU of that generation does not meet, and what it asks for; empty if it meets all."""
        supported, least = self.compute_capabilities, self.least_compute_capability
        if supported and compute_capability not in supported:
            return f"requires.compute_capabilities is {', '.join(supported)}"
        if least and _numbers(compute_capability) < _numbers(least):
            return f"requires.least_compute_capability is {least}"
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    """Make versions, and compute capabilities, comparable; parts that are no number of up to 18 digits are left out.

    The rule of requirements.hpp, which would not fit more digits into its numbers.
    """
    parts = (part for part in version.split(".") if part.isascii() and part.isdecimal())
    return tuple(int(part) for part in parts if len(part) <= 18)


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured when the engine was built, against the FP32 model it was lowered from.

    Attributes:
        by: ``engine`` when the engine itself ran; ``simulation`` when the lowered graph was run on a CPU in its place.
        inputs: ``images``, ``calibration images`` where the ranges were chosen on them, or ``synthetic images``.
        images: How many inputs were compared.
        agreement: Share of inputs with the same best class.
        sqnr_db: Power of the FP32 logits over the power of the difference, in decibels; capped at 200.
        max_difference: Largest absolute difference of a logit.
        latency_s: Median seconds per call at the smallest batch; absent when the engine did not run.
        speedup: What the FP32 model takes over that; absent for FP32 itself.
    """

    by: str
    inputs: str
    images: int
    agreement: float
    sqnr_db: float
    max_difference: float
    latency_s: float | None = None
    speedup: float | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine bundle holds.

    Attributes:
        card: The model, with its input contract and labels.
        spec: What was asked for.
        engine: File name of the engine inside the bundle.
        files: SHA-256 of every other file in the bundle, by name.
        chain: From the weights to the engine.
        cache_key: Digest of everything the build depended on.
        requires: Checked by the runtime before it hands bytes to a backend.
        toolchain: Versions of the libraries that made it, by name.
        environment: The machine that made it.
        measured: Accuracy and latency at build time.
        notes: What a reader of figures should know, one line each.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    card: ModelCard
    spec: BuildSpec
    engine: str
    files: dict[str, str]
    chain: HashChain
    cache_key: str
    requires: Requirements
    toolchain: dict[str, str]
    environment: Environment
    measured: Measured
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bundle:
    """An engine bundle on the disk."""

    path: Path
    manifest: Manifest

    @property
    def engine_path(self) -> Path:
        """The file that the backend loads."""
        return self.path / self.manifest.engine

    @property
    def manifest_path(self) -> Path:
        """What the bundle says of itself."""
        return self.path / MANIFEST

    @property
    def golden_path(self) -> Path:
        """Inputs and the outputs expected of this engine."""
        return self.path / GOLDEN

    def verify_files(self) -> None:
        """Hold every file against the manifest.

        Raises:
            BundleError: Naming the first file that is missing, whose digest differs, or which keeps weights in other
                files: these would be in no digest.
            FileError: If one cannot be read, or is larger than ONNX can be.
        """
        for name, digest in self.manifest.files.items():
            file = self.path / name
            if not artifact.is_file(file):
                raise BundleError(f"{self.path}: {name} is missing", hint=_REBUILD)
            data = artifact.read_bytes(file, most_mib=_ONNX_MIB) if name.endswith(_ONNX) else None
            if (artifact.sha256_file(file) if data is None else artifact.sha256_bytes(data)) != digest:
                raise BundleError(
                    f"{self.path}: {name} was altered: its SHA-256 differs from files.{name} in the manifest",
                    hint=_REBUILD,
                )
            if data is not None:
                self._require_whole(name, data)

    def _require_whole(self, name: str, data: bytes) -> None:
        try:
            has_others = has_external_tensors(data)
        except ValueError as error:
            raise BundleError(f"{self.path}: {name} is a damaged ONNX file: {error}", hint=_REBUILD) from error
        if has_others:
            raise BundleError(f"{self.path}: {name} keeps its weights in other files", hint=_REBUILD)


_REBUILD: Final = "build the engine again with `resnet-deploy build`"


def open_bundle(path: Path) -> Bundle:
    """Read a bundle's manifest; its files are verified by ``Bundle.verify_files``.

    Raises:
        FileError: If there is no bundle at ``path``, or it cannot be read.
        BundleError: If the manifest is damaged, was altered, or is of a later schema than this version knows.
    """
    if not artifact.is_folder(path):
        what = "is not an engine bundle" if artifact.exists(path) else "does not exist"
        raise FileError(f"{path} {what}", hint="give a folder that `resnet-deploy build` made")
    if not artifact.is_file(path / MANIFEST):
        inside = ", ".join(found.name for found in find_bundles(path))
        hint = f"name an engine in it: {inside}" if inside else "give a folder that `resnet-deploy build` made"
        raise FileError(f"{path} has no {MANIFEST}", hint=hint)
    return Bundle(path, _decode_manifest(path, artifact.read_bytes(path / MANIFEST, most_mib=MANIFEST_MIB)))


def find_bundles(folder: Path) -> Iterator[Path]:
    """Yield the bundles directly inside ``folder``, by name; unfinished ones (hidden folders) are not seen.

    Raises:
        FileError: If ``folder``, or one in it, cannot be read: a bundle in there would be missed.
    """
    if artifact.is_folder(folder):
        for path in artifact.list_folder(folder):
            if not path.name.startswith(".") and artifact.is_file(path / MANIFEST):
                yield path


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest``, with its own digest, into a bundle under construction."""
    artifact.write_bytes(folder / MANIFEST, seal(msgspec.to_builtins(manifest)))


def seal(fields: dict[str, object]) -> bytes:
    """Serialize a manifest's fields and their digest.

    The digest is the SHA-256 of the compact JSON, keys sorted, without the field ``sha256``: it says whether anything
    between export and runtime changed an input contract, a label or a measured figure. It is no signature.
    """
    data = msgspec.json.encode({**fields, _DIGEST: _digest(fields)})
    return msgspec.json.format(data, indent=1) + b"\n"


def _digest(fields: dict[str, object]) -> str:
    others = {name: value for name, value in fields.items() if name != _DIGEST}
    return artifact.sha256_bytes(msgspec.json.encode(others, order="sorted"))


def _decode_manifest(path: Path, data: bytes) -> Manifest:
    try:
        version = decode_json(data, _Version).schema_version
        if version > SCHEMA_VERSION:
            raise BundleError(
                f"{path}: schema_version is {version}, this version reads up to {SCHEMA_VERSION}",
                hint="upgrade resnet-deploy, or build the engine again",
            )
        manifest = decode_json(data, Manifest)
        fields = decode_json(data, dict[str, object])
    except ValueError as error:
        raise BundleError(f"{path}: {MANIFEST} is damaged: {error}", hint=_REBUILD) from error
    for name in (manifest.engine, *manifest.files):
        # A manifest may come from anywhere: names must stay inside the bundle.
        if not is_plain_name(name):
            raise BundleError(f"{path}: {MANIFEST} names {name!r}, which is not a file of the bundle", hint=_REBUILD)
    if manifest.engine not in manifest.files:
        raise BundleError(f"{path}: {MANIFEST} has no digest for {manifest.engine}", hint=_REBUILD)
    if fields.get(_DIGEST) != _digest(fields):
        raise BundleError(
            f"{path}: {MANIFEST} was altered: its SHA-256 differs from its field {_DIGEST}", hint=_REBUILD
        )
    return manifest


def is_plain_name(name: str) -> bool:
    """Whether a name can only be of something directly inside a folder."""
    return name not in ("", ".", "..") and Path(name).name == name and "\0" not in name


class _Version(msgspec.Struct):
    schema_version: int
