"""A real S3 server over a folder, for tests: versitygw, whose objects are plain files."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ACCESS, SECRET, BUCKET = "gristmill", "not-a-secret-key", "gristmill"
TOOLS = Path(__file__).parents[1] / ".tools/bin"


@dataclass(frozen=True)
class S3:
    """Where the server listens, and the folder that its one bucket is."""

    port: int
    folder: Path

    @property
    def options(self) -> dict[str, str]:
        """What a client needs to know."""
        return {
            "endpoint": f"http://127.0.0.1:{self.port}",
            "allow_http": "true",
            "region": "us-east-1",
            "access_key_id": ACCESS,
            "secret_access_key": SECRET,
        }

    def url(self, prefix: str) -> str:
        """A prefix of the bucket."""
        return f"s3://{BUCKET}/{prefix}"


def binary() -> str:
    """The server, as the Makefile installs it."""
    path = TOOLS / "versitygw"
    found = str(path) if path.exists() else shutil.which("versitygw")
    assert found, "versitygw is missing: run `make .tools/bin/.done`"
    return found


@contextmanager
def running(root: Path) -> Iterator[S3]:
    """A server with one bucket, until the end of the block."""
    folder = root / "buckets" / BUCKET
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(binary(), "--access", ACCESS, "--secret", SECRET, "--quiet"),
                *("--port", f"127.0.0.1:{port}", "posix", str(folder.parent)),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        _wait(process, port, root / "log")
        yield S3(port, folder)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                if connection.recv(4) == b"HTTP":
                    return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(log.read_text())
