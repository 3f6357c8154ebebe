"""The tests of one run: each in a process of its own, its logs read, kept and hashed."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from resnet_deploy import artifact
from resnet_deploy.bench.loadgen_logs import ACCURACY, DETAIL, SUMMARY, read_answers, read_detail
from resnet_deploy.bench.loadgen_records import Accuracy, EngineFacts, LoadgenTest, Purpose
from resnet_deploy.bench.loadgen_spec import LoadgenPlan
from resnet_deploy.pipeline.loadgen_child import ChildRequest
from resnet_deploy.pipeline.loadgen_process import Patience, run_child
from resnet_deploy.regular_files import require_utf8
from resnet_deploy.runners.null import NULL

if TYPE_CHECKING:
    from resnet_deploy.bundle import Bundle
    from resnet_deploy.datasets import ImageDataset
    from resnet_deploy.protocols import Progress

_NULL_SECONDS: Final = 0.5
_LONGEST_GAP: Final = 30  # of Poisson arrivals, in mean distances: once in 10^13


@dataclass(frozen=True)
class SystemUnderTest:
    """An engine that is tested, and the largest batch that is made of what waits."""

    bundle: "Bundle"
    batch: int
    tested: EngineFacts


@dataclass
class Session:
    """Makes tests and keeps their records.

    Attributes:
        folder: Where the logs go, a folder for each test.
        dataset: The images; None for synthetic ones.
        threads: CPU threads of each engine.
        progress: Shows which test is made.
        patience: With a process that shows no progress.
        tests: What was made so far.

    Raises:
        FileError: If an image's name is not UTF-8: names are handed to the process that runs LoadGen as JSON.
    """

    folder: Path
    dataset: "ImageDataset | None"
    threads: int
    progress: "Progress"
    patience: Patience = field(default_factory=Patience)
    tests: list[LoadgenTest] = field(default_factory=list)

    def __post_init__(self) -> None:
        for path in self.dataset.paths if self.dataset is not None else ():
            require_utf8(path.absolute())

    def test(self, engine: SystemUnderTest, plan: LoadgenPlan, purpose: Purpose) -> LoadgenTest:
        """Make one test.

        Raises:
            ResnetDeployError: Whatever ended it; nothing of it is kept then.
        """
        return self._test(engine, plan, purpose, null=False)

    def measure_overhead(self, engine: SystemUnderTest) -> None:
        """Test the runner that does nothing in the engine's place: what is measured is LoadGen's and our own cost."""
        for scenario in ("singlestream", "offline"):
            plan = LoadgenPlan(scenario=scenario, batch=engine.batch, seconds=_NULL_SECONDS)
            self._test(engine, plan, "overhead", null=True)

    def _test(self, engine: SystemUnderTest, plan: LoadgenPlan, purpose: Purpose, *, null: bool) -> LoadgenTest:
        name = NULL if null else engine.tested.name
        folder = self._new_folder(name, plan, purpose)
        dataset = self.dataset
        request = ChildRequest(
            plan=plan,
            bundle=str(engine.bundle.path.resolve()),
            null=null,
            threads=self.threads,
            root=str(dataset.root.resolve()) if dataset is not None else "",
            images=tuple(str(path.absolute()) for path in dataset.paths) if dataset is not None else (),
        )
        try:
            with self.progress.task(f"{name}: {folder.name.removeprefix(f'{name}-')}"):
                answer = run_child(request, folder, self._patience(plan))
                record = LoadgenTest(
                    engine=name,
                    purpose=purpose,
                    batch=plan.batch,
                    result=read_detail(folder / DETAIL),
                    accuracy=self._count(folder) if plan.accuracy else None,
                    device=answer.device,
                    logs=self._keep_logs(folder, plan),
                )
        except BaseException:
            shutil.rmtree(folder)
            raise
        self.tests.append(record)
        return record

    def _new_folder(self, name: str, plan: LoadgenPlan, purpose: Purpose) -> Path:
        """Name it after engine and scenario; what is no performance run says so, and probes are numbered."""
        kind = {"performance": "", "overhead": "", "probe": "-probe"}.get(purpose, f"-{purpose}")
        if purpose == "probe":
            kind += f"-{sum(one.purpose == 'probe' and one.engine == name for one in self.tests) + 1:02}"
        folder = self.folder / f"{name}-{plan.scenario}{kind}"
        with artifact.translate_os_errors(folder):
            folder.mkdir()
        return folder

    def _patience(self, plan: LoadgenPlan) -> Patience:
        gap = _LONGEST_GAP / plan.qps if plan.scenario == "server" else 0.0
        return Patience(self.patience.opening, self.patience.testing + gap)

    def _count(self, folder: Path) -> Accuracy:
        """Hold the answers in the log against the labels."""
        assert self.dataset is not None
        assert self.dataset.labels is not None
        answers = read_answers(folder / ACCURACY, len(self.dataset))
        return Accuracy(correct=int((answers == np.array(self.dataset.labels)).sum()), images=len(answers))

    def _keep_logs(self, folder: Path, plan: LoadgenPlan) -> dict[str, str]:
        """Remove what says nothing, hash the rest."""
        kept = (SUMMARY, DETAIL, ACCURACY) if plan.accuracy else (SUMMARY, DETAIL)
        for path in artifact.list_folder(folder):
            if path.name not in kept:
                path.unlink()
        return {f"{folder.name}/{name}": artifact.sha256_file(folder / name) for name in kept}
