"""Starting the process of a test, watching it, and hearing what came of it."""

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from resnet_deploy import artifact, errors
from resnet_deploy.errors import LoadgenError, ResnetDeployError
from resnet_deploy.pipeline.loadgen_child import ANSWER, ChildAnswer, ChildRequest
from resnet_deploy.pipeline.processes import child_environment

_PROGRAM: Final = (sys.executable, "-m", "resnet_deploy.pipeline.loadgen_child")
_REQUEST: Final = "request.json"
_OUTPUT: Final = "output.txt"
_POLL_S: Final = 1.0
_LAST_WORDS: Final = 300  # characters


@dataclass(frozen=True)
class Patience:
    """How long a process may show no progress, in seconds.

    Attributes:
        opening: While the engine is opened and warmed up: some are compiled only then.
        testing: Afterwards; one call of an engine, or LoadGen's writing of its logs.
    """

    opening: float = 900.0
    testing: float = 120.0


def run_child(
    request: ChildRequest, folder: Path, patience: Patience, program: Sequence[str] = _PROGRAM
) -> ChildAnswer:
    """Make one test in a process of its own; LoadGen's logs appear in ``folder``.

    The process has no terminal's signals to hear: whatever ends this one's waiting ends the other, and should this one
    be killed, the other notices.

    Raises:
        LoadgenError: If it ends without an answer, or shows no progress for too long.
        ResnetDeployError: What went wrong in it, as the class that it had there.
    """
    question = folder / _REQUEST
    artifact.write_bytes(question, msgspec.json.encode(request))
    receiver, sender = os.pipe()
    with os.fdopen(receiver, "rb", buffering=0), question.open("rb") as asked, (folder / _OUTPUT).open("wb") as output:
        try:
            process = subprocess.Popen(  # noqa: S603 - this very interpreter
                [*program, str(sender)],
                stdin=asked,
                stdout=output,
                stderr=output,
                pass_fds=(sender,),
                start_new_session=True,
                cwd=folder,  # LoadGen takes an audit.config that lies in the working folder
                env=child_environment(),
            )
        finally:
            os.close(sender)
        with process:
            try:
                _watch(process, receiver, patience)
            finally:
                process.kill()
    question.unlink()
    return _answer(process.returncode, folder)


def _watch(process: "subprocess.Popen[bytes]", receiver: int, patience: Patience) -> None:
    """Return once the process has closed its pipe; raise if it makes no progress."""
    last, since = b"0", time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(receiver, selectors.EVENT_READ)
        while True:
            heard = os.read(receiver, 1 << 16) if selector.select(_POLL_S) else None
            if heard == b"":
                with suppress(subprocess.TimeoutExpired):
                    process.wait(patience.testing)
                return
            now = time.monotonic()
            count = heard.split()[-1] if heard else last
            if count != last:
                last, since = count, now
            limit = patience.opening if last == b"0" else patience.testing
            if now - since > limit:
                doing = "opening and warming up the engine" if last == b"0" else f"after {int(last) - 1:,} images"
                raise LoadgenError(
                    f"LoadGen's test made no progress for {limit:.0f} s, {doing}, and was ended",
                    hint="the engine may hang: try it with `resnet-deploy bench`",
                )


def _answer(status: int, folder: Path) -> ChildAnswer:
    path = folder / ANSWER
    if not path.exists():
        words = (folder / _OUTPUT).read_text(errors="replace").strip().splitlines()
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        said = f": {words[-1][:_LAST_WORDS]}" if words else ""
        raise LoadgenError(f"the process of LoadGen's test ended {how}{said}", hint=_HINT)
    answer = msgspec.json.decode(artifact.read_bytes(path), type=ChildAnswer)
    path.unlink()
    if answer.error:
        kind = getattr(errors, answer.kind, None) if answer.kind else None
        if isinstance(kind, type) and issubclass(kind, ResnetDeployError):
            raise kind(answer.error, hint=answer.hint)
        raise LoadgenError(f"LoadGen's test failed: {answer.error}", hint=_HINT)
    (folder / _OUTPUT).unlink()
    return answer


_HINT: Final = "try the engine with `resnet-deploy bench`; if that works, this is a fault of resnet-deploy"
