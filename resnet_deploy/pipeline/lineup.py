"""Who takes part in a benchmark: the reference and the engines, opened; and who cannot, with the reason."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from resnet_deploy import artifact, environment
from resnet_deploy.bench.records import NotRun, Role
from resnet_deploy.bench.ways import Entrant, require_ways
from resnet_deploy.bench_spec import BenchSpec
from resnet_deploy.bundle import Bundle
from resnet_deploy.compatibility import check_fits
from resnet_deploy.datasets import ImageDataset
from resnet_deploy.errors import BackendError, BundleError, DeviceError, SpecError
from resnet_deploy.fleet import folders_beside
from resnet_deploy.pipeline.diagnosing import read_search
from resnet_deploy.pipeline.entrants import open_entrant
from resnet_deploy.pipeline.references import REFERENCE, find_reference, open_reference
from resnet_deploy.runners import has_graphs, open_several
from resnet_deploy.specs import BatchRange, ModelCard

EVALUATION_BATCH: Final = 32


@dataclass(frozen=True)
class BenchInputs:
    """What a benchmark runs on.

    Attributes:
        engines: Bundles, all of one model.
        data: Folder of images; None times the engines on synthetic ones.
        labels_file: Labels of the images, where their folder does not tell.
        reference: Weights to run in PyTorch; None looks for them beside the engines.
        pytorch: Whether PyTorch runs at all; it is what the others are compared with.
        skip_corrupt: Leave damaged images out instead of stopping.
        peers: Names of what runs the model elsewhere, or ``all``.
        peer_calib: What peers that quantize do so on: a folder of images, or ``random`` for noise.
        layers: Ask each backend's profiler where the time of a call goes.

    Raises:
        SpecError: If something is asked for that would have no effect.
    """

    engines: tuple[Path, ...]
    data: Path | None = None
    labels_file: Path | None = None
    reference: Path | None = None
    pytorch: bool = True
    skip_corrupt: bool = False
    peers: tuple[str, ...] = ()
    peer_calib: str | None = None
    layers: bool = False

    def __post_init__(self) -> None:
        if self.data is None and self.labels_file is not None:
            raise SpecError("--labels-file has no effect without --data", hint="add --data DIR, or drop it")
        if self.data is None and self.skip_corrupt and self.peer_calib in (None, "random"):
            raise SpecError("--skip-corrupt has no effect without --data", hint="add --data DIR, or drop it")
        if self.reference is not None and not self.pytorch:
            raise SpecError("--reference has no effect with --no-pytorch", hint="drop one of the two")


@dataclass(frozen=True)
class Calibrated:
    """On what a peer's own tool calibrated it: the digest of the images, and how many of a folder it may take."""

    digest: str
    max_images: int


@dataclass(frozen=True)
class Candidate:
    """An entrant and what its record says of it; the reference and peers have no bundle."""

    entrant: Entrant
    backend: str
    precision: str
    size_bytes: int
    sha256: str
    bundle: Bundle | None = None
    role: Role = "engine"
    settings: str = ""
    calibrated_on: Calibrated | None = None

    def was_fitted_to(self, dataset: ImageDataset) -> bool:
        """Whether a build that is given ``dataset`` would take just the images that this engine was built with.

        To calibrate on, or to choose on which layers to keep in floating point.
        """
        if self.bundle is None:
            of = self.calibrated_on
            return of is not None and of.digest != "" and dataset.subset(of.max_images).digest == of.digest
        spec, images = self.bundle.manifest.spec.calibration, self.bundle.manifest.chain.images
        if spec is not None and images != "" and dataset.subset(spec.max_images).digest == images:
            return True
        search = read_search(self.bundle)
        return search is not None and len(search.steps) > 1 and search.dataset_sha256 == dataset.digest


@dataclass(frozen=True)
class Lineup:
    """What takes part in a run.

    Attributes:
        candidates: Those that can run here, the reference first.
        not_run: Those that cannot.
        card: The model that all of them are of.
        threads: CPU threads that each gets.
    """

    candidates: tuple[Candidate, ...]
    not_run: tuple[NotRun, ...]
    card: ModelCard
    threads: int

    @property
    def entrants(self) -> list[Entrant]:
        """The candidates as the timing takes them."""
        return [candidate.entrant for candidate in self.candidates]

    @property
    def reference(self) -> str:
        """Name of the reference; empty where there is none."""
        return next((one.entrant.name for one in self.candidates if one.role == "reference"), "")


@contextlib.contextmanager
def open_lineup(bundles: Sequence[Bundle], inputs: BenchInputs, spec: BenchSpec, threads: int) -> Iterator[Lineup]:
    """Open the reference, where wanted, and every engine that can run here; close them at the end of the block.

    Args:
        bundles: Of one model.
        inputs: What was asked for.
        spec: What they must be able to do.
        threads: CPU threads for each.

    Raises:
        UserError: If none of the engines can run here, one was altered or can be called in none of the ways asked for,
            or the reference is at fault.
    """
    card = bundles[0].manifest.card
    candidates: list[Candidate] = []
    not_run: list[NotRun] = []
    with contextlib.ExitStack() as stack:
        if inputs.pytorch:
            candidates.append(_open_reference(bundles, inputs, spec, threads))
            stack.callback(candidates[0].entrant.close)
        for bundle in bundles:
            opened = _open_engine(bundle, spec, threads)
            if isinstance(opened, NotRun):
                not_run.append(opened)
                continue
            stack.callback(opened.entrant.close)
            candidates.append(opened)
        if not candidates:
            raise BackendError(
                f"none of the engines can run here: {not_run[0].name}: {not_run[0].reason}",
                hint="see `resnet-deploy doctor`",
            )
        require_ways([candidate.entrant for candidate in candidates], spec)
        yield Lineup(tuple(candidates), tuple(not_run), card, threads)


def _open_reference(bundles: Sequence[Bundle], inputs: BenchInputs, spec: BenchSpec, threads: int) -> Candidate:
    card = bundles[0].manifest.card
    path = inputs.reference or find_reference([folder for bundle in bundles for folder in folders_beside(bundle)], card)
    runner = open_reference(path, card, BatchRange(1, 1, max(*spec.batches, EVALUATION_BATCH)), threads)
    return Candidate(
        Entrant(REFERENCE, runner, threads=threads),
        "torch",
        "fp32",
        path.stat().st_size,
        card.weights_sha256,
        role="reference",
    )


def _open_engine(bundle: Bundle, spec: BenchSpec, threads: int) -> Candidate | NotRun:
    """Open one engine, or say why it cannot be run here."""
    bundle.verify_files()
    name, built, size = bundle.path.name, bundle.manifest.spec, bundle.engine_path.stat().st_size
    try:
        check_fits(bundle, environment.collect())
        entrant = open_entrant(name, partial(open_several, bundle), spec, threads, graphs=has_graphs(built.backend))
    except (BackendError, BundleError, DeviceError) as error:
        return NotRun(
            name=name, backend=built.backend, precision=built.precision, size_bytes=size, reason=error.message
        )
    digest = artifact.sha256_file(bundle.engine_path)
    return Candidate(entrant, built.backend, built.precision, size, digest, bundle)
