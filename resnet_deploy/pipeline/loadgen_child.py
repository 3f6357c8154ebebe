"""A process in which LoadGen makes one test: ``python -m resnet_deploy.pipeline.loadgen_child PIPE < request.json``.

LoadGen reads its own configuration once in a process, and takes the process with it when anything goes wrong in a
callback; so each test has one to itself. What it has to say afterwards is in ``ANSWER``, in the working folder, beside
LoadGen's logs. Meanwhile it writes the number of images it has dealt with into the pipe, a line every half second, and
ends when nobody is there to read it.
"""

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec
import numpy as np

from resnet_deploy import artifact
from resnet_deploy.bench.loadgen_spec import COALESCING, LoadgenPlan
from resnet_deploy.bundle import Bundle, open_bundle
from resnet_deploy.datasets import BatchReader, ImageDataset
from resnet_deploy.errors import ResnetDeployError
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.runners import find_runner
from resnet_deploy.runners.null import NullRunner

if TYPE_CHECKING:
    from resnet_deploy.protocols import Array, Runner

ANSWER: Final = "answer.json"
SYNTHETIC_IMAGES: Final = 1024  # as many as MLPerf keeps in memory, so that caches help as little
_BEAT_S: Final = 0.5
_FAILED: Final = 3


class ChildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is asked for.

    Attributes:
        plan: The test.
        bundle: Folder of the engine.
        null: Whether the runner that does nothing stands in for it.
        threads: CPU threads of the engine.
        root: Folder of the images.
        images: Their paths; empty for synthetic ones.
    """

    plan: LoadgenPlan
    bundle: str
    null: bool = False
    threads: int
    root: str = ""
    images: tuple[str, ...] = ()


class ChildAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: what the engine ran on, or the error that ended the test."""

    device: str = ""
    error: str = ""
    hint: str = ""
    kind: str = ""


def main() -> None:
    """Make the test that standard input asks for."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=ChildRequest)
    pulse = _Pulse(int(sys.argv[1]))
    pulse.start()
    try:
        answer = _run(request, pulse)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        _abandon(error)
    _write(answer)


def _run(request: ChildRequest, pulse: "_Pulse") -> ChildAnswer:
    # Imported here, so that its absence is told like any other error.
    from resnet_deploy.bench.loadgen_sut import SampleLibrary, SystemUnderTest, images_of, run_test, warm_up

    plan, bundle = request.plan, open_bundle(Path(request.bundle))
    runner = _open_runner(bundle, request)
    with contextlib.closing(runner):
        read, total = _images(bundle, request)
        library = SampleLibrary(read, total)
        most = plan.batch if plan.scenario in COALESCING else runner.batch.max
        together = read([position % total for position in range(images_of(plan))])
        seconds = warm_up(runner, together, most=most, all_sizes=plan.scenario == "server")
        system = SystemUnderTest(runner, library, most, _abandon)
        pulse.count = lambda: 1 + system.answered
        run_test(plan, system, library, seconds, Path.cwd())
        return ChildAnswer(device=runner.device)


def _open_runner(bundle: Bundle, request: ChildRequest) -> "Runner":
    if request.null:
        return NullRunner(bundle.manifest.card, bundle.manifest.spec.batch)
    return find_runner(bundle.manifest.spec.backend)(bundle, request.threads)


def _images(bundle: Bundle, request: ChildRequest) -> "tuple[Callable[[Sequence[int]], Array], int]":
    """Return a function from positions to contract tensors, and how many positions there are."""
    contract = bundle.manifest.card.preprocess
    if not request.images:
        made = synthetic_images(contract, SYNTHETIC_IMAGES)
        return lambda positions: made[np.asarray(positions)], SYNTHETIC_IMAGES
    paths, root = [Path(path) for path in request.images], Path(request.root)

    def read(positions: Sequence[int]) -> "Array":
        chosen = ImageDataset(root, tuple(paths[position] for position in positions))
        (batch,) = BatchReader(chosen, contract, len(chosen))
        return batch.images

    return read, len(paths)


class _Pulse(threading.Thread):
    """Tells the parent how far the test is, and ends this process when the parent is gone."""

    def __init__(self, pipe: int) -> None:
        super().__init__(name="pulse", daemon=True)
        self._pipe = pipe
        self.count: Callable[[], int] = lambda: 0

    def run(self) -> None:
        try:
            while True:
                time.sleep(_BEAT_S)
                os.write(self._pipe, b"%d\n" % self.count())
        except OSError:
            os._exit(_FAILED)


def _abandon(error: BaseException) -> NoReturn:
    """Tell the parent what went wrong, and end at once, whatever frames of LoadGen's are above.

    Going on to the end of the test, as LoadGen would have it, takes ten minutes in the Server scenario.
    """
    if isinstance(error, ResnetDeployError):
        _write(ChildAnswer(error=error.message, hint=error.hint, kind=type(error).__name__))
    else:
        traceback.print_exception(error)
        _write(ChildAnswer(error=f"{type(error).__name__}: {error}"))
    sys.stderr.flush()
    os._exit(_FAILED)


def _write(answer: ChildAnswer) -> None:
    artifact.write_bytes(Path(ANSWER), msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
