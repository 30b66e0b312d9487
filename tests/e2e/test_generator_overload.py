"""Ten times what an engine can do: what is accepted is answered at the pace of before, the rest is
refused at once.

The engine takes a known time for a step and leaves the processor alone, so that what is measured is
the server. Calls come at a steady rate, whatever becomes of earlier ones, from two identities in
name only: a third each with 0.3 s, 1 s and 10 s.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from gristmill.generator.v1 import generator_service_pb2 as pb
from gristmill.generator.v1 import generator_service_pb2_grpc as rpc
from gristmill.generator.v1 import prompt_pb2

from tests.e2e.load import FIGURES
from tests.e2e.pair import Watched, until
from tests.e2e.processes import Service, free_ports
from tests.e2e.test_overload import LONG, OVERLOAD, SHORT, Form, done_a_second, percentile
from tests.harness import reason

TOKENS = 10
RUNNING = 8
QUEUE = 64
TIMEOUTS_S = (0.3, 1.0, 10.0)
REFUSED_P99_S = {SHORT: 0.1, LONG: 0.05}
REFUSALS = ("QUEUE_FULL", "DEADLINE_TOO_SHORT")
REQUEST = pb.GenerateStreamRequest(
    prompt=prompt_pb2.Prompt(text=prompt_pb2.TextPrompt(text="x" * TOKENS))
)


@dataclass
class Call:
    """One stream: how long it had, and how it ended."""

    timeout_s: float
    began: float
    ended: float = 0.0
    how: str = ""
    tokens: int = 0


@dataclass
class Crowd:
    """Callers of one server."""

    stub: Any
    calls: list[Call] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def call(self, timeout_s: float) -> None:
        """One stream."""
        one = Call(timeout_s, time.monotonic())
        self.calls.append(one)
        try:
            async for event in self.stub.GenerateStream(REQUEST, timeout=timeout_s):
                one.tokens += len(event.delta.token_ids)
            one.how = "OK"
        except grpc.aio.AioRpcError as error:
            told = any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata())
            assert told or error.code() is grpc.StatusCode.DEADLINE_EXCEEDED, error
            one.how = reason(error) if told else "CLIENT"
        one.ended = time.monotonic()

    async def moderate(self, seconds: float) -> list[Call]:
        """Just enough callers to keep the engine busy."""
        at, ends = len(self.calls), time.monotonic() + seconds

        async def call_on() -> None:
            while time.monotonic() < ends:
                await self.call(TIMEOUTS_S[-1])

        await asyncio.gather(*(call_on() for _ in range(2 * RUNNING)))
        return self.calls[at:]

    async def steady(self, rate: float, seconds: float) -> list[Call]:
        """So many calls a second, whatever becomes of them."""
        at, started = len(self.calls), time.monotonic()
        while (passed := time.monotonic() - started) < seconds:
            while len(self.calls) - at < rate * passed:
                timeout_s = TIMEOUTS_S[len(self.calls) % len(TIMEOUTS_S)]
                task = asyncio.ensure_future(self.call(timeout_s))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
                await asyncio.sleep(0)
            await asyncio.sleep(0.001)
        return self.calls[at:]


@contextmanager
def steady_generator(folder: Path, transport: str) -> Iterator[Watched]:
    """The process."""
    ports = free_ports({"port": 0, "admin": 0})
    service = Service.start(
        "tests.e2e.steady_generator",
        ports["port"],
        folder,
        *(f"--folder={folder}", f"--transport={transport}"),
        *(f"--max-running={RUNNING}", f"--max-queue={QUEUE}"),
        admin_port=ports["admin"],
        log_every=0,
    )
    try:
        yield Watched(service)
    finally:
        service.end()


async def test_ten_times_overload_in_short(tmp_path: Path) -> None:
    await overload(tmp_path, "auto", SHORT)


@pytest.mark.soak
@pytest.mark.timeout(200)
async def test_ten_times_overload_for_a_minute(transport: str, tmp_path: Path) -> None:
    await overload(tmp_path, transport, LONG)


async def overload(folder: Path, transport: str, form: Form) -> None:
    """Measure the peak, then offer ten times as much."""
    with steady_generator(folder, transport) as server:
        await server.serves("")
        async with server.connect() as channel:
            crowd = Crowd(rpc.GeneratorServiceStub(channel))
            await crowd.moderate(0.5)
            before = time.monotonic()
            calm = await crowd.moderate(form.moderate_s)
            peak = done_a_second(calm, before, before + form.moderate_s)
            assert {one.how for one in crowd.calls} == {"OK"}
            resident = server.resident_mib

            began = time.monotonic()
            storm = await crowd.steady(OVERLOAD * peak, form.overload_s)
            ended = time.monotonic()
            await asyncio.gather(*crowd.tasks)
            grown = server.resident_mib - resident
            await until(lambda: _quiet(server))
            orphaned = await server.metric("gristmill_generator_orphaned_steps", model="parrot")

    offered = len(storm) / (ended - began)
    done = done_a_second(storm, began, ended)
    endings = Counter(one.how for one in storm)
    refused = [one.ended - one.began for one in storm if one.how in REFUSALS]
    p50, p99 = (percentile(refused, share) for share in (0.5, 0.99))
    FIGURES.append(
        f"generator overload ({transport}, {form.overload_s:.0f} s): peak {peak * TOKENS:.0f} "
        f"tokens/s, offered {offered * TOKENS:.0f}, completed {done * TOKENS:.0f} "
        f"({done / peak:.0%} of peak); {len(refused)} refusals in p50 {p50 * 1000:.1f} ms, "
        f"p99 {p99 * 1000:.1f} ms; memory {grown:+.1f} MiB; {dict(endings)}"
    )
    assert offered >= 0.8 * OVERLOAD * peak
    assert set(endings) <= {"OK", "CLIENT", "DEADLINE_EXPIRED", *REFUSALS}
    assert all(one.tokens == TOKENS for one in storm if one.how == "OK")
    assert not any(one.tokens for one in storm if one.how in REFUSALS), "accepted, then refused"
    assert len(refused) > len(storm) / 2
    assert done >= form.share_of_peak * peak
    assert p50 < 0.02
    assert p99 < REFUSED_P99_S[form]
    assert grown < form.growth_mib
    assert orphaned == 0


async def _quiet(server: Watched) -> bool:
    """Whether nothing waits or runs any more."""
    names = ("gristmill_queue_items", "gristmill_generator_waiting")
    held = [await server.metric(name, model="parrot") for name in names]
    return held == [0, 0] and await server.metric("gristmill_calls_in_flight") == 0
