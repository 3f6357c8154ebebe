"""Commands in children of one process that has everything imported, and what ends them at a chosen moment."""

import contextlib
import ctypes
import importlib
import json
import mmap
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

LIBRARIES: Final = (
    *("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors", "PIL.Image", "rich", "pyarrow.parquet"),
    *("resnet_deploy.export", "resnet_deploy.pipeline.building", "resnet_deploy.pipeline.benchmarking"),
    *("resnet_deploy.pipeline.evaluating", "resnet_deploy.pipeline.packaging", "resnet_deploy.pipeline.scoring"),
)
LONGEST_S: Final = 300.0  # a command that takes longer hangs
HUNG: Final = -1000  # the status of one that did
_PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h
# What Python does to files, by its audit events; the path is the first argument, or the second.
_CHANGES: Final = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink"}
_WRITING: Final = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True)
class Kill:
    """When a command is killed: after so many seconds, or before one of the changes that it makes to files.

    Attributes:
        after_s: Seconds after its start.
        before_change: Number of the change, from 1.
    """

    after_s: float | None = None
    before_change: int | None = None


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: Its exit status; negative for the signal that killed it.
        seconds: How long it took.
        changes: How many changes it made to files in its folder, as Python's audit events tell.
        said: What it wrote on standard error; of absolute paths only the names of files, which no machine gives away.
    """

    status: int
    seconds: float
    changes: int
    said: str

    @property
    def last_lines(self) -> list[str]:
        """The last two lines on standard error: what was wrong, and what to do, where it was refused."""
        return self.said.strip().splitlines()[-2:]

    @property
    def is_refusal(self) -> bool:
        """Whether it said in one line what was wrong, and in one what to do, without a traceback."""
        lines = self.last_lines
        is_told = len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: ")
        return self.status in (1, 2) and is_told and "Traceback" not in self.said


def without_folders(text: str) -> str:
    """Cut absolute paths in a text down to the names of files: folders differ from run to run."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/\"']+/)+", "", text)


def get_ready(libraries: Sequence[str] = LIBRARIES) -> None:
    """Import what commands would, and become the one to whom orphans fall."""
    from resnet_deploy.cli import COMMANDS

    for name in (*libraries, *(f"resnet_deploy.cli.{command}" for command in COMMANDS)):
        importlib.import_module(name)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Command:
    """A command under way in a child."""

    def __init__(
        self, line: Sequence[str], folder: Path, prepare: Callable[[], None] | None = None, kill: Kill | None = None
    ) -> None:
        self._changes, self._said = mmap.mmap(-1, 8), os.memfd_create("said")
        self._begun, self._kill = time.monotonic(), kill or Kill()
        self._pid = os.fork()
        if not self._pid:
            self._work(line, folder, prepare)
        with contextlib.suppress(OSError):  # it has done so itself, or has ended
            os.setpgid(self._pid, self._pid)

    def pause(self, seconds: float) -> None:
        """Let it work so long."""
        time.sleep(max(0.0, self._begun + seconds - time.monotonic()))

    def wait(self) -> Ended:
        """Wait until it has ended, or is to be killed; its own children have ended, too, when this returns."""
        deadline = self._begun + (LONGEST_S if self._kill.after_s is None else self._kill.after_s)
        status: int | None = None
        while status is None:
            pid, code = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                status = os.waitstatus_to_exitcode(code)
            elif time.monotonic() >= deadline:
                os.killpg(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
                status = -signal.SIGKILL if self._kill.after_s is not None else HUNG
            else:
                time.sleep(0.001)
        seconds = time.monotonic() - self._begun
        with contextlib.suppress(ProcessLookupError):  # those that it started, in its group
            os.killpg(self._pid, signal.SIGKILL)
        size = os.fstat(self._said).st_size
        said = os.pread(self._said, size, 0).decode(errors="replace")
        os.close(self._said)
        return Ended(status, seconds, int.from_bytes(self._changes[:8], "little"), without_folders(said))

    def _work(self, line: Sequence[str], folder: Path, prepare: Callable[[], None] | None) -> NoReturn:
        """Run the command in this process, which is a child, and end it."""
        from resnet_deploy.cli import main

        status = 70  # of a traceback
        try:
            os.setpgid(0, 0)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(self._said, 2)
            os.chdir(folder)
            if prepare is not None:
                prepare()
            sys.addaudithook(self._watch(os.path.realpath(folder)))
            main(list(line), prog_name="resnet-deploy")
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 0
        except BaseException:  # noqa: BLE001 - a bug of the command, which the parent is told
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _watch(self, folder: str) -> Callable[[str, tuple[Any, ...]], None]:
        """Count the changes below ``folder``, and end the process before the one that is its last."""

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open":
                changed = [arguments[0]] if arguments[2] & _WRITING else []
            else:
                changed = list(arguments[:2]) if event in _CHANGES else []
            if not any(isinstance(path, str) and os.path.realpath(path).startswith(folder) for path in changed):
                return
            count = int.from_bytes(self._changes[:8], "little") + 1
            if count == self._kill.before_change:
                os.kill(os.getpid(), signal.SIGKILL)
            self._changes[:8] = count.to_bytes(8, "little")

        return watch


def run(
    line: Sequence[str], folder: Path, prepare: Callable[[], None] | None = None, kill: Kill | None = None
) -> Ended:
    """Run a command in a folder to its end; orphans have ended when this returns."""
    ended = Command(line, folder, prepare, kill).wait()
    wait_for_orphans()
    return ended


def wait_for_orphans() -> None:
    """Wait until nothing that a killed command has started is left; raise if something stays."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            time.sleep(0.01)
    raise TimeoutError("a process that a killed command had started goes on")


def ask(question: Callable[[], Any]) -> Any:
    """Call a function in a child, so that no thread of a library starts in this process; its answer is JSON."""
    answer = os.memfd_create("answer")
    pid = os.fork()
    if not pid:
        try:
            os.write(answer, json.dumps(question()).encode())
        except BaseException:  # noqa: BLE001 - the parent is told by the status
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, code = os.waitpid(pid, 0)
    data = os.pread(answer, os.fstat(answer).st_size, 0)
    os.close(answer)
    if code:
        raise RuntimeError(f"{question} failed in its child")
    return json.loads(data)
