"""Clients that die, that do not read, that only hold streams open: nobody else notices.

Real processes on both sides, on each transport. What a client of the better kind measures is held
against what it measured before in the same run, with room for a machine that is shared. What a
first wave of bad clients leaves behind is what the process needs; what a second adds is a leak.
"""

import asyncio
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import classifier_service_pb2_grpc as rpc
from gristmill.registry.v1 import model_pb2

from tests.e2e.bad_client import EVERYTHING, item
from tests.e2e.load import FIGURES
from tests.e2e.pair import Pair, Watched, pair, until
from tests.e2e.processes import ROOT, Service, environment, free_ports
from tests.e2e.slow_classifier import COMPUTED
from tests.harness import TRANSPORTS, status_of
from tests.unit.registry_worker.folders import linear

MODEL = "vectors"
# Five labels of 300 letters: a result of 1.6 kB, so that a few hundred fill what transports hold.
LABELS = [letter * 300 for letter in "abcde"]
LEFT_FILES = 3
LEFT_MIB = 30.0
PROBES = 200
LIMIT_S = 15.0
"""For what takes milliseconds: what is stuck is told from what is slow."""


@pytest.fixture(scope="module", params=TRANSPORTS)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """A registry and a classifier with two versions of a model, of which one is live."""
    folder = tmp_path_factory.mktemp("pair")
    # Without a cache: every wave asks the same.
    with pair(folder, f"--transport={request.param}", "--cache=off") as found:
        asyncio.run(_push(found, folder))
        yield found


async def _push(running: Pair, folder: Path) -> None:
    fields: dict[str, Any] = {"name": MODEL, "output": {"labels": LABELS}}
    fields["batching"] = {"max_queue_items": 100_000}
    async with running.client() as client:
        for number in (1, 2):
            weights = np.full((1, len(LABELS)), number, np.float32)
            pushed = await client.models.push(linear(folder / f"v{number}", weights, **fields))
            assert pushed.version == number
        await client.models.promote(MODEL, 1)
    await running.serves(f"models/{MODEL}")


@asynccontextmanager
async def bad_client(
    server: Watched, manner: str, streams: int, connections: int = 1, items: int = 0
) -> AsyncIterator["subprocess.Popen[bytes]"]:
    """A client that is at it; killed at the latest when the block ends."""
    numbers = map(str, (streams, connections, items))
    process = subprocess.Popen(  # noqa: ASYNC220  # its pipe is read on a thread
        [
            *(sys.executable, "-m", "tests.e2e.bad_client"),
            *(manner, server.service.address, "", *numbers),
        ],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert await asyncio.to_thread(process.stdout.readline) == b"under way\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Neighbour:
    """A client as it should be, on a connection of its own."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = rpc.ClassifierServiceStub(channel)
        self._talk: Any = None

    async def latencies(self, count: int = PROBES) -> list[float]:
        """How long a unary call takes, and a question on a bidi stream, in turn."""
        found = []
        self._talk = self._stub.ClassifyBidi()
        for number in range(count):
            started = time.perf_counter()
            async with asyncio.timeout(LIMIT_S):
                await (self._ask if number % 2 else self._call)()
            found.append(time.perf_counter() - started)
        await self._talk.done_writing()
        assert await self._talk.read() is grpc.aio.EOF
        return found

    async def _call(self) -> None:
        answer = await self._stub.Classify(pb.ClassifyRequest(items=[item(1)]))
        assert answer.results[0].WhichOneof("outcome") == "classification"

    async def _ask(self) -> None:
        one = pb.BidiItem(id="a", item=item(1))
        await self._talk.write(pb.ClassifyBidiRequest(items=[one]))
        assert (await self._talk.read()).results[0].id == "a"

    async def stream(self, count: int = 1000) -> None:
        """A server stream of many large results, read to its end."""
        items = [item(number) for number in range(count)]
        call = self._stub.ClassifyStream(pb.ClassifyStreamRequest(items=items, options=EVERYTHING))
        seen = set()
        async with asyncio.timeout(LIMIT_S):
            async for one in call:
                seen.add(one.index)
        assert len(seen) == count

    async def load_and_unload(self) -> None:
        """Another version comes and goes."""
        ref = model_pb2.ModelRef(model=MODEL, version=2)
        async with asyncio.timeout(LIMIT_S):
            await self._stub.LoadModel(pb.LoadModelRequest(model=ref))
            await self._stub.Classify(pb.ClassifyRequest(items=[item(1)], model=ref))
            await self._stub.UnloadModel(pb.UnloadModelRequest(model=ref))


@dataclass(frozen=True)
class Footprint:
    """What a process takes up."""

    files: int
    resident_mib: float

    @classmethod
    def of(cls, server: Watched) -> "Footprint":
        """Now."""
        return cls(server.files, server.resident_mib)


async def in_flight(server: Watched, count: int) -> None:
    """Wait until so many calls are open."""

    async def are() -> bool:
        return await server.metric("gristmill_calls_in_flight") == count

    await until(are, 60.0)


async def all_gone(server: Watched) -> Footprint:
    """Wait until nothing is open or queued; gives what the process takes up then."""
    await in_flight(server, 0)

    async def is_empty() -> bool:
        return await server.metric("gristmill_queue_items") == 0

    await until(is_empty)
    return Footprint.of(server)


def hold(before: list[float], during: list[float]) -> str:
    """A neighbour may be somewhat slower on a shared machine, and no more; says what was seen."""
    median, p99 = (lambda v: statistics.median(v)), (lambda v: sorted(v)[int(len(v) * 0.99)])
    said = (
        f"p50 {median(before) * 1e3:.1f} then {median(during) * 1e3:.1f} ms, "
        f"p99 {p99(before) * 1e3:.1f} then {p99(during) * 1e3:.1f} ms"
    )
    assert median(during) <= 3 * median(before) + 0.005, said
    assert p99(during) <= 5 * p99(before) + 0.1, said
    return said


def hold_footprint(waves: list[Footprint]) -> str:
    """Later waves must leave no more behind than the first; says what was seen.

    Memory that is given back comes and goes by tens of MiB, as the allocator finds it; a leak does
    not go.
    """
    first, later = waves[0], waves[1:]
    files = min(one.files for one in later) - first.files
    grown = min(one.resident_mib for one in later) - first.resident_mib
    assert files <= LEFT_FILES, waves
    assert grown <= LEFT_MIB, waves
    return f"{files:+d} files, {grown:+.1f} MiB"


READERS = {"stream": (40, 500), "bidi": (12, 3000)}
"""Streams and items: of the first more than any pool of threads has."""
LONG = [pytest.mark.soak, pytest.mark.timeout(600)]


@pytest.mark.parametrize("waves", [3, pytest.param(20, marks=LONG)])
@pytest.mark.parametrize("manner", READERS)
async def test_clients_that_do_not_read_hold_up_nobody(
    running: Pair, manner: str, waves: int
) -> None:
    """Neither callers of any shape, nor a model that comes or goes."""
    streams, items = READERS[manner]
    footprints = []
    async with running.connect() as channel:
        neighbour = Neighbour(channel)
        await neighbour.latencies()
        before = await neighbour.latencies()
        for _ in range(waves):
            async with bad_client(running, manner, streams, 2, items):
                await in_flight(running, streams)
                await settled(running)
                during = await neighbour.latencies()
                said = hold(before, during)
                await neighbour.stream()
                await neighbour.load_and_unload()
                assert await running.metric("gristmill_calls_in_flight") == streams
            footprints.append(await all_gone(running))
        left = hold_footprint(footprints)
    FIGURES.append(f"{streams} {manner} clients that do not read: {said}; left: {left}")


async def settled(server: Watched) -> None:
    """Wait until no item has been computed for a while: whoever is stuck is stuck."""
    seen: list[float] = []

    async def same() -> bool:
        seen.append(await server.metric("gristmill_items_total", outcome="completed"))
        return len(seen) > 5 and len(set(seen[-5:])) == 1

    await until(same, 60.0)


async def test_two_thousand_idle_streams_hold_up_nobody(running: Pair) -> None:
    footprints = []
    async with running.connect() as channel:
        neighbour = Neighbour(channel)
        await neighbour.latencies()
        before = await neighbour.latencies()
        for _ in range(2):
            async with bad_client(running, "idle", 2000, 4):
                await in_flight(running, 2000)
                open_ = Footprint.of(running)
                during = await neighbour.latencies()
                said = hold(before, during)
                await neighbour.stream()
            footprints.append(await all_gone(running))
        left = hold_footprint(footprints)
    FIGURES.append(
        f"2000 idle streams: {open_.files} files and {open_.resident_mib:.0f} MiB while open; "
        f"{said}; left: {left}"
    )


@pytest.fixture
def slow(transport: str, tmp_path: Path) -> Iterator[Watched]:
    """A classifier that takes 16 ms for 8 items, without a registry."""
    ports = free_ports({"port": 0, "admin": 0})
    service = Service.start(
        "tests.e2e.slow_classifier",
        ports["port"],
        tmp_path,
        *(f"--folder={tmp_path}", f"--transport={transport}", "--batch-ms=16"),
        *("--max-batch-size=8", "--max-queue-items=100000"),
        admin_port=ports["admin"],
        log_every=0,
    )
    try:
        asyncio.run(Watched(service).serves(""))
        yield Watched(service)
    finally:
        service.end()


async def test_clients_that_are_killed_leave_nothing_behind(slow: Watched, tmp_path: Path) -> None:
    """Killed with hundreds of items queued: those are not computed, and all they held is freed."""
    items, footprints = 1000, []
    async with slow.connect() as channel:
        neighbour = Neighbour(channel)
        await neighbour.latencies(20)
        for wave in range(3):
            for manner in ("bidi", "stream"):
                ran = _computed(tmp_path)
                async with bad_client(slow, manner, 1, 1, items) as process:
                    await until(lambda: _queued(slow, items / 4))
                    process.kill()
                    footprint = await all_gone(slow)
                    assert _computed(tmp_path) - ran < items / 2, "computed for nobody"
                await neighbour.latencies(20)
            footprints.append(footprint)
            ends = await slow.metric("gristmill_items_total", outcome="cancelled")
            assert ends > (wave + 1) * items / 4, "two clients a wave"
        left = hold_footprint(footprints)
    FIGURES.append(f"clients killed in mid-stream: left by two more waves: {left}")


async def _queued(server: Watched, least: float) -> bool:
    return await server.metric("gristmill_queue_items") > least


def _computed(folder: Path) -> int:
    return (folder / COMPUTED).read_bytes().count(b"\n")


async def test_a_burst_of_calls_is_answered_or_refused_by_name(slow: Watched) -> None:
    """Three thousand at once, over three connections: none ends without a reason."""
    ends: Counter[str] = Counter()

    async def call(stub: Any) -> None:
        try:
            await stub.Classify(pb.ClassifyRequest(items=[item(1)]), timeout=60)
            ends["OK"] += 1
        except grpc.aio.AioRpcError as error:
            ends[f"{error.code().name} {len(status_of(error).details)}"] += 1

    channels = [slow.connect() for _ in range(3)]
    stubs = [rpc.ClassifierServiceStub(channel) for channel in channels]
    await asyncio.gather(*(call(stubs[n % 3]) for n in range(3000)))
    for channel in channels:
        await channel.close()
    assert ends == Counter(OK=3000), "there is room for all, and time"
    await all_gone(slow)
