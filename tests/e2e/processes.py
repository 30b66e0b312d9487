"""Processes as a person starts them: the suite, single services, shell lines; knows no protocol."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("GRISTMILL_CACHE", Path.home() / ".cache" / "gristmill"))
MODELS = ("sentiment", "iris", "smollm2")
DEFAULT_PORTS = {"registry": 50051, "classifier": 50052, "generator": 50053, "gateway": 8080}
# Upper bounds on what a loaded machine may take; nothing waits for them to pass.
START_S = 200.0
STOP_S = 60.0
COMMAND_S = 90.0
LAST_LINE = "Ctrl-C stops it."


def free_ports(names: Mapping[str, int] = DEFAULT_PORTS) -> dict[str, int]:
    """A free port for each name."""
    sockets = {name: socket.socket() for name in names}
    for one in sockets.values():
        one.bind(("127.0.0.1", 0))
    found = {name: one.getsockname()[1] for name, one in sockets.items()}
    for one in sockets.values():
        one.close()
    return found


def taken(ports: Mapping[str, int]) -> list[str]:
    """Those that something listens on."""
    found = []
    for name, port in ports.items():
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                found.append(f"{name} {port}")
    return found


def environment(**more: str) -> dict[str, str]:
    """The machine's environment with our commands on its path and none of our settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GRISTMILL_")}
    places = [str(Path(sys.executable).parent), str(ROOT / ".tools" / "bin"), kept.get("PATH", "")]
    return {**kept, "PATH": os.pathsep.join(places), **more}


def tool(name: str) -> str:
    """Where a command is; a test that needs it fails where it is nowhere."""
    found = shutil.which(name, path=environment()["PATH"])
    if found is None:
        pytest.fail(f"{name} is neither in .tools/bin nor on the PATH: run `make test`, or add it")
    return found


def shell(lines: str, **env: str) -> str:
    """What bash prints; the first line that fails fails the test."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines],
        env=environment(**env),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == 0, f"{lines}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _stat(pid: int) -> tuple[int, str] | None:
    """The parent and the state of a process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, parent, *_ = text.rpartition(")")[2].split()
    return int(parent), state


def descendants(pid: int) -> set[int]:
    """All processes below one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            parents[int(entry.name)] = stat[0]
    found, grew = {pid}, True
    while grew:
        more = {child for child, parent in parents.items() if parent in found} - found
        found |= more
        grew = bool(more)
    return found - {pid}


def alive(pids: set[int]) -> set[int]:
    """Those that still run."""
    return {pid for pid in pids if (stat := _stat(pid)) and stat[1] != "Z"}


def resident_bytes(pid: int) -> int:
    """The memory that a process has in hand."""
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def open_files(pid: int) -> int:
    """How many files, sockets among them, a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


@contextmanager
def no_longer_than(seconds: float, process: "subprocess.Popen[str]") -> Iterator[None]:
    """Kill the process, and so end whatever reads its output, when this takes too long."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@dataclass
class Suite:
    """`python -m services`, from its start to its end."""

    process: "subprocess.Popen[str]"
    data: Path
    ports: dict[str, int]
    errors: Path
    output: str = ""
    below: set[int] = field(default_factory=set)

    @classmethod
    def start(cls, data: Path, ports: Mapping[str, int], *more: str, **env: str) -> "Suite":
        """Start it and read what it prints until it says that it is ready."""
        for model in MODELS:
            folder = CACHE / "models" / model
            if not (folder / "model.yaml").exists():
                pytest.fail(f"{folder} is not built: run `make models`")
        data.parent.mkdir(parents=True, exist_ok=True)
        errors = data.parent / f"{data.name}.err"
        with errors.open("a", encoding="utf-8") as file:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "services"),
                    *(f"--{name}-port={port}" for name, port in ports.items()),
                    *(f"--data={data}", f"--cache={CACHE}", *more),
                ],
                cwd=ROOT,
                env=environment(**env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        suite = cls(process, data, dict(ports), errors)
        suite._read_until_ready()
        return suite

    def _read_until_ready(self) -> None:
        assert self.process.stdout is not None
        lines = []
        with no_longer_than(START_S, self.process):
            for line in self.process.stdout:
                lines.append(line)
                if line.startswith(LAST_LINE):
                    break
        self.output = "".join(lines)
        assert LAST_LINE in self.output, f"not ready:\n{self.output}\n{self.said()}"
        self.below = descendants(self.process.pid)

    @property
    def seconds(self) -> float:
        """How long its start took, in its own words."""
        found = re.search(r"ready after ([0-9.]+) s", self.output)
        assert found, self.output
        return float(found[1])

    def line(self, command: str) -> str:
        """The one line that it prints for a command."""
        (found,) = [one for one in self.output.splitlines() if one.startswith(f"{command} ")]
        return found

    def address(self, name: str) -> str:
        """Where a service listens."""
        return f"127.0.0.1:{self.ports[name]}"

    @property
    def http(self) -> str:
        """Where the gateway listens."""
        return f"http://{self.address('gateway')}"

    @property
    def client_environment(self) -> dict[str, str]:
        """What clients, the `gristmill` command among them, need to find it."""
        names = ("registry", "classifier", "generator")
        return {f"GRISTMILL_{name.upper()}": self.address(name) for name in names}

    def child(self, module: str) -> int:
        """The process of one service."""
        (found,) = [
            pid
            for pid in self.below
            if f"-m\0{module}\0" in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
        ]
        return found

    def log(self, name: str) -> str:
        """What one service has logged."""
        return (self.data / "logs" / f"{name}.log").read_text(encoding="utf-8")

    def said(self) -> str:
        """What the suite has written to its standard error."""
        return self.errors.read_text(encoding="utf-8")

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal."""
        self.below |= descendants(self.process.pid)
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit status; what it still prints is read meanwhile."""
        with no_longer_than(STOP_S, self.process):
            self.output += self.process.communicate()[0] or ""
        return self.process.returncode

    def stop(self) -> None:
        """End it, if a test has not, and hold it to its word."""
        if self.process.returncode is not None:
            return
        self.signal()
        assert self.wait() == 0, self.said()
        assert not alive(self.below), "processes are left"


@dataclass
class Service:
    """One service as a process of its own, its log in a file."""

    name: str
    process: "subprocess.Popen[bytes]"
    port: int
    log_file: Path
    admin_port: int = -1

    @classmethod
    def start(
        cls,
        module: str,
        port: int,
        folder: Path,
        *arguments: str,
        admin_port: int = -1,
        log_every: int = 1,
    ) -> "Service":
        """Start it; whether it is ready is for the caller to ask it.

        Every call is logged unless told otherwise, so that a test can tell what was accepted.
        """
        name = module.rpartition(".")[2]
        log = folder / f"{name}.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", module, f"--port={port}"),
                    *(f"--admin-port={admin_port}", f"--log-sample-every={log_every}", *arguments),
                ],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        return cls(name, process, port, log, admin_port)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it has logged."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def end(self) -> None:
        """End it for good, if a test has not."""
        if self.running:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def until(true: object, seconds: float = STOP_S) -> None:
    """Wait for what no event tells of."""
    assert callable(true)
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.02)


def read_json(text: str) -> list[Any]:
    """The JSON values in a text, one after another."""
    decoder, found, rest = json.JSONDecoder(), [], text.strip()
    while rest:
        value, end = decoder.raw_decode(rest)
        found.append(value)
        rest = rest[end:].lstrip()
    return found


def copied(folder: Path, to: Path, old: str, new: str) -> Path:
    """A copy of a model folder whose manifest says something else."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    manifest = to / "model.yaml"
    text = manifest.read_text(encoding="utf-8")
    assert old in text
    manifest.write_text(text.replace(old, new), encoding="utf-8")
    return to
