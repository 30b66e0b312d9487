"""A real PostgreSQL server for tests: a cluster of its own, on loopback, ended by its id."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_S = 60.0


class Postgres:
    """A running server; each database in it is a URL."""

    def __init__(self, folder: Path, port: int, programs: Path) -> None:
        self.folder = folder
        self.port = port
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0

    def url(self, name: str) -> str:
        """The URL of a database."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def database(self, template: str = "template1") -> str:
        """A new database, as a copy of another; gives its URL."""
        self._count += 1
        name = f"test{self._count}"
        self.run(f'CREATE DATABASE {name} TEMPLATE "{template}"')
        return self.url(name)

    def run(self, statement: str, database: str = "postgres") -> str:
        """Run one statement; gives what it says."""
        command = [
            str(self._programs / "psql"),
            *("-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement),
            self.url(database),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self, *settings: str) -> None:
        """Start it, and wait until it answers."""
        command = [str(self._programs / "postgres"), "-D", str(self.folder / "data")]
        for setting in (
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={self.folder}",
            "max_connections=200",
            *settings,
        ):
            command += ["-c", setting]
        log = (self.folder / "server.log").open("ab")
        with log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **_as_user())
        ends = time.monotonic() + START_S
        ready = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode != 0:
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < ends, "PostgreSQL did not start"
            time.sleep(0.05)

    def stop(self) -> None:
        """End it, with whatever is connected."""
        if self._process is not None:
            self._process.send_signal(2)  # fast shutdown
            self._process.wait(START_S)
            self._process = None

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.send_signal(3)  # immediate shutdown: no checkpoint, recovery at the start
            self._process.wait(START_S)
            self._process = None


def _as_user() -> dict[str, str]:
    """The server refuses to run as root: then it runs as the user that its package made."""
    return {"user": "postgres"} if os.geteuid() == 0 else {}


def _programs() -> Path:
    """Where initdb and postgres are: Debian keeps them off the path."""
    if found := shutil.which("initdb"):
        beside = Path(found).resolve().parent
        if (beside / "postgres").exists():
            return beside
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    assert versions, "PostgreSQL is needed: install the package postgresql"
    return versions[-1]


@contextmanager
def postgres(*settings: str) -> Iterator[Postgres]:
    """A server over an empty cluster."""
    programs = _programs()
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
        command = [str(programs / "initdb"), "-D", str(folder / "data"), "-U", "postgres"]
        command += ["--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **_as_user())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = Postgres(folder, port, programs)
        server.start(*settings)
        try:
            yield server
        finally:
            server.kill()
