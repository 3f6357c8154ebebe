"""What calibration has seen: a histogram of each activation, and the images they are of.

Exact and mergeable: the observations of the parts of a data set, merged, are those of the whole, bit for bit, file
included. They are kept as safetensors, which hold no code: the counts of each tensor, from its first to its last
occupied bin, and all else as JSON in the header.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import numpy as np

from resnet_deploy import artifact
from resnet_deploy.datasets import digest_images
from resnet_deploy.errors import DataError, ModelError
from resnet_deploy.json_files import decode_json
from resnet_deploy.quantize.counting import BINS
from resnet_deploy.quantize.observers import EXPONENTS, Histogram
from resnet_deploy.schemas import UPGRADE, later_version
from resnet_deploy.specs import ComputeDevice

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA_VERSION: Final = 1
_KEY: Final = "resnet_deploy.observations"
_HINT: Final = "give a file that `resnet-deploy calibrate` wrote"


class Observed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model that was run, by digest.

    Attributes:
        onnx_sha256: Of the exported file.
        weights_sha256: Of the weights it was exported from.
        preprocess_sha256: Of the input contract.
        graph_sha256: Of the constants of the graph that was run, into which passes may have turned the exported ones.
    """

    onnx_sha256: str
    weights_sha256: str
    preprocess_sha256: str
    graph_sha256: str

    def difference(self, other: "Observed") -> str:
        """Name the first field in which ``other`` differs; empty if none does."""
        return next((name for name in self.__struct_fields__ if getattr(self, name) != getattr(other, name)), "")


@dataclass(frozen=True)
class Observations:
    """Histograms by tensor name, of which model, and over which images.

    Attributes:
        model: What was run.
        dataset: Name of the folder of images, or ``random`` for noise.
        images: SHA-256 of each image's file by its name in the folder, the skipped ones included; empty for noise.
        count: How many images were seen.
        skipped: Names of damaged images left out at the user's request.
        histograms: What was seen of each tensor, in order of execution.
        device: Where the model was run: ``cpu``, by ONNX Runtime, or ``cuda``, by PyTorch, which rounds otherwise.
    """

    model: Observed
    dataset: str
    images: dict[str, str]
    count: int
    skipped: tuple[str, ...]
    histograms: dict[str, Histogram]
    device: ComputeDevice = "cpu"

    @property
    def dataset_digest(self) -> str:
        """Digest of the images, as ``ImageDataset.digest``; empty for noise."""
        return digest_images(self.images) if self.images else ""

    def to_bytes(self) -> bytes:
        """Serialize; equal observations give equal bytes."""
        from safetensors.numpy import save

        header = _Header(
            model=self.model,
            dataset=self.dataset,
            images=dict(sorted(self.images.items())),
            count=self.count,
            skipped=tuple(sorted(self.skipped)),
            device=self.device,
            histograms={name: _scalars(histogram) for name, histogram in self.histograms.items()},
        )
        counts = {name: _occupied(histogram) for name, histogram in self.histograms.items()}
        return save(counts, {_KEY: msgspec.json.encode(header).decode()})


class _Scalars(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A histogram but for its counts; ``first`` is the bin where those begin."""

    exponent: int
    low: float
    high: float
    first: int
    sha256: str


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    schema_version: int = SCHEMA_VERSION
    model: Observed
    dataset: str
    images: dict[str, Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]]
    count: int
    skipped: tuple[str, ...]
    device: ComputeDevice = "cpu"
    histograms: dict[str, _Scalars]


def read_observations(path: Path) -> Observations:
    """Read what ``Observations.to_bytes`` made.

    Raises:
        FileError: If the file is missing or cannot be read.
        DataError: If it is of another kind, of a later schema, damaged, or was altered.
    """
    from safetensors import SafetensorError, safe_open

    artifact.sha256_file(path)  # names what is wrong with a path, which safetensors does not
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise DataError(f"{path} holds no observations", hint=_HINT)
            if version := later_version(text, SCHEMA_VERSION):
                raise DataError(f"{path}: schema_version is {version}", hint=UPGRADE)
            header = decode_json(text, _Header)
            histograms = {
                name: _restored(file.get_tensor(name), scalars) for name, scalars in header.histograms.items()
            }
    except (SafetensorError, ValueError, OverflowError, AttributeError) as error:
        # AttributeError: of a type that NumPy lacks.
        raise DataError(f"{path}: the observations are damaged: {error}", hint=_HINT) from error
    seen = (header.images, header.count, header.skipped, histograms, header.device)
    return Observations(header.model, header.dataset, *seen)


def merge_observations(parts: Sequence[Observations]) -> Observations:
    """Put the observations of the parts of a data set together; the parts are left as they were.

    Raises:
        DataError: If there is no part, an image or noise is in two, or the parts are of different folders or devices.
        ModelError: If they are of different models.
    """
    if not parts:
        raise DataError("nothing to merge", hint="name the files that `resnet-deploy calibrate` wrote")
    first = parts[0]
    for other in parts[1:]:
        if field := first.model.difference(other.model):
            raise ModelError(f"observations of different models: {field} differs", hint="calibrate one model")
        if first.dataset != other.dataset:
            reason = f"observations of different folders: {first.dataset} and {other.dataset}"
            raise DataError(reason, hint="calibrate the shards of one folder")
        if first.device != other.device:
            reason = f"observations made on {first.device} and on {other.device}, which round differently"
            raise DataError(reason, hint="calibrate all shards with --calib-device cpu, or all on GPUs")
    images: dict[str, str] = {}
    histograms = {name: Histogram() for name in first.histograms}
    for part in parts:
        seen = sorted(images.keys() & part.images)
        if seen or (not part.images and len(parts) > 1):
            raise DataError(f"{seen[0] if seen else 'noise'} was observed twice", hint="merge each shard once")
        images |= part.images
        for name, histogram in part.histograms.items():
            histograms[name].merge(histogram)
    skipped = sorted(name for part in parts for name in part.skipped)
    count = sum(part.count for part in parts)
    return Observations(first.model, first.dataset, images, count, tuple(skipped), histograms, first.device)


def _occupied(histogram: Histogram) -> "NDArray[np.int64]":
    bins = np.flatnonzero(histogram.counts)
    return histogram.counts[bins[0] : bins[-1] + 1] if len(bins) else histogram.counts[:0]


def _scalars(histogram: Histogram) -> _Scalars:
    first = int(np.argmax(histogram.counts > 0))
    return _Scalars(histogram.exponent, histogram.low, histogram.high, first, histogram.digest)


def _restored(counts: "NDArray[np.int64]", scalars: _Scalars) -> Histogram:
    """Rebuild a histogram and hold it against its digest.

    Raises:
        ValueError: If it is not the one that was saved.
    """
    histogram = Histogram(scalars.exponent, np.zeros(BINS, np.int64), scalars.low, scalars.high)
    if counts.dtype != np.int64 or counts.ndim != 1 or not 0 <= scalars.first <= BINS - len(counts):
        raise ValueError("counts of another shape")
    is_possible = EXPONENTS[0] <= scalars.exponent <= EXPONENTS[1] and (counts >= 0).all()
    if not (is_possible and 0 < sum(map(int, counts)) < 1 << 63):  # a sum in 64 bits could come out at nothing
        raise ValueError("a histogram that no values give")
    histogram.counts[scalars.first : scalars.first + len(counts)] = counts
    if histogram.digest != scalars.sha256:
        raise ValueError("a histogram differs from its digest")
    return histogram
