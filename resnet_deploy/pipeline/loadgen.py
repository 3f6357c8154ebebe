"""Engines of one model under MLCommons' LoadGen, into a record and a folder of its logs."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from resnet_deploy import artifact, environment
from resnet_deploy.bench import record_files
from resnet_deploy.bench.loadgen_records import (
    DataFacts,
    EngineFacts,
    LoadgenRecord,
    LoadgenTest,
    Peak,
    RulesVerdict,
)
from resnet_deploy.bench.loadgen_spec import LoadgenPlan, LoadgenSpec, PeakSpec
from resnet_deploy.bench.records import NotRun
from resnet_deploy.bundle import Bundle
from resnet_deploy.compatibility import check_fits
from resnet_deploy.datasets import ImageDataset, find_dataset
from resnet_deploy.errors import BackendError, BundleError, DeviceError, SpecError
from resnet_deploy.names import readable
from resnet_deploy.pipeline.loadgen_peaks import search_peak
from resnet_deploy.pipeline.loadgen_session import Session, SystemUnderTest
from resnet_deploy.pipeline.loadgen_verdicts import Systems, judge, require_reference
from resnet_deploy.pipeline.matching import open_bundles
from resnet_deploy.runners.null import NULL

if TYPE_CHECKING:
    from resnet_deploy.protocols import Progress


@dataclass(frozen=True)
class LoadgenInputs:
    """What is tested.

    Attributes:
        engines: Bundles, all of one model.
        data: Folder of images; None for synthetic ones.
        labels_file: Labels of the images, where their folder does not tell.
        reference_accuracy: Of the model in FP32 on these images, in percent.

    Raises:
        SpecError: If the accuracy is no percentage.
    """

    engines: tuple[Path, ...]
    data: Path | None = None
    labels_file: Path | None = None
    reference_accuracy: float | None = None

    def __post_init__(self) -> None:
        if self.reference_accuracy is not None and not 0 < self.reference_accuracy <= 100:
            raise SpecError(
                f"--reference-accuracy {self.reference_accuracy:g} is no percentage", hint="give it like 76.46"
            )


@dataclass(frozen=True)
class Run:
    """Where a run writes, what each engine gets, and who is told how far it is."""

    output: Path
    threads: int
    progress: "Progress"


@dataclass(frozen=True)
class Finished:
    """A record and where it is; its logs are in the folder of the same name without the suffix."""

    record: LoadgenRecord
    path: Path


def run_scenarios(inputs: LoadgenInputs, spec: LoadgenSpec, run: Run) -> Finished:
    """Make each test of each engine, and with MLPerf's rules an accuracy run beside each.

    Raises:
        ResnetDeployError: If the request is at fault, or a test did not come to its end.
    """
    systems = _line_up(inputs, spec.batch, run)
    if spec.mlperf_rules:
        require_reference(systems)

    def make(session: Session, engine: SystemUnderTest) -> None:
        for scenario in spec.scenarios:
            plan = LoadgenPlan(
                scenario=scenario,
                batch=engine.batch,
                official=spec.mlperf_rules,
                seconds=spec.seconds,
                qps=spec.qps or 1.0,
                latency_s=spec.latency_s,
            )
            session.test(engine, plan, "performance")
            if spec.mlperf_rules:
                session.test(engine, msgspec.structs.replace(plan, accuracy=True), "accuracy")

    def verdicts(tests: Sequence[LoadgenTest]) -> tuple[RulesVerdict, ...]:
        return judge(systems, tests) if spec.mlperf_rules else ()

    return _run(systems, run, make, verdicts=verdicts)


def find_peaks(inputs: LoadgenInputs, spec: PeakSpec, run: Run) -> Finished:
    """Search the highest Server rate of each engine.

    Raises:
        ResnetDeployError: As ``run_scenarios``.
    """
    peaks: list[Peak] = []

    def make(session: Session, engine: SystemUnderTest) -> None:
        peaks.append(search_peak(session, engine, spec))

    return _run(_line_up(inputs, spec.batch, run), run, make, peaks=peaks)


def require_loadgen() -> None:
    """Refuse to begin without LoadGen.

    Raises:
        BackendError: If it is not installed.
    """
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise BackendError(
            "LoadGen needs mlperf_loadgen, which is not installed",
            hint='install it with `pip install "resnet-deploy[bench]"`, on x86-64 and Python up to 3.13',
        )


def _line_up(inputs: LoadgenInputs, batch: int | None, run: Run) -> Systems:
    require_loadgen()
    bundles, card = open_bundles(inputs.engines, "loadgen", (NULL,))
    dataset = None
    if inputs.data is not None:
        dataset = find_dataset(inputs.data, card, labels_file=inputs.labels_file)
    under_test, not_run = [], []
    here = environment.collect()
    with run.progress.task("checking the engines"):
        for bundle in bundles:
            bundle.verify_files()
            system = SystemUnderTest(bundle, _batch(bundle, batch), _describe(bundle))
            try:
                check_fits(bundle, here)
            except BundleError as error:
                not_run.append(_not_run(system, error.message))
            else:
                under_test.append(system)
    return Systems(tuple(under_test), tuple(not_run), card, dataset, inputs.reference_accuracy)


def _batch(bundle: Bundle, asked: int | None) -> int:
    takes = bundle.manifest.spec.batch
    if asked is not None and not takes.min <= asked <= takes.max:
        raise SpecError(
            f"{bundle.path.name} takes batches of {takes.min} to {takes.max}, not of {asked}",
            hint="give --batch a size that every engine takes",
        )
    return asked or takes.opt


def _describe(bundle: Bundle) -> EngineFacts:
    return EngineFacts(
        name=bundle.path.name,
        backend=bundle.manifest.spec.backend,
        precision=bundle.manifest.spec.precision,
        size_bytes=bundle.engine_path.stat().st_size,
        sha256=artifact.sha256_file(bundle.engine_path),
    )


def _not_run(system: SystemUnderTest, reason: str) -> NotRun:
    tested = system.tested
    return NotRun(
        name=tested.name,
        backend=tested.backend,
        precision=tested.precision,
        size_bytes=tested.size_bytes,
        reason=reason,
    )


def _run_each(
    session: Session, systems: Systems, make: Callable[[Session, SystemUnderTest], None]
) -> tuple[NotRun, ...]:
    """Make the tests of every engine; return those that could not run, or not to the end."""
    not_run = list(systems.not_run)
    if systems.under_test:
        session.measure_overhead(systems.under_test[0])
    for engine in systems.under_test:
        try:
            make(session, engine)
        except (BackendError, BundleError, DeviceError) as error:  # noqa: PERF203 - the others are tested all the same
            not_run.append(_not_run(engine, error.message))
    if len(not_run) == len(systems.under_test) + len(systems.not_run):
        raise BackendError(
            f"none of the engines can run here: {not_run[0].name}: {not_run[0].reason}",
            hint="see `resnet-deploy doctor`",
        )
    return tuple(not_run)


def _run(
    systems: Systems,
    run: Run,
    make: Callable[[Session, SystemUnderTest], None],
    *,
    verdicts: Callable[[Sequence[LoadgenTest]], tuple[RulesVerdict, ...]] = lambda tests: (),
    peaks: Sequence[Peak] = (),
) -> Finished:
    """Make all tests; the record and the folder of logs are both there in the end, or neither.

    ``peaks`` are those that ``make`` has added by then.
    """
    created = record_files.created_now()
    path = run.output / f"{systems.card.architecture}-loadgen-{record_files.file_stamp(created)}.json"
    with artifact.atomic_file(path) as file, artifact.atomic_folder(path.with_suffix("")) as folder:
        session = Session(folder, systems.dataset, run.threads, run.progress)
        not_run = _run_each(session, systems, make)
        record = LoadgenRecord(
            created=created,
            environment=environment.collect(),
            architecture=systems.card.architecture,
            weights_sha256=systems.card.weights_sha256,
            preprocess=systems.card.preprocess,
            threads=run.threads,
            data=_describe_data(systems.dataset, run.progress),
            engines=tuple(one.tested for one in systems.under_test),
            tests=tuple(session.tests),
            verdicts=verdicts(session.tests),
            peaks=tuple(peaks),
            not_run=not_run,
        )
        with artifact.translate_os_errors(path):
            file.write_bytes(record_files.encode(record))
    return Finished(record, path)


def _describe_data(dataset: ImageDataset | None, progress: "Progress") -> DataFacts | None:
    if dataset is None:
        return None
    with progress.task("hashing the data set"):
        return DataFacts(
            name=readable(dataset.root.name),
            digest=dataset.digest,
            images=len(dataset),
            labelled=dataset.labels is not None,
            labels_note=dataset.labels_note,
        )
