"""Two files that are replaced together or not at all."""

import errno
import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest
from folder_contents import content, names

from resnet_deploy import artifact
from resnet_deploy.errors import FileError


@pytest.fixture
def umask():
    """Set the umask for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


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
