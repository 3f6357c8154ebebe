"""Benchmarks written down: a TOML file says what is exported, built, called and compared, and one command does it all.

    calib = "random"                                   # of engines and peers; a folder of images, or noise
    peers = ["all"]

    [model]                                            # as `export` has it
    architecture = "resnet50"
    weights = "none"

    [[engines]]                                        # as `build` has it
    backend = "onnxruntime"
    precisions = ["fp32", "int8"]

    [timing]                                           # as `bench` has it
    batches = [1, 8]

Paths are as on the command line: relative to where it is run.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from resnet_deploy import artifact
from resnet_deploy.bench.records import BenchRecord, NotRun
from resnet_deploy.bench_spec import BenchSpec
from resnet_deploy.datasets import find_images
from resnet_deploy.errors import BackendError, BuildError, FileError, SpecError
from resnet_deploy.pipeline.benchmarking import bench
from resnet_deploy.pipeline.building import BuildInputs, build
from resnet_deploy.pipeline.exporting import export
from resnet_deploy.pipeline.lineup import BenchInputs
from resnet_deploy.pipeline.peers import choose_peers, need_images
from resnet_deploy.specs import QUANTIZED, BatchRange, BuildSpec, CalibrationSpec, ExportSpec, Precision

if TYPE_CHECKING:
    from resnet_deploy.protocols import Progress


class SuiteEngines(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Engines of one backend.

    Attributes:
        backend: Its name.
        precisions: An engine for each.
        batch: Batch sizes that they accept.
    """

    backend: str
    precisions: Annotated[tuple[Precision, ...], msgspec.Meta(min_length=1)]
    batch: BatchRange = BatchRange()


class Suite(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a suite file says.

    Attributes:
        model: What is exported.
        engines: What is built of it.
        timing: How all are called.
        calib: What engines and peers are calibrated on: a folder of images, or ``random`` for noise.
        calibration: How engines choose their ranges.
        peers: What else runs the model; ``all`` for every peer there is.
        pytorch: Whether the PyTorch reference takes part.
        data: Folder of images to answer.
        labels_file: Their labels, where the folder does not tell.
        threads: CPU threads for each; 0 takes every core.
        layers: Whether each backend's profiler is asked where the time goes.

    Raises:
        SpecError: If something is calibrated and there is nothing to calibrate on, or the other way round, or an
            engine is named twice.
    """

    model: ExportSpec
    engines: Annotated[tuple[SuiteEngines, ...], msgspec.Meta(min_length=1)]
    timing: BenchSpec = BenchSpec()
    calib: str | None = None
    calibration: CalibrationSpec = CalibrationSpec()
    peers: tuple[str, ...] = ()
    pytorch: bool = True
    data: str | None = None
    labels_file: str | None = None
    threads: Annotated[int, msgspec.Meta(ge=0)] = 0
    layers: bool = False

    def __post_init__(self) -> None:
        wanted = [(one.backend, precision) for one in self.engines for precision in one.precisions]
        if len(set(wanted)) < len(wanted):
            raise SpecError("the suite names an engine twice", hint="name each backend and precision once")
        calibrates = need_images(self.peers) or any(precision in QUANTIZED for _, precision in wanted)
        if calibrates and self.calib is None:
            hint = 'add calib = "DIR", or calib = "random" for an untrained network'
            raise SpecError("the suite quantizes and names no images to calibrate on", hint=hint)
        if not calibrates and self.calib is not None:
            raise SpecError("the suite names images to calibrate on and quantizes nothing", hint="drop calib")

    @property
    def builds(self) -> tuple[BuildSpec, ...]:
        """What each engine is to be."""
        return tuple(
            BuildSpec(
                backend=one.backend,
                precision=precision,
                batch=one.batch,
                calibration=self.calibration if precision in QUANTIZED else None,
            )
            for one in self.engines
            for precision in one.precisions
        )


def read_suite(path: Path) -> Suite:
    """Read a suite file.

    Raises:
        FileError: If it cannot be read, or is no suite.
        SpecError: If it asks for what cannot be.
    """
    try:
        return msgspec.toml.decode(artifact.read_bytes(path), type=Suite)
    except RecursionError as error:
        raise FileError(f"{path} is no suite: nested too deeply", hint="see benchmarks/cpu.toml for one") from error
    except (msgspec.DecodeError, ValueError) as error:  # a number of thousands of digits is a ValueError of its own
        raise FileError(f"{path} is no suite: {error}", hint="see benchmarks/cpu.toml for one") from error


def suite_label(path: Path) -> str:
    """Name a suite in a record: its file, and the digest of it."""
    return f"{path.name} sha256:{artifact.sha256_file(path)}"


def run_suite(suite: Suite, label: str, folder: Path, progress: "Progress") -> BenchRecord:
    """Export, build and compare what a suite says.

    An engine that cannot be built here is in the record with the reason, as one that cannot be run is.

    Args:
        suite: What to do.
        label: What the record calls it.
        folder: Where model and engines go; what is there already and was made of the same is not made again.
        progress: Shows the steps.

    Raises:
        UserError: If model, images or data are at fault, or no engine can be built here.
    """
    inputs = _inputs(suite)  # whose faults are told before the long part
    model = folder / f"{suite.model.architecture}.onnx"
    export(suite.model, model, progress)
    outcomes = [_build(suite, spec, model, progress) for spec in suite.builds]
    failed = tuple(one for one in outcomes if isinstance(one, NotRun))
    if len(failed) == len(outcomes):
        raise BackendError(f"none of the engines can be built here: {failed[0].reason}", hint=_DOCTOR)
    engines = tuple(one for one in outcomes if isinstance(one, Path))
    record = bench(replace(inputs, engines=engines), suite.timing, threads=suite.threads, progress=progress)
    return msgspec.structs.replace(record, suite=label, not_run=(*failed, *record.not_run))


def _inputs(suite: Suite) -> BenchInputs:
    """Say what takes part, but for the engines, which are not there yet."""
    inputs = BenchInputs(
        engines=(),
        data=Path(suite.data) if suite.data is not None else None,
        labels_file=Path(suite.labels_file) if suite.labels_file is not None else None,
        pytorch=suite.pytorch,
        peers=suite.peers,
        peer_calib=suite.calib if need_images(suite.peers) else None,
        layers=suite.layers,
    )
    choose_peers(inputs)
    if inputs.data is not None:
        find_images(inputs.data)
    return inputs


def _build(suite: Suite, spec: BuildSpec, model: Path, progress: "Progress") -> Path | NotRun:
    """Build one engine, or say why it cannot be built here."""
    name = f"{suite.model.architecture}-{spec.precision}-{spec.backend}"
    inputs = BuildInputs(model, model.parent / name, calib=suite.calib if spec.calibration is not None else None)
    try:
        return build(inputs, spec, progress).bundle.path
    except (BackendError, BuildError) as error:
        reason = f"not built: {error.message}" + (f": {error.hint}" if error.hint else "")
        return NotRun(name=name, backend=spec.backend, precision=spec.precision, size_bytes=0, reason=reason)


_DOCTOR: Final = "see `resnet-deploy doctor`"
