"""The folder of scores: what it is of, and what is done.

It says so itself. A shard is done when its table is there, whole, and of this very scoring; no journal is kept beside
the tables, so there is none to be out of step with them.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec

from resnet_deploy.bench import record_files
from resnet_deploy.environment import Environment
from resnet_deploy.errors import FileError, SpecError
from resnet_deploy.integrations.pyarrow import read_footer
from resnet_deploy.json_files import decode_json
from resnet_deploy.pipeline.scoring_folders import open_folder
from resnet_deploy.pipeline.scoring_plan import ScoringRequest
from resnet_deploy.pipeline.scoring_shard import ERRORS, ShardDone, is_part, part_name
from resnet_deploy.schemas import UPGRADE, later_version
from resnet_deploy.version import __version__

RECORD: Final = "_scoring.json"
SCHEMA_VERSION: Final = 1
_DIGITS: Final = 18  # of a count; int() refuses more than 4,300 digits
_READERS: Final = 16  # an object store takes its time for each file


class ScoringSession(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the command; the counts are 0 where it did not come to its end.

    Attributes:
        begun: UTC time, ISO 8601.
        version: Of resnet-deploy.
        way: ``processes`` or ``ray``.
        workers, threads: Engines at work, and CPU threads for each.
        environment: The machine that gave out the shards.
        shards: That were done.
        scored: Images that have a row of scores from this run.
        bad: Images that have a row of errors from it.
        seconds: From the start of the workers to their end.
    """

    begun: str
    version: str = __version__
    way: str
    workers: int
    threads: int
    environment: Environment
    shards: int = 0
    scored: int = 0
    bad: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Images per second, the start of the workers included; 0 where nothing was done."""
        return (self.scored + self.bad) / self.seconds if self.seconds else 0.0


class ScoringRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``_scoring.json``: what was asked for, and what has come of it.

    Attributes:
        request: What was asked for.
        scored: Images that have a row of scores.
        bad: Images that have a row of errors.
        sessions: The runs so far.
    """

    schema_version: int = SCHEMA_VERSION
    kind: str = "scoring"
    request: ScoringRequest
    scored: int = 0
    bad: int = 0
    sessions: tuple[ScoringSession, ...] = ()


class ScoringOutput:
    """A folder of scores of one request.

    Args:
        place: The folder, or its URI.
        request: What it is to hold.

    Raises:
        SpecError: If it holds something else; the message says what differs.
        FileError: If it cannot be read.
    """

    def __init__(self, place: str, request: ScoringRequest) -> None:
        self._place, self._folder, self._request = place, open_folder(place), request
        self._size, self._images = request.shard_size, request.images
        files, errors = set(self._folder.names("")), set(self._folder.names(ERRORS))
        is_begun = any(is_part(name) for name in files | errors)
        self._before = self._read_record(is_begun=is_begun) if RECORD in files else ()
        wanted = {part_name(number): number for number in range(self.shards)}
        with ThreadPoolExecutor(_READERS, thread_name_prefix="footers") as pool:
            found = list(pool.map(self._read_part, (wanted[name] for name in sorted(files & wanted.keys()))))
        self.done = {
            one.number: one for one in found if one is not None and (not one.bad or part_name(one.number) in errors)
        }

    @property
    def shards(self) -> int:
        """How many there are in all."""
        return -(-self._images // self._size)

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards that are not done."""
        return [number for number in range(self.shards) if number not in self.done]

    def drop_unseen(self) -> list[int]:
        """Take what is not to be seen here for not done: a machine has another folder of that name. Say which."""
        files = set(self._folder.names(""))
        unseen = [number for number in self.done if part_name(number) not in files]
        for number in unseen:
            del self.done[number]
        return unseen

    def keep(self, session: ScoringSession) -> ScoringRecord:
        """Write the record, with the counts of what is done and the present session as the last."""
        record = ScoringRecord(
            request=self._request,
            scored=sum(one.scored for one in self.done.values()),
            bad=sum(one.bad for one in self.done.values()),
            sessions=(*self._before, session),
        )
        self._folder.write(RECORD, record_files.encode(record))
        return record

    def _read_record(self, *, is_begun: bool) -> tuple[ScoringSession, ...]:
        """Hold the request against that of an earlier run; return the sessions so far.

        An earlier run that left no table is not in the way of another request, and is forgotten.
        """
        with self._folder.open_file(RECORD) as file:
            data = file.read()
        if version := later_version(data, SCHEMA_VERSION):
            hint = f"{UPGRADE}, or {_ANOTHER}"
            raise FileError(f"{self._place}/{RECORD} has schema version {version}", hint=hint)
        try:
            begun = decode_json(data, ScoringRecord)
        except ValueError as error:
            raise FileError(f"{self._place}/{RECORD} is damaged", hint=_ANOTHER) from error
        if difference := self._request.difference_from(begun.request):
            if not is_begun:
                return ()
            raise SpecError(f"{self._place} holds scores of another request: {difference}", hint=_ANOTHER)
        return begun.sessions

    def _read_part(self, number: int) -> ShardDone | None:
        """Count what a table holds; None of one that is not whole, which an object store may keep of a killed worker.

        Raises:
            SpecError: If it is of another scoring.
        """
        with self._folder.open_file(part_name(number)) as file:
            footer = read_footer(file)
        if footer is None:
            return None
        rows, about = footer
        if about.get("scoring_sha256") != self._request.digest:
            raise SpecError(f"{self._place}/{part_name(number)} is of another request", hint=_ANOTHER)
        expected = min(self._size, self._images - number * self._size)
        bad = about.get("bad", "")
        is_whole = bad.isdecimal() and len(bad) <= _DIGITS and rows + int(bad) == expected
        return ShardDone(number, rows, int(bad)) if is_whole else None


_ANOTHER: Final = "choose another --out, or remove that one"
