"""Weights that others publish: where they come from, and downloads that fail."""

import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from resnet_deploy import checkpoints
from resnet_deploy.checkpoints import (
    Published,
    download_imagenet,
    find_published,
)
from resnet_deploy.errors import FileError, UserError, WeightsError
from resnet_deploy.protocols import Silent


def test_the_table_of_published_checkpoints() -> None:
    assert len(checkpoints.PUBLISHED) == 10
    for (architecture, _), published in checkpoints.PUBLISHED.items():
        name, digest = published.file.removesuffix(".pth").split("-")
        assert name == architecture
        assert len(bytes.fromhex(digest)) == 4
    assert {key[0] for key, published in checkpoints.PUBLISHED.items() if published.resize == 232} == {
        "resnet50", "resnet101", "resnet152",
    }  # fmt: skip
    assert find_published("resnet50", "imagenet-v1").resize == 256


@pytest.mark.parametrize("architecture", ["plain18", "plain34"])
def test_nobody_publishes_plain_networks(architecture: str) -> None:
    with pytest.raises(WeightsError, match=f"no imagenet weights are published for {architecture}") as caught:
        download_imagenet(architecture, "imagenet", Silent())
    assert "--weights none" in caught.value.hint


@dataclass
class Server:
    """What a local stand-in for the download server serves, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    missing_bytes: int = 0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    served = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.requests.append(self.path)
            served.agents.append(self.headers["User-Agent"])
            body = served.files.get(self.path.rpartition("/")[2])
            if body is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) - served.missing_bytes])

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        monkeypatch.setattr(checkpoints, "BASE_URL", f"http://127.0.0.1:{httpd.server_port}/models/")
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        httpd.shutdown()
        thread.join()


@dataclass
class Counting(Silent):
    """A progress that remembers what it was told."""

    seen: list[tuple[str, int | None, int]] = field(default_factory=list)

    def track(self, items, description, total=None, *, still=False):
        steps = 0
        for item in items:
            steps += 1
            yield item
        self.seen.append((description, total, steps))


def publish(server: Server, monkeypatch: pytest.MonkeyPatch, body: bytes, promised: str = "") -> str:
    file = f"resnet18-{promised or hashlib.sha256(body).hexdigest()[:8]}.pth"
    monkeypatch.setitem(checkpoints.PUBLISHED, ("resnet18", "imagenet"), Published(file))
    server.files[file] = body
    return file


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_downloads_once_and_then_uses_the_cache(server: Server, monkeypatch, tmp_path: Path) -> None:
    body = os.urandom(checkpoints.CHUNK_BYTES * 2 + 5)
    file = publish(server, monkeypatch, body)
    progress = Counting()
    path = download_imagenet("resnet18", "imagenet", progress)
    assert path == tmp_path / "hub" / "checkpoints" / file
    assert path.read_bytes() == body
    assert server.requests == [f"/models/{file}"]
    assert server.agents == ["resnet-deploy"]
    assert progress.seen == [(f"downloading {file} (MiB)", 3, 3)]
    assert download_imagenet("resnet18", "imagenet", Silent()) == path
    assert len(server.requests) == 1
    assert left_over(tmp_path) == [file]


def test_a_damaged_cached_file_is_named_and_kept(server: Server, monkeypatch, tmp_path: Path) -> None:
    publish(server, monkeypatch, b"weights")
    path = download_imagenet("resnet18", "imagenet", Silent())
    path.write_bytes(b"weight!")
    with pytest.raises(WeightsError, match="is damaged") as caught:
        download_imagenet("resnet18", "imagenet", Silent())
    assert str(path) in caught.value.message
    assert "delete" in caught.value.hint
    assert len(server.requests) == 1
    assert path.read_bytes() == b"weight!"


@pytest.mark.parametrize("fault", ["hash", "cut short", "404", "refused"])
def test_a_failed_download_is_one_error_and_leaves_nothing(server: Server, monkeypatch, tmp_path, fault: str) -> None:
    file = publish(server, monkeypatch, b"weights" * 99, promised="00000000" if fault == "hash" else "")
    if fault == "cut short":
        server.missing_bytes = 50
    if fault == "404":
        server.files.clear()
    if fault == "refused":
        with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as closed:
            monkeypatch.setattr(checkpoints, "BASE_URL", f"http://127.0.0.1:{closed.server_port}/")
    with pytest.raises(WeightsError, match=file) as caught:
        download_imagenet("resnet18", "imagenet", Silent())
    assert "--weights PATH" in caught.value.hint
    if fault in ("404", "refused"):
        assert fault in caught.value.message
        assert "--weights none" in caught.value.hint
    assert "\n" not in str(caught.value)
    assert left_over(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written(server: Server, monkeypatch, tmp_path: Path) -> None:
    publish(server, monkeypatch, b"weights")
    (tmp_path / "hub").mkdir(mode=0o500)
    with pytest.raises(FileError):
        download_imagenet("resnet18", "imagenet", Silent())


def test_a_cache_folder_that_is_a_file(server: Server, monkeypatch, tmp_path: Path) -> None:
    publish(server, monkeypatch, b"weights")
    (tmp_path / "hub").write_text("")
    with pytest.raises(UserError):
        download_imagenet("resnet18", "imagenet", Silent())
