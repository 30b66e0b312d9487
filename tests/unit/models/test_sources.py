"""Sources deliver exactly the pinned bytes under a plain name, or nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from models.sources import (
    ChecksumError,
    FolderSource,
    HubSource,
    SourceError,
    SourceFile,
    UnsafeNameError,
    parse_source,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = b"weights" * 1000
Pin = Callable[[str, bytes], SourceFile]


def ignore(done: int, total: int) -> None:
    """Nobody watches."""


def test_folder_source_copies_a_pinned_file_and_tells_progress(tmp_path: Path, pin: Pin) -> None:
    (tmp_path / "model.onnx").write_bytes(CONTENT)
    told: list[tuple[int, int]] = []
    target = tmp_path / "target"
    FolderSource(tmp_path).fetch(
        pin("inside/model.onnx", CONTENT), target, lambda done, total: told.append((done, total))
    )
    assert target.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("arrived", [CONTENT[:-1] + b"?", CONTENT[:-1], CONTENT + b"s", b""])
def test_other_content_is_refused_and_leaves_nothing(
    tmp_path: Path, pin: Pin, arrived: bytes
) -> None:
    (tmp_path / "model.onnx").write_bytes(arrived)
    output = tmp_path / "output"
    output.mkdir()
    with pytest.raises(ChecksumError, match=r"model\.onnx"):
        FolderSource(tmp_path).fetch(pin("model.onnx", CONTENT), output / "model.onnx", ignore)
    assert list(output.iterdir()) == []


@pytest.mark.parametrize(
    "path", ["../model", "/etc/passwd", "a/../../b", "a//b", "./a", "", "a\\b", "a\0b", "a/"]
)
def test_a_name_that_leaves_its_folder_is_refused(path: str) -> None:
    with pytest.raises(UnsafeNameError):
        SourceFile(path, "0" * 64, 1)


def test_a_missing_file_is_a_source_error(tmp_path: Path, pin: Pin) -> None:
    with pytest.raises(SourceError, match="absent"):
        FolderSource(tmp_path).fetch(pin("absent", b""), tmp_path / "target", ignore)


class FakeHub:
    """Answers from a folder, and remembers what it was asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.asked: list[tuple[str, str, str | None]] = []

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str | None = None) -> str:
        self.asked.append((repo_id, filename, revision))
        return str(self._folder / filename)


def test_hub_source_asks_for_its_commit_and_checks_what_comes(tmp_path: Path, pin: Pin) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(CONTENT)
    hub = FakeHub(tmp_path)
    source = HubSource("owner/name", COMMIT, hub)
    source.fetch(pin("onnx/model.onnx", CONTENT), tmp_path / "target", ignore)
    assert (tmp_path / "target").read_bytes() == CONTENT
    assert hub.asked == [("owner/name", "onnx/model.onnx", COMMIT)]
    assert source.lineage == f"hub:owner/name@{COMMIT}"
    with pytest.raises(ChecksumError):
        source.fetch(pin("onnx/model.onnx", b"other"), tmp_path / "second", ignore)


def test_hub_errors_become_source_errors(tmp_path: Path, pin: Pin) -> None:
    with pytest.raises(SourceError, match="absent"):
        HubSource("owner/name", COMMIT, FakeHub(tmp_path)).fetch(
            pin("absent", b""), tmp_path / "target", ignore
        )


@pytest.mark.parametrize("commit", ["main", "v1.0", COMMIT[:10], COMMIT.upper()])
def test_a_branch_or_short_id_is_no_pin(commit: str) -> None:
    with pytest.raises(SourceError, match="commit"):
        HubSource("owner/name", commit)


class HubHandler(BaseHTTPRequestHandler):
    """As much of the hub's download route as its own client needs."""

    def do_HEAD(self) -> None:
        found = self.path == f"/owner/name/resolve/{COMMIT}/model.onnx"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(CONTENT) if found else 0))
        self.send_header("ETag", '"etag"')
        self.send_header("X-Repo-Commit", COMMIT)
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(CONTENT)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - inherited name
        """Silence."""


@contextmanager
def loopback_hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_hub_source_works_with_the_real_client(
    tmp_path: Path, pin: Pin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with loopback_hub() as endpoint:
        source = HubSource("owner/name", COMMIT, HfApi(endpoint=endpoint, token=False))
        source.fetch(pin("model.onnx", CONTENT), tmp_path / "target", ignore)
        assert (tmp_path / "target").read_bytes() == CONTENT
        with pytest.raises(SourceError, match="absent"):
            source.fetch(pin("absent", b""), tmp_path / "other", ignore)


def test_parse_source_reads_folders_and_hub_pins(tmp_path: Path) -> None:
    assert parse_source(str(tmp_path)) == FolderSource(tmp_path)
    assert parse_source(f"hub:owner/name@{COMMIT}") == HubSource("owner/name", COMMIT)
    with pytest.raises(SourceError, match="commit"):
        parse_source("hub:owner/name")
