"""Files and folders that are whole or absent, whatever happens in between."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from folder_contents import content, names, write_folder

from resnet_deploy import artifact
from resnet_deploy.errors import FileError


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


def test_the_umask_is_not_touched_to_be_known(tmp_path, umask, monkeypatch):
    """It is that of all threads: who sets it for a moment may leave another's behind."""
    umask(0o027)
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
    artifact.write_bytes(tmp_path / "report.html", b"")
    monkeypatch.undo()
    assert stat.S_IMODE((tmp_path / "report.html").stat().st_mode) == 0o640


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


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_old_folder_comes_back_where_the_new_one_cannot_be_put_in_its_place(tmp_path, monkeypatch, error):
    """As on systems that cannot swap the two, where the old one is set aside first."""
    write_folder(tmp_path / "net", engine="old")
    rename, calls = Path.rename, []

    def second_fails(self, target):
        calls.append(self)
        if len(calls) == 2:
            raise error
        return rename(self, target)

    monkeypatch.setattr(artifact, "_exchange", lambda first, second: False)
    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises((FileError, KeyboardInterrupt)):
        write_folder(tmp_path / "net", engine="new")
    assert content(tmp_path) == {"net/engine": "old"}


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
