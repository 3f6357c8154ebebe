"""One model to the engines of a fleet: every form in a process of its own, and one index of them all."""

import contextlib
import ctypes
import multiprocessing
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from resnet_deploy import artifact
from resnet_deploy.bundle import open_bundle
from resnet_deploy.errors import BuildError, FileError, ResnetDeployError, SpecError
from resnet_deploy.fleet import Fleet, write_fleet
from resnet_deploy.pipeline.building import BuildInputs, build, require_buildable
from resnet_deploy.protocols import Silent
from resnet_deploy.specs import QUANTIZED, BuildSpec

if TYPE_CHECKING:
    from resnet_deploy.protocols import Progress

_LOCK: Final = ".prebuild.lock"


@dataclass(frozen=True)
class Failure:
    """An engine that could not be built."""

    name: str
    message: str
    hint: str


@dataclass(frozen=True)
class Prebuilt:
    """What came of a request for a fleet.

    Attributes:
        fleet: The index that was written; None if nothing was built.
        failures: What could not be.
    """

    fleet: Fleet | None
    failures: tuple[Failure, ...]


def engine_name(spec: BuildSpec) -> str:
    """Name an engine's folder after what tells it from the others: ``fp16-tensorrt-rtx-sm89``."""
    targets = [f"sm{target.replace('.', '')}" for target in spec.trt.targets]
    return "-".join([spec.precision, spec.backend, *targets])


def one_for_each_target(spec: BuildSpec) -> list[BuildSpec]:
    """Part a spec of several GPU generations, so that each machine gets an engine with no code but its own."""
    if not spec.trt.targets:
        return [spec]
    alone = [msgspec.structs.replace(spec.trt, targets=(target,)) for target in spec.trt.targets]
    return [msgspec.structs.replace(spec, trt=options) for options in alone]


def prebuild(inputs: BuildInputs, specs: list[BuildSpec], folder: Path, jobs: int, progress: "Progress") -> Prebuilt:
    """Build an engine for each spec, ``jobs`` at a time, and write the index of those that could be built.

    Args:
        inputs: What all are built from; an INT8 engine alone takes the images to calibrate on.
        specs: What is wanted, the preferred first.
        folder: Where the bundles and the index go.
        jobs: Processes to build in.
        progress: Counts the engines.

    Raises:
        SpecError: If two specs have the same name, or there is no process to build in.
        FileError: If there is no model, the folder holds something else, or another command is filling it.
        BackendError: If something here cannot build an engine that is asked for.
    """
    _require_possible(inputs, specs, folder, jobs)
    was_there = artifact.exists(folder)
    # Two at once would list each other's engines under the same names.
    with artifact.writable_folder(folder), artifact.locked(folder / _LOCK, wait=False) as is_ours:
        if not is_ours:
            hint = "wait for it, or choose another place with -o"
            raise FileError(f"{folder}: another command is building into it", hint=hint)
        prebuilt = _build_all(inputs, specs, folder, jobs, progress)
    if prebuilt.fleet is None and not was_there:
        with contextlib.suppress(OSError):  # others may have put something there
            folder.rmdir()
    return prebuilt


def _build_all(inputs: BuildInputs, specs: list[BuildSpec], folder: Path, jobs: int, progress: "Progress") -> Prebuilt:
    names = [engine_name(spec) for spec in specs]
    failures: dict[str, Failure] = {}
    # Fresh processes: threads and CUDA contexts do not survive a fork.
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(specs)), spawning, initializer=_start_worker) as pool:
        running: dict[Future[Failure | None], str] = {}
        for name, spec in zip(names, specs, strict=True):
            wanted = replace(inputs, output=folder / name)
            if spec.precision not in QUANTIZED:
                wanted = replace(wanted, calib=None, samples=inputs.samples or _as_samples(inputs.calib))
            running[_submit(pool, wanted, spec, name)] = name
        try:
            for done in progress.track(as_completed(running), "building", len(running)):
                failure = _outcome(done, running[done])
                if failure is not None:
                    failures[failure.name] = failure
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()  # each ends its build in order, and takes no other
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    bundles = [open_bundle(folder / name) for name in names if name not in failures]
    fleet = write_fleet(folder, bundles) if bundles else None
    return Prebuilt(fleet, tuple(failures[name] for name in names if name in failures))


def _require_possible(inputs: BuildInputs, specs: list[BuildSpec], folder: Path, jobs: int) -> None:
    """Refuse what cannot come true before any process starts."""
    if len({engine_name(spec) for spec in specs}) < len(specs):
        raise SpecError("an engine is asked for twice", hint="name each precision, backend and target once")
    if jobs < 1:
        raise SpecError(f"{jobs} processes", hint="give --jobs a positive number")
    if artifact.exists(folder) and not artifact.is_folder(folder):
        raise FileError(f"{folder} is not a folder", hint="choose another place with -o")
    if not artifact.is_file(inputs.model):
        raise FileError(f"{inputs.model} does not exist", hint="export one first with `resnet-deploy export`")
    for spec in specs:
        require_buildable(spec)  # before any process starts: no wait ends in what could be known


def _as_samples(calib: str | None) -> Path | None:
    """Take the folder of images to calibrate on for an engine that only wants a few to answer."""
    path = Path(calib) if calib is not None else None
    return path if path is not None and artifact.is_folder(path) else None


def _submit(pool: ProcessPoolExecutor, inputs: BuildInputs, spec: BuildSpec, name: str) -> "Future[Failure | None]":
    """Have an engine built; where a process has been killed already, the future says so, as that of any other does."""
    try:
        return pool.submit(_build_one, inputs, spec, name)
    except BrokenProcessPool as error:
        lost: Future[Failure | None] = Future()
        lost.set_exception(error)
        return lost


def _outcome(done: "Future[Failure | None]", name: str) -> Failure | None:
    try:
        return done.result()
    except BrokenProcessPool:
        return Failure(name, "a process that built engines was killed", "is memory short? try --jobs 1")


_ending = threading.Event()
_PR_SET_PDEATHSIG: Final = 1


def _start_worker() -> None:
    """Let what ends the command end this process in order, and the end of the command too."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(number: int, frame: object) -> None:
    del frame
    if _ending.is_set():
        return  # a second one must not cut the removal of what is half-written short
    _ending.set()
    raise SystemExit(128 + number)


def _build_one(inputs: BuildInputs, spec: BuildSpec, name: str) -> Failure | None:
    """Build in this process; an exception would lose its hint on the way back."""
    if _ending.is_set():
        return Failure(name, "interrupted before it was begun", "")
    try:
        build(inputs, spec, Silent())
    except ResnetDeployError as error:
        return Failure(name, error.message, error.hint)
    return None


def require_whole(prebuilt: Prebuilt) -> None:
    """Raise unless everything was built.

    Raises:
        BuildError: Naming the first engine that was not.
    """
    if prebuilt.failures:
        first, count = prebuilt.failures[0], len(prebuilt.failures)
        more = f" (and {count - 1} more)" if count > 1 else ""
        raise BuildError(f"{first.name} was not built{more}: {first.message}", hint=first.hint)
