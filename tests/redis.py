"""A real Redis server for tests: on a port of loopback, keeping nothing, ended by its id."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis as package

START_S = 20.0
PLAIN = ("redis-server", "--save", "", "--appendonly", "no")


class Redis:
    """A server that a test starts, ends, and holds still."""

    def __init__(self, folder: Path, command: tuple[str, ...] = PLAIN) -> None:
        self.folder = folder
        self.command = command
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program, *words = self.command
        found = shutil.which(program)
        assert found, "Redis is needed: install the package redis-server"
        where = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder))
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([found, *words, *where], stdout=log, stderr=log)
        ends = time.monotonic() + START_S
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < ends, "Redis did not start"
            time.sleep(0.02)

    def client(self, **more: str) -> "package.Redis":
        """A client of the test's own; close it."""
        return package.Redis(host="127.0.0.1", port=self.port, socket_timeout=START_S, **more)

    def keys(self) -> list[bytes]:
        """Every key that it holds."""
        with self.client() as client:
            return sorted(client.keys())

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(START_S)
            self._process = None

    def hold(self) -> None:
        """Let it do nothing, with its connections open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def let_go(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        """Whether something speaks the protocol there, if only to ask for a password."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), START_S) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(1) in (b"+", b"-")
        except OSError:
            return False


@contextmanager
def redis(*settings: str, command: tuple[str, ...] = PLAIN) -> Iterator[Redis]:
    """A server with nothing in it."""
    with tempfile.TemporaryDirectory(prefix="redis-") as name:
        server = Redis(Path(name), (*command, *settings))
        server.start()
        try:
            yield server
        finally:
            server.kill()
