"""A gateway in front of a real classifier, and a caller that must not notice what others do to it.

Knows processes and what they take up; no attack.
"""

import asyncio
import math
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from gristmill_client import Client

from tests.e2e.load import FIGURES
from tests.e2e.pair import until
from tests.e2e.processes import (
    CACHE,
    ROOT,
    Service,
    environment,
    free_ports,
    open_files,
    resident_bytes,
)
from tests.e2e.processes import until as until_sync
from tests.e2e.raw import BIDI, POST, Answer, length, send
from tests.e2e.steady_caller import BODY, PATH

MODEL = "iris"
RATE = 40.0
FLOOR_S = 0.05
"""A machine that is shared may hold up any call so long."""
TIMES = 2.0
GROWN_MIB = 32.0
LEFT_FILES = 3
SOON_S = 20.0


@dataclass
class Caller:
    """The steady caller, and what it has measured."""

    process: "subprocess.Popen[str]"
    calls: list[tuple[float, float, int]] = field(default_factory=list)

    @classmethod
    @contextmanager
    def of(cls, port: int) -> Iterator["Caller"]:
        """One that calls until the end of the block."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.steady_caller", str(port), str(RATE)],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        caller = cls(process)
        reader = threading.Thread(target=caller._read)
        reader.start()
        try:
            yield caller
        finally:
            process.kill()
            process.wait()
            reader.join()
            assert process.stdout is not None
            process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with suppress(ValueError):
            for line in self.process.stdout:
                began, took, status = line.split()
                self.calls.append((float(began), float(took), int(status)))

    def since(self, began: float) -> list[tuple[float, float, int]]:
        """The calls that began after a moment."""
        return [one for one in self.calls if one[0] >= began]


def p99(calls: list[tuple[float, float, int]]) -> float:
    """What 99 of 100 calls did not take longer than."""
    return sorted(took for _, took, _ in calls)[math.ceil(len(calls) * 0.99) - 1]


@dataclass
class Door:
    """A gateway, and what it was like before anything happened to it."""

    service: Service
    caller: Caller
    baseline_s: float = 0.0
    files: int = 0
    resident: int = 0
    most_mib: float = 0.0
    """The most that it has grown by during an attack."""

    @property
    def pid(self) -> int:
        """Its process."""
        return self.service.process.pid

    @property
    def grown_mib(self) -> float:
        """How much more memory it has than after the warm-up."""
        return (resident_bytes(self.pid) - self.resident) / 2**20

    async def settle(self, calls: int) -> None:
        """Warm up, a large body among what comes; then note what is normal."""
        large = b'{"items":[' + b" " * (31 * 2**20) + b"]}"
        for _ in range(2):
            assert (await self.ask(POST + length(large), large)).status == 400
        await self.called(time.monotonic(), calls // 2)
        began = time.monotonic()
        self.baseline_s = p99(await self.called(began, calls))
        self.files, self.resident = open_files(self.pid), resident_bytes(self.pid)

    async def called(self, began: float, count: int) -> list[tuple[float, float, int]]:
        """The calls since a moment, once there are so many."""
        await until(lambda: len(self.caller.since(began)) >= count, SOON_S + count / RATE * 5)
        return self.caller.since(began)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection."""
        async with asyncio.timeout(SOON_S):
            return await asyncio.open_connection("127.0.0.1", self.service.port)

    async def stuck(self, request: bytes) -> socket.socket:
        """A connection that sends a request, and whose answers are never read."""
        own = socket.socket()
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        own.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(SOON_S):
            await loop.sock_connect(own, ("127.0.0.1", self.service.port))
            await loop.sock_sendall(own, request)
        return own

    async def pause(self) -> None:
        """Let the steady caller have its turn, so that an attack is one and no load test."""
        await self.called(time.monotonic(), 1)

    async def ask(self, *parts: bytes | Iterator[bytes]) -> "Answer":
        """Send all of it, or as much as is taken; the answer, which may come before the end."""
        reader, writer = await self.open()
        sending = asyncio.create_task(send(writer, parts))
        try:
            async with asyncio.timeout(SOON_S):
                return await Answer.read(reader)
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
            writer.transport.abort()

    async def hold(self, name: str, attack: Callable[[], Awaitable[None]], calls: int) -> None:
        """Attack again and again until so many calls were made meanwhile; nobody noticed.

        What it was like is told whether or not the attack was refused as it should be.
        """
        began, times, left = time.monotonic(), 0, ""
        try:
            while times == 0 or len(self.caller.since(began)) < calls:
                times += 1
                await attack()
                self.most_mib = max(self.most_mib, self.grown_mib)
        finally:
            during = await self.called(began, calls)
            took = time.monotonic() - began
            try:
                await self.hold_back_to_normal()
            except AssertionError as error:
                left = str(error)
            said = (
                f"abuse ({name}, {times} times in {took:.1f} s): p99 of {len(during)} calls "
                f"{p99(during) * 1e3:.1f} ms (alone {self.baseline_s * 1e3:.1f}), memory "
                f"{self.grown_mib:+.1f} MiB (at most {self.most_mib:+.1f}), files "
                f"{open_files(self.pid) - self.files:+d}"
            )
            FIGURES.append(said)
            self.most_mib = 0.0
        assert [one for one in during if one[2] != 200] == [], said
        assert left == "", said
        assert p99(during) <= max(TIMES * self.baseline_s, FLOOR_S), said

    async def hold_back_to_normal(self) -> None:
        """The same process, with what it had before."""
        assert self.service.running, self.service.log[-3000:]
        async with httpx.AsyncClient(trust_env=False, timeout=SOON_S) as client:
            answer = await client.get(f"http://{self.service.address}/health/live")
            assert answer.json() == {"status": "LIVE"}
        try:
            await until(lambda: open_files(self.pid) <= self.files + LEFT_FILES, SOON_S)
            await until(lambda: self.grown_mib < GROWN_MIB, SOON_S)
        except TimeoutError:
            files = open_files(self.pid) - self.files
            raise AssertionError(f"left: {files} files, {self.grown_mib:.1f} MiB") from None


@asynccontextmanager
async def sockets(door: Door, count: int) -> AsyncIterator[list[Any]]:
    """So many WebSockets, open until the end of the block."""
    found = []
    try:
        for _ in range(count):
            reader, writer = await door.open()
            writer.write(BIDI)
            found.append((reader, writer))
        for reader, _ in found:
            async with asyncio.timeout(SOON_S):
                assert (await Answer.read(reader)).status == 101
        yield found
    finally:
        for _, writer in found:
            writer.transport.abort()


@contextmanager
def gateways(folder: Path) -> Iterator[dict[str, Service]]:
    """A registry, a classifier with one model, and two gateways: as they come, and "compressed"."""
    names = ("registry", "classifier", "plain", "compressed")
    ports = free_ports(dict.fromkeys(names, 0))
    with ExitStack() as stack:

        def start(module: str, name: str, *arguments: str) -> Service:
            place = folder / name
            place.mkdir()
            service = Service.start(module, ports[name], place, *arguments, log_every=0)
            stack.callback(service.end)
            return service

        data = f"--data-dir={folder / 'data'}"
        registry = start("services.registry", "registry", data)
        follow = f"--registry={registry.address}"
        cache = f"--cache-dir={folder / 'cache'}"
        classifier = start("services.classifier", "classifier", follow, cache)
        behind = (follow, f"--classifier={classifier.address}", "--generator=127.0.0.1:1")
        found = {
            "plain": start("gateway", "plain", *behind),
            "compressed": start("gateway", "compressed", *behind, "--compressed-bodies"),
        }
        until_sync(lambda: "listening" in registry.log)
        with Client(registry=registry.address) as client:
            client.models.push(CACHE / "models" / MODEL, alias="live")
        for service in found.values():
            until_sync(lambda service=service: _classifies(service))
        yield found


def _classifies(service: Service) -> bool:
    assert service.running, service.log[-2000:]
    kind = {"content-type": "application/json"}
    try:
        answer = httpx.post(f"http://{service.address}{PATH}", content=BODY, headers=kind)
    except httpx.TransportError:
        return False
    return answer.status_code == 200


@contextmanager
def many_files(count: int) -> Iterator[None]:
    """Room for so many open files in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, min(count, hard if hard != resource.RLIM_INFINITY else count))
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
