"""Scoring in worker processes of one machine, each with an engine of its own.

A worker that dies is replaced, and its shard is done again, after all others; one that fails too often is given up.
Workers hear no signals of the terminal: they end when this process does, however that ends.
"""

import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Final

from resnet_deploy.errors import ScoringError, UserError
from resnet_deploy.pipeline.processes import child_environment
from resnet_deploy.pipeline.scoring_child import GRACE_S, READY
from resnet_deploy.pipeline.scoring_shard import ATTEMPTS, Outcome, ScoringTask, Shard, ShardDone, ShardFailed

if TYPE_CHECKING:
    from typing import TypeAlias

    _Line: TypeAlias = "Connection[Any, Any]"

_PROGRAM: Final = (sys.executable, "-m", "resnet_deploy.pipeline.scoring_child")


def score_in_processes(
    task: ScoringTask, shards: Sequence[Shard], workers: int, program: Sequence[str] = _PROGRAM
) -> Generator[Outcome, None, None]:
    """Score shards, and yield what became of each as it does; when the iteration ends, so do the workers.

    Raises:
        UserError: If a worker cannot open the engine, or the folders; what was done stays.
        ScoringError: If workers die one after the other before they are ready.
    """
    crew = _Crew(task, shards, program)
    try:
        for _ in range(min(workers, len(shards))):
            crew.hire()
        while crew.workers:
            for line in wait(list(crew.workers)):
                assert isinstance(line, Connection)
                outcome = crew.hear(line)
                if outcome is not None:
                    yield outcome
    finally:
        crew.dismiss()


class _Worker:
    """A process, and the shard that it has in hand."""

    def __init__(self, task: ScoringTask, program: Sequence[str]) -> None:
        self.shard: Shard | None = None
        self.line, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - this very interpreter
                [*program, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=child_environment(),
            )
        with suppress(OSError):  # if it is dead already, that is heard
            self.line.send(task)

    def take(self, shard: Shard) -> None:
        self.shard = shard
        with suppress(OSError):
            self.line.send(shard)

    def leave(self) -> None:
        """Let it end by itself; it knows by the closed line that nobody waits."""
        self.line.close()

    def wait(self) -> str:
        """Wait for its end; return how it ended."""
        try:
            status = self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


class _Crew:
    """The workers by the line to each, the shards that nobody has begun, and how often those begun have failed."""

    def __init__(self, task: ScoringTask, shards: Sequence[Shard], program: Sequence[str]) -> None:
        self.workers: dict[_Line, _Worker] = {}
        self._task, self._program, self._shards = task, program, shards
        self._waiting = deque(range(len(shards)))  # positions: a shard is made when its turn comes
        self._positions: dict[int, int] = {}  # by number, of the shards in hand
        self._failures: Counter[int] = Counter()
        self._false_starts = 0

    def hire(self) -> None:
        """Start a worker."""
        worker = _Worker(self._task, self._program)
        self.workers[worker.line] = worker

    def hear(self, line: "_Line") -> Outcome | None:
        """Act upon what a worker says, or upon its end; return what became of a shard, if that is known now."""
        worker = self.workers[line]
        try:
            said = line.recv()
        except (EOFError, OSError):
            return self._bury(worker)
        if isinstance(said, UserError):
            raise said
        self._false_starts = 0
        if said == READY:
            outcome = None
        else:
            outcome = said if isinstance(said, ShardDone) else self._note_failure(said.number, said.reason)
            worker.shard = None
        self._give_work(worker)
        return outcome

    def dismiss(self) -> None:
        """End all workers, and wait until they have."""
        for worker in self.workers.values():
            worker.leave()
        for worker in self.workers.values():
            worker.wait()
        self.workers.clear()

    def _give_work(self, worker: _Worker) -> None:
        if self._waiting:
            position = self._waiting.popleft()
            shard = self._shards[position]
            self._positions[shard.number] = position
            worker.take(shard)
        else:
            self._let_go(worker)

    def _let_go(self, worker: _Worker) -> str:
        del self.workers[worker.line]
        worker.leave()
        return worker.wait()

    def _bury(self, worker: _Worker) -> ShardFailed | None:
        how = self._let_go(worker)
        outcome = None
        if worker.shard is None:
            self._false_starts += 1
            if self._false_starts >= ATTEMPTS:
                raise ScoringError(
                    f"{ATTEMPTS} workers in a row ended before they were ready; the last {how}",
                    hint="is there memory for an engine in each? try fewer --workers",
                )
        else:
            outcome = self._note_failure(worker.shard.number, f"its worker {how}")
        if self._waiting:
            self.hire()
        return outcome

    def _note_failure(self, number: int, reason: str) -> ShardFailed | None:
        """Have a shard done again, or give it up."""
        self._failures[number] += 1
        if self._failures[number] >= ATTEMPTS:
            return ShardFailed(number, f"{ATTEMPTS} times; at last {reason}")
        self._waiting.append(self._positions[number])
        return None
