"""Files and folders that are whole or absent, whatever happens in between."""

import errno
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from resnet_deploy import artifact
from resnet_deploy.errors import FileError


def write_folder(path, **files):
    with artifact.atomic_folder(path) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)


def content(folder):
    """Every file below ``folder``, hidden ones too, with its text."""
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def names(folder):
    """Everything directly in ``folder``, hidden or not."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def mount(tmp_path):
    """Mount a tmpfs, which stops root too; skip where mounting is not allowed."""
    points = []

    def run(options):
        if shutil.which("mount") is None:
            pytest.skip("there is no mount command")
        point = tmp_path / f"disk{len(points)}"
        point.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", point]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
        points.append(point)
        return point

    yield run
    for point in points:
        subprocess.run(["umount", point], check=True)


@pytest.fixture
def umask():
    """Set the umask for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


# --- digests


def test_digest_of_known_text(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert artifact.sha256_bytes(b"abc") == expected
    assert artifact.sha256_file(tmp_path / "abc") == expected


def test_digest_of_a_file_read_in_several_pieces(tmp_path):
    data = os.urandom(2 * artifact._CHUNK_BYTES + 17)
    (tmp_path / "large").write_bytes(data)
    assert artifact.sha256_file(tmp_path / "large") == artifact.sha256_bytes(data)
    assert artifact.sha256_file(tmp_path / "large") != artifact.sha256_bytes(data[:-1])


# --- files


def test_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "folders" / "report.html"
    with artifact.atomic_file(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert content(tmp_path) == {"new/folders/report.html": "whole"}


def test_temporary_file_is_hidden_and_beside_its_target(tmp_path):
    path = tmp_path / "report.html"
    with artifact.atomic_file(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".report.html.")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_old_file_survives_an_exception(tmp_path, error):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(error), artifact.atomic_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the n")
        raise error
    assert content(tmp_path) == {"report.html": "old"}


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_file_has_the_permissions_of_any_new_file(tmp_path, umask, mask, mode):
    umask(mask)
    artifact.write_bytes(tmp_path / "file", b"")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_link_to_a_file_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "real").write_text("old")
    (tmp_path / "link").symlink_to("elsewhere/real")
    artifact.write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path) == {"elsewhere/real": "new", "link": "new"}


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    """As root, renaming over /dev/stdout would succeed."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(FileError, match=rf"{name} is not a regular file") as caught:
            artifact.write_bytes(tmp_path / name, b"new")
        assert caught.value.hint
    assert names(tmp_path) == ["folder", "pipe"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


# --- files that belong together


def write_pair(folder, text, error=None):
    with artifact.atomic_files(folder / "weights", folder / "model") as temporaries:
        for temporary in temporaries:
            temporary.write_text(text)
        if error is not None:
            raise error


@pytest.fixture
def full_for(monkeypatch):
    """Let every rename to this name fail, as on a disk without room for another name."""

    def run(name, error=None):
        replace = Path.replace

        def fail(path, target):
            if Path(target).name == name:
                raise error or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", fail)

    return run


@pytest.fixture(params=[True, False], ids=["exchange", "no exchange"])
def exchange(request, monkeypatch):
    """With and without a system that swaps two names in one step."""
    if not request.param:
        monkeypatch.setattr(artifact, "_exchange", lambda first, second: False)


@pytest.mark.usefixtures("exchange")
def test_pair_is_replaced_whole(tmp_path, umask):
    umask(0o027)
    for text in ("old", "new"):
        write_pair(tmp_path / "net", text)
        assert content(tmp_path) == {"net/model": text, "net/weights": text}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "net").iterdir()} == {0o640}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_old_pair_survives_an_exception(tmp_path, error):
    write_pair(tmp_path, "old")
    with pytest.raises(error):
        write_pair(tmp_path, "new", error)
    assert content(tmp_path) == {"model": "old", "weights": "old"}


@pytest.mark.usefixtures("exchange")
@pytest.mark.parametrize("old", [("model", "weights"), ("model",), ("weights",), ()])
def test_a_pair_of_which_only_one_could_be_renamed_is_as_it_was(tmp_path, full_for, old):
    for name in old:
        (tmp_path / name).write_text("old")
    full_for("model")
    with pytest.raises(FileError, match="model: no space left") as caught:
        write_pair(tmp_path, "new")
    assert "-o" in caught.value.hint
    assert content(tmp_path) == dict.fromkeys(old, "old")


def test_a_pair_that_cannot_be_had_takes_its_folder_with_it(tmp_path, full_for):
    full_for("model")
    with pytest.raises(FileError):
        write_pair(tmp_path / "new" / "folders", "new")
    assert names(tmp_path) == []


@pytest.mark.usefixtures("exchange")
def test_a_pair_interrupted_between_two_renames_is_as_it_was(tmp_path, full_for):
    write_pair(tmp_path, "old")
    full_for("model", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write_pair(tmp_path, "new")
    assert content(tmp_path) == {"model": "old", "weights": "old"}


def test_two_writers_of_a_pair_leave_that_of_one(tmp_path, monkeypatch):
    """The second is done with its files when the first has renamed one of its two."""
    write_pair(tmp_path, "old")
    move, others = artifact._move_into_place, []

    def let_another_begin(temporary, target):
        move(temporary, target)
        if not others:
            others.append(threading.Thread(target=write_pair, args=(tmp_path, "second")))
            others[0].start()
            others[0].join(0.5)  # without the turn it is done by then

    monkeypatch.setattr(artifact, "_move_into_place", let_another_begin)
    write_pair(tmp_path, "first")
    others[0].join()
    assert content(tmp_path) == {"model": "second", "weights": "second"}


def test_who_locks_the_folder_keeps_no_two_files_from_it(tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    writing = threading.Thread(target=write_two, args=[tmp_path], daemon=True)
    writing.start()
    writing.join(20)
    is_kept_out = writing.is_alive()
    os.close(handle)
    writing.join()
    assert not is_kept_out
    assert names(tmp_path) == ["model", "weights"]


def write_two(folder):
    with artifact.atomic_files(folder / "weights", folder / "model") as temporaries:
        for temporary in temporaries:
            temporary.write_text("whole")


def test_what_a_locked_block_raises_stays_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="engine"), artifact.locked(tmp_path / "lock"):
        (tmp_path / "engine").read_bytes()
    with pytest.raises(FileError, match="lock: no such file or folder"), artifact.locked(tmp_path / "gone" / "lock"):
        pass


# --- folders


def test_folder_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "engines" / "net"
    with artifact.atomic_folder(path) as temporary:
        (temporary / "manifest.json").write_text("{}")
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".net.")
        assert not path.exists()
    assert content(tmp_path) == {"engines/net/manifest.json": "{}"}


@pytest.mark.parametrize("can_exchange", [True, False])
def test_folder_is_replaced_whole(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(artifact, "_exchange", lambda first, second: False)
    write_folder(tmp_path / "net", engine="old", golden="old")
    write_folder(tmp_path / "net", engine="new", log="new")
    assert content(tmp_path) == {"net/engine": "new", "net/log": "new"}
    assert names(tmp_path) == ["net"]


def test_a_folder_that_came_meanwhile_is_replaced_too(tmp_path, monkeypatch):
    """Two builds of a new engine: the second looks before the first has renamed, and renames after it."""
    write_folder(tmp_path / "net", engine="first")
    (tmp_path / "temporary").mkdir()
    (tmp_path / "temporary" / "engine").write_text("second")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda path: False)
        artifact._move_into_place(tmp_path / "temporary", tmp_path / "net")
    assert content(tmp_path) == {"net/engine": "second", "temporary/engine": "first"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_old_folder_survives_an_exception(tmp_path, error):
    write_folder(tmp_path / "net", engine="old", log="old")
    with pytest.raises(error), artifact.atomic_folder(tmp_path / "net") as temporary:  # noqa: PT012
        (temporary / "engine").write_text("half of the n")
        raise error
    assert content(tmp_path) == {"net/engine": "old", "net/log": "old"}
    assert names(tmp_path) == ["net"]


def test_folder_has_the_permissions_of_any_new_folder(tmp_path, umask):
    umask(0o027)
    write_folder(tmp_path / "net", engine="new")
    assert stat.S_IMODE((tmp_path / "net").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "net" / "engine").stat().st_mode) == 0o640


def test_link_to_a_folder_stays_and_its_target_is_replaced(tmp_path):
    write_folder(tmp_path / "elsewhere" / "real", engine="old")
    (tmp_path / "link").symlink_to("elsewhere/real")
    write_folder(tmp_path / "link", engine="new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "link" / "engine").read_text() == "new"
    assert names(tmp_path) == ["elsewhere", "link"]
    assert names(tmp_path / "elsewhere") == ["real"]


def test_folder_is_there_at_every_moment_of_its_replacement(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    if not artifact._exchange(tmp_path / "first", tmp_path / "second"):
        pytest.skip("this file system cannot exchange two folders in one step")
    path = tmp_path / "net"
    write_folder(path, engine="0")
    looks, missed, stop = 0, 0, threading.Event()

    def watch():
        nonlocal looks, missed
        while not stop.is_set():
            looks += 1
            missed += not path.exists()

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(30):
        write_folder(path, engine=str(number))
    stop.set()
    watcher.join()
    assert looks > 30
    assert missed == 0


# --- what reaches the disk, and when


def test_content_reaches_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    path, steps = tmp_path / "net", []
    flush, move = os.fsync, artifact._move_into_place

    def note_flush(handle):
        steps.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        flush(handle)

    def note_move(temporary, target):
        steps.append("moved")
        move(temporary, target)

    monkeypatch.setattr(artifact.os, "fsync", note_flush)
    monkeypatch.setattr(artifact, "_move_into_place", note_move)
    with artifact.atomic_folder(path) as temporary:
        (temporary / "engine").write_text("new")
    assert steps == [str(temporary / "engine"), str(temporary), "moved", str(tmp_path)]

    steps.clear()
    with artifact.atomic_file(tmp_path / "file") as temporary:
        pass
    assert steps == [str(temporary), str(tmp_path)]


KILLED = """
import os, signal, sys
from pathlib import Path
from resnet_deploy import artifact
kind, path = sys.argv[1], Path(sys.argv[2])
with getattr(artifact, kind)(path) as temporary:
    (temporary / "engine" if kind == "atomic_folder" else temporary).write_text("half of the n")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["atomic_file", "atomic_folder"])
def test_old_content_survives_a_killed_process(tmp_path, kind):
    path = tmp_path / "target"
    if kind == "atomic_folder":
        write_folder(path, engine="old", log="old")
    else:
        path.write_text("old")
    before = content(tmp_path)
    done = subprocess.run([sys.executable, "-c", KILLED, kind, path], check=False)
    assert done.returncode == -signal.SIGKILL
    after = content(tmp_path)
    left = after.keys() - before.keys()
    assert {name: after[name] for name in before} == before
    # What was under way is left, for nobody could clean it up, under a name that nothing looks at.
    assert len(left) == 1
    assert all(name.startswith(".target.") for name in left)
    # Whoever writes the same target next can.
    if kind == "atomic_folder":
        write_folder(path, engine="new")
    else:
        artifact.write_bytes(path, b"new")
    assert names(tmp_path) == ["target"]


def test_a_folder_may_be_made_elsewhere(tmp_path):
    """Where whoever looks beside the target would take it for one."""
    (tmp_path / "looked-at").mkdir()
    target = tmp_path / "looked-at/net"
    for word in ("first", "second"):
        with artifact.atomic_folder(target, staging=tmp_path) as temporary:
            assert temporary.parent == tmp_path
            assert names(target.parent) == (["net"] if word == "second" else [])
            (temporary / "engine").write_text(word)
            (temporary / "link").symlink_to("nowhere")
        assert (target / "engine").read_text() == word
        assert (target / "link").readlink() == Path("nowhere")
        assert names(tmp_path) == ["looked-at"]
    (tmp_path / ".net.abcdefgh.tmp").mkdir()  # left by somebody who was killed
    with artifact.atomic_folder(target, staging=tmp_path):
        pass
    assert names(tmp_path) == ["looked-at"]


def test_two_at_once_leave_each_other_alone(tmp_path):
    with artifact.atomic_folder(tmp_path / "net") as first:
        (first / "engine").write_text("first")
        with artifact.atomic_folder(tmp_path / "net") as second:
            (second / "engine").write_text("second")
        assert content(tmp_path / "net") == {"engine": "second"}
    assert content(tmp_path) == {"net/engine": "first"}
    with artifact.atomic_file(tmp_path / "file") as first:
        artifact.write_bytes(tmp_path / "file", b"second")
        first.write_text("first")
    assert content(tmp_path) == {"net/engine": "first", "file": "first"}


def test_temporaries_of_a_living_process_stay(tmp_path):
    code = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "print('ready', flush=True); sys.stdin.read()")
    command = [sys.executable, "-c", code, "atomic_folder", tmp_path / "net"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        write_folder(tmp_path / "net", engine="ours")
        assert len(names(tmp_path)) == 2
        other.stdin.close()
        assert other.wait() == 0
    assert content(tmp_path) == {"net/engine": "half of the n"}


def test_nothing_but_temporaries_of_the_target_is_removed(tmp_path):
    others = (".net.int8.abcdefgh.tmp", ".net.abcdefgh.old", ".net.notes.tmp", ".nets.abcdefgh.tmp", "net.abcdefgh.tmp")
    for name in (*others, ".net.abcdefgh.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".net.linklink.tmp").symlink_to(others[0])
    write_folder(tmp_path / "net", engine="new")
    assert names(tmp_path) == sorted((*others, ".net.linklink.tmp", "net"))


def test_temporary_that_is_taken_for_abandoned_before_it_is_locked(tmp_path, monkeypatch):
    """Another process looks between the making and the locking of ours."""
    lock, taken = artifact._lock, []

    def take_first(path, **how):
        if not taken:
            taken.append(path)
            artifact.remove_abandoned(tmp_path / "net")
        return lock(path, **how)

    monkeypatch.setattr(artifact, "_lock", take_first)
    write_folder(tmp_path / "net", engine="new")
    assert not taken[0].exists()
    assert content(tmp_path) == {"net/engine": "new"}


def test_file_system_without_locks(tmp_path, monkeypatch):
    """What cannot be told from the temporary of a living process is left."""

    def refuse(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / ".net.abcdefgh.tmp").mkdir()
    monkeypatch.setattr(fcntl, "flock", refuse)
    write_folder(tmp_path / "net", engine="new")
    artifact.write_bytes(tmp_path / "file", b"new")
    assert names(tmp_path) == [".net.abcdefgh.tmp", "file", "net"]


# --- what the system refuses


def test_full_disk_leaves_the_old_content_and_says_so(mount):
    disk = mount("size=256k")
    write_folder(disk / "net", engine="old")
    artifact.write_bytes(disk / "file", b"old")
    before = content(disk)
    with pytest.raises(FileError, match=r"file: no space left on the device") as caught:
        artifact.write_bytes(disk / "file", bytes(1 << 20))
    assert "free some space" in caught.value.hint
    with (
        pytest.raises(FileError, match=r"net: no space left on the device"),
        artifact.atomic_folder(disk / "net") as folder,
        artifact.translate_os_errors(disk / "net"),
    ):
        (folder / "engine").write_bytes(bytes(1 << 20))
    assert content(disk) == before
    assert names(disk) == ["file", "net"]


def test_device_that_is_always_full():
    """The same refusal where nothing can be mounted."""
    refused = pytest.raises(FileError, match=r"^engine: no space left on the device$")
    with refused as caught, artifact.translate_os_errors(Path("engine")):
        Path("/dev/full").write_bytes(b"data")
    assert "free some space" in caught.value.hint


LIMITED = """
import resource, sys
from pathlib import Path
from resnet_deploy import artifact
from resnet_deploy.errors import FileError
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
try:
    artifact.write_bytes(Path(sys.argv[1]), bytes(4096))
except FileError as error:
    print(error.message, error.hint, sep="\\n")
"""


def test_file_beyond_the_limit_of_the_process(tmp_path):
    artifact.write_bytes(tmp_path / "file", b"old")
    command = [sys.executable, "-c", LIMITED, tmp_path / "file"]
    message, hint = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert message == f"{tmp_path / 'file'}: the file would be larger than is allowed"
    assert "ulimit -f" in hint
    assert content(tmp_path) == {"file": "old"}


def test_read_only_disk(mount):
    disk = mount("size=256k")
    write_folder(disk / "net", engine="old")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for attempt in (
        lambda: artifact.write_bytes(disk / "file", b"new"),
        lambda: artifact.write_bytes(disk / "new" / "file", b"new"),
        lambda: write_folder(disk / "net", engine="new"),
    ):
        with pytest.raises(FileError, match="the file system is read-only") as caught:
            attempt()
        assert "-o" in caught.value.hint
    assert content(disk) == {"net/engine": "old"}


def test_path_below_a_file(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(FileError, match="a file is where a folder must be"):
        artifact.write_bytes(tmp_path / "file" / "x", b"new")
    for attempt in (
        lambda: write_folder(tmp_path / "file" / "x" / "y", engine="new"),
        lambda: artifact.read_bytes(tmp_path / "file" / "x"),
    ):
        with pytest.raises(FileError, match="a part of the path is not a folder"):
            attempt()
    assert content(tmp_path) == {"file": "old"}


def test_folder_is_not_put_over_a_file(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with pytest.raises(FileError, match=rf"{name} is not a folder"):
            write_folder(tmp_path / name, engine="new")
    assert content(tmp_path) == {"file": "old", "link": "old"}


@pytest.mark.parametrize("read", [artifact.read_bytes, artifact.sha256_file])
def test_missing_file(tmp_path, read):
    with pytest.raises(FileError, match=r"gone: no such file or folder") as caught:
        read(tmp_path / "gone")
    assert caught.value.hint
    with pytest.raises(FileError, match="is a folder, not a file"):
        read(tmp_path)


@dataclass(frozen=True)
class Refusal:
    number: int
    reason: str


REFUSALS = (
    Refusal(errno.EACCES, "permission denied"),
    Refusal(errno.EPERM, "operation not permitted"),
    Refusal(errno.EDQUOT, "quota"),
    Refusal(errno.EIO, "Input/output error"),  # none of ours: the system's own words
)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda one: errno.errorcode[one.number])
def test_refusals_that_root_does_not_meet(refusal):
    with pytest.raises(FileError, match=refusal.reason) as caught, artifact.translate_os_errors(Path("a/path")):
        raise OSError(refusal.number, os.strerror(refusal.number))
    assert caught.value.message.startswith("a/path: ")
    assert caught.value.hint
    assert isinstance(caught.value.__cause__, OSError)
