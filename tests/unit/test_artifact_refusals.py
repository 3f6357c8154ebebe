"""What the system refuses leaves the old content, and is told in one line."""

import errno
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from folder_contents import content, names, write_folder

from resnet_deploy import artifact
from resnet_deploy.errors import FileError


def test_full_disk_leaves_the_old_content_and_says_so(mount_tmpfs):
    disk = mount_tmpfs("size=256k")
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


def test_read_only_disk(mount_tmpfs):
    disk = mount_tmpfs("size=256k")
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
