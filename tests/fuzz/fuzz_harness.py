"""What is asked of every reader, and the watch that is kept on it while it reads.

A reader gives a value or raises one ``ResnetDeployError`` whose message is one line. It runs nothing, connects to
nothing, opens and writes nothing outside its folder, and takes neither much memory nor much time, whatever the bytes.
What libraries open in C is not seen by Python's audit events; the tests of external data look at that.
"""

import contextlib
import os
import signal
import sys
import sysconfig
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from resnet_deploy import errors
from resnet_deploy.errors import ResnetDeployError

MOST_SECONDS = 10.0  # of processor time, for an input that takes milliseconds
MOST_BYTES = 256 << 20  # that the resident memory may grow by; the largest seed takes a hundredth
LONGEST_MESSAGE = 1005  # the middle of longer ones is left out

_RUNS = {
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "pickle.find_class", "ctypes.dlopen"),
}
_CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"}
# Code, and what a library asks of the machine when it is used for the first time.
_LIBRARIES = tuple(
    {os.path.realpath(path) for path in (*sysconfig.get_paths().values(), *sys.path[1:], sys.prefix) if path}
    | {str(Path(errors.__file__).resolve().parent)}  # which an editable install does not put on the path
    | {"/proc", "/sys", "/usr", "/lib", "/etc/ld.so.cache", "/dev/null", "/dev/urandom"}
)


class TookTooLongError(BaseException):
    """No ``except Exception`` may swallow it."""


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: For reports.
        file: What it reads, inside the folder that it is given.
        seeds: Sound files, the first a whole one.
        read: Reads, given the folder; it uses the value as the product does, too.
        prepare: Puts what else belongs there into the folder.
        repair: Makes good what no mutation would, such as a checksum.
    """

    name: str
    file: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    prepare: Callable[[Path], None] = lambda _: None
    repair: Callable[[bytes], bytes] = lambda data: data


@dataclass
class _Watch:
    """What the audit hook, which cannot be taken off, looks at."""

    folder: str = ""  # empty where nobody reads
    seen: list[str] = field(default_factory=list)


_watch = _Watch()
_hooked: list[bool] = []


def _audit(event: str, args: tuple[object, ...]) -> None:
    if not _watch.folder:
        return
    if event in _RUNS:
        _report(f"{event} {args[:1]!r:.80}")
    elif event == "exec":
        name = getattr(args[0], "co_filename", "")
        if not (name.startswith("<frozen") or _is_below(name, _LIBRARIES)):
            _report(f"exec of {name}")
    elif event == "open" and not isinstance(args[0], int):
        path, mode, flags = args
        writes = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        allowed = (_watch.folder,) if writes else (_watch.folder, *_LIBRARIES)
        # Python 3.13 looks for the line of a syntax error in a file of the code's name.
        nothing = path is None or os.fspath(path) in (os.devnull, "<string>")
        if not nothing and not _is_below(path, allowed):
            _report(f"open {path!r:.80} {mode}")
    elif event in _CHANGES and not _is_below(args[0], (_watch.folder,)):
        _report(f"{event} {args[0]!r:.80}")


def _is_below(path: object, folders: tuple[str, ...]) -> bool:
    real = os.path.realpath(os.fsdecode(path))
    return any(real == folder or real.startswith(folder + os.sep) for folder in folders)


def _report(what: str) -> None:
    _watch.seen.append(what)
    raise PermissionError(f"a reader must not: {what}")


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Refuse, and note, whatever leaves ``folder``; for the main thread."""
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked.append(True)

    def stop(*_: object) -> None:
        raise TookTooLongError

    before, keep = signal.signal(signal.SIGVTALRM, stop), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    _watch.seen = []
    _watch.folder = os.path.realpath(folder)
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
    try:
        yield _watch.seen
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        _watch.folder = ""
        signal.signal(signal.SIGVTALRM, before)
        sys.dont_write_bytecode = keep


def resident_peak() -> int:
    """Most bytes that this process has had in memory since ``forget_peak``; 0 where the system does not tell."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10
    return 0


def forget_peak() -> int:
    """Begin anew, and return what is in memory now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return resident_peak()


def judge(target: Target, data: bytes, folder: Path) -> str:
    """Let a reader read ``data``; say what it did that it must not, and where; empty for nothing."""
    path = folder / target.file
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    before, fault = forget_peak(), ""
    with watched(folder) as seen, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of tags that it leaves out
        try:
            target.read(folder)
        except ResnetDeployError as error:
            fault = _fault_of(error)
        except TookTooLongError as error:
            fault = f"more than {MOST_SECONDS:.0f} s in {_place(error)}"
        except BaseException as error:  # noqa: BLE001 - SystemExit would be one, too
            fault = f"{type(error).__name__} in {_place(error)}"
    grown = resident_peak() - before
    if seen:
        return f"{target.name}: {seen[0]}"
    if grown > MOST_BYTES:
        return f"{target.name}: {grown >> 20} MiB"
    return f"{target.name}: {fault}" if fault else ""


def _fault_of(error: ResnetDeployError) -> str:
    for text in (error.message, error.hint):
        shows = all(one.isprintable() or unicodedata.category(one) == "Zs" for one in text)
        if not shows or len(text) > LONGEST_MESSAGE:
            return f"a {type(error).__name__} of {len(text)} characters that is not one line, in {_place(error)}"
    return "" if error.message else "no message"


def _place(error: BaseException) -> str:
    """The innermost function of the package that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [one for one in frames if "/resnet_deploy/" in one.filename] or frames
    return ", ".join(f"{Path(one.filename).name}:{one.name}" for one in ours[-1:]) or "no place"  # as one never raised
