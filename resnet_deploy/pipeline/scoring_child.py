"""A worker process of scoring: ``python -m resnet_deploy.pipeline.scoring_child SOCKET``.

It is sent a task and then one shard after the other, and says what became of each. When nobody is there any more to
send, it ends after the batch in hand, and leaves nothing half-written.
"""

import os
import queue
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Final

from resnet_deploy.errors import UserError
from resnet_deploy.pipeline.scoring_shard import Shard, ShardScorer

READY: Final = "ready"
GRACE_S: Final = 10.0  # for the batch in hand


class _Abandoned(BaseException):
    """Nobody waits for this process."""


class _Orders:
    """The shards that arrive, heard by a thread, which also notices that nobody is there to send any."""

    def __init__(self, connection: "Connection[object, object]") -> None:
        self._connection, self._shards = connection, queue.SimpleQueue[Shard | None]()
        self._ended = threading.Event()
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    def take(self) -> Shard | None:
        """Wait for the next shard; None when there will be none."""
        return self._shards.get()

    def go_on(self) -> None:
        """Raise if nobody waits any more."""
        if self._ended.is_set():
            raise _Abandoned

    def _listen(self) -> None:
        try:
            while True:
                shard = self._connection.recv()
                assert isinstance(shard, Shard)
                self._shards.put(shard)
        except (EOFError, OSError):
            self._ended.set()
            self._shards.put(None)
            time.sleep(GRACE_S)
            os._exit(1)  # it hangs


def main() -> None:
    """Work until there is nothing more to do."""
    connection: Connection[object, object] = Connection(int(sys.argv[1]))
    task = connection.recv()
    orders = _Orders(connection)
    try:
        with ShardScorer(task) as scorer:  # type: ignore[arg-type]  # whatever the parent sent
            connection.send(READY)
            while (shard := orders.take()) is not None:
                connection.send(scorer.attempt(shard, orders.go_on))
    except UserError as error:
        connection.send(error)
    except (_Abandoned, BrokenPipeError, ConnectionResetError):
        sys.exit(1)


if __name__ == "__main__":
    main()
