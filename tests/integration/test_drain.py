"""Shutting down: what was accepted is finished, the rest is refused with its reason, exit 0."""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from services.runtime import errors
from services.runtime.health import NOT_SERVING, SERVING, Health
from tests.harness import (
    Scripted,
    bidi_request,
    classifier,
    collect,
    failure,
    health_check,
    health_list,
    health_stream,
    pb,
    reason,
    request,
    rpc,
    serve,
    soon,
    stream_request,
)

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("server_process.py")
Code = grpc.StatusCode


class Process:
    """A server in a process of its own, a channel to it, and what it says."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self.target = f"127.0.0.1:{port}"
        self.channel = grpc.aio.insecure_channel(self.target)
        self.stub = rpc.ClassifierServiceStub(self.channel)

    async def says(self, event: str) -> dict[str, Any]:
        """The next thing it says, which must be this."""
        assert self._process.stdout is not None
        line = await soon(self._process.stdout.readline())
        said: dict[str, Any] = json.loads(line or "null")
        assert said, f"it ended instead of saying {event}"
        assert said["event"] == event
        return said

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self._process.pid, number)

    def release(self) -> None:
        """Let go what it holds."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    async def exit_code(self) -> int:
        """Its exit status, once it is gone."""
        return await soon(self._process.wait())


@asynccontextmanager
async def process(transport: str, *flags: str) -> AsyncIterator[Process]:
    """Start a server; kill it where the test has not ended it."""
    path = os.pathsep.join([str(ROOT / "generated" / "python"), str(ROOT)])
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SCRIPT),
        f"--transport={transport}",
        "--admin-port=-1",
        *flags,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert child.stdout is not None
    line = json.loads(await soon(child.stdout.readline()) or "{}")
    assert (line["event"], line["transport"]) == ("listening", transport)
    running = Process(child, line["port"])
    try:
        yield running
    finally:
        await running.channel.close()
        if child.returncode is None:
            child.kill()
            await child.wait()


async def test_under_load_nothing_accepted_fails_and_the_exit_is_clean(transport: str) -> None:
    answered, refused = 0, Counter[str]()
    flowing = asyncio.Semaphore(0)

    async def call_until_refused(stub: Any) -> None:
        nonlocal answered
        while True:
            try:
                await soon(stub.Classify(request()))
            except grpc.aio.AioRpcError as error:
                assert error.code() is Code.UNAVAILABLE, error
                refused[reason(error)] += 1
                return
            answered += 1
            flowing.release()

    async with process(transport) as server:
        channels = [
            grpc.aio.insecure_channel(server.target, [("grpc.use_local_subchannel_pool", 1)])
            for _ in range(4)
        ]
        stubs = [rpc.ClassifierServiceStub(channel) for channel in channels]
        workers = [
            asyncio.ensure_future(call_until_refused(stub)) for stub in stubs for _ in range(8)
        ]
        held = server.stub.Classify(request("hold"))
        await server.says("held")
        for _ in range(300):
            await soon(flowing.acquire())
        server.signal(signal.SIGTERM)
        await server.says("draining")
        await soon(asyncio.gather(*workers))
        assert not held.done()
        server.release()
        assert (await soon(held)).model == "hold"
        counts = await server.says("closing")
        assert counts["accepted"] == counts["answered"] == answered + 1
        assert await server.exit_code() == 0
        assert refused == {errors.DRAINING: 32}
        for channel in channels:
            await channel.close()


async def test_a_second_signal_exits_at_once(transport: str) -> None:
    async with process(transport) as server:
        held = server.stub.Classify(request("hold"))
        await server.says("held")
        server.signal(signal.SIGTERM)
        await server.says("draining")
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == 1
        assert (await failure(held)).code() is Code.UNAVAILABLE


async def test_during_a_drain_streams_end_and_new_calls_are_refused(transport: str) -> None:
    """Health first, streams after the item in hand, and nothing new in any shape."""
    async with process(transport) as server:
        watch = health_stream(server.channel)
        assert (await soon(watch.read())).status == SERVING
        stream = server.stub.ClassifyStream(stream_request())
        assert (await soon(stream.read())).index == 0
        held = server.stub.Classify(request("hold"))
        await server.says("held")
        server.signal(signal.SIGTERM)
        assert (await soon(watch.read())).status == NOT_SERVING
        assert (await soon(stream.read())).index == 1
        for ended in (watch, stream):
            error = await failure(ended.read())
            assert (error.code(), reason(error)) == (Code.UNAVAILABLE, errors.DRAINING)
        for refused in (
            server.stub.Classify(request()),
            collect(server.stub.ClassifyStream(stream_request())),
            collect(lambda: server.stub.ClassifyBidi([bidi_request("a")])),
        ):
            error = await failure(refused)
            assert (error.code(), reason(error)) == (Code.UNAVAILABLE, errors.DRAINING)
        assert await health_check(server.channel) == NOT_SERVING
        assert set((await health_list(server.channel)).values()) == {NOT_SERVING}
        assert not held.done()
        server.release()
        assert (await soon(held)).model == "hold"
        await server.says("draining")
        await server.says("closing")
        assert await server.exit_code() == 0


async def test_what_does_not_end_within_the_grace_is_cancelled(transport: str) -> None:
    """And has let go before the service closes what it uses."""
    async with process(transport, "--drain-grace-s=0.2") as server:
        unary = server.stub.Classify(request("hold"))
        await server.says("held")
        bidi = server.stub.ClassifyBidi()
        await soon(bidi.write(bidi_request("a")))
        assert (await soon(bidi.read())).results[0].id == "a"
        await server.says("held")
        server.signal(signal.SIGTERM)
        await server.says("draining")
        for held in (unary, bidi.read()):
            assert (await failure(held)).code() in (Code.UNAVAILABLE, Code.CANCELLED)
        await server.says("cancelled")
        await server.says("cancelled")
        assert (await server.says("closing"))["answered"] == 0
        assert await server.exit_code() == 0


async def test_a_process_with_nothing_in_hand_ends_at_once(transport: str) -> None:
    async with process(transport) as server:
        assert (await soon(server.stub.Classify(request()))).model == "x"
        server.signal(signal.SIGINT)
        await server.says("draining")
        assert (await server.says("closing"))["accepted"] == 1
        assert await server.exit_code() == 0


async def test_the_order_of_a_drain(transport: str) -> None:
    """Health, refusal, the service's own beginning; its end only when nothing is in hand."""
    order: list[Any] = []
    release, held = asyncio.Event(), asyncio.Event()
    health = Health()

    async def unary(_request: Any, _context: Any) -> None:
        held.set()
        await release.wait()
        order.append("answered")

    def begin() -> None:
        order.append(("begin", set(health.statuses().values()), served.server.interceptor.draining))

    async def close() -> None:
        order.append(("close", served.server.interceptor.in_flight))

    service = classifier(Scripted(unary), on_drain=[begin], on_close=[close])
    async with serve(service, transport, health=health, linger=True) as served:
        call = served.stub.Classify(request())
        await soon(held.wait())
        drained = asyncio.ensure_future(served.server.drain())
        while not order:
            await asyncio.sleep(0)
        assert order == [("begin", {NOT_SERVING}, True)]
        release.set()
        await soon(call)
        await soon(drained)
        assert order[1:] == ["answered", ("close", 0)]


async def test_large_answers_are_not_cut_off_by_the_end(transport: str) -> None:
    """What was answered has left before the connections close: ten megabytes at once."""
    arrived, gate = asyncio.Semaphore(0), asyncio.Event()

    async def unary(_request: Any, _context: Any) -> Any:
        arrived.release()
        await gate.wait()
        return pb.ClassifyResponse(model="y" * 100_000)

    async with serve(Scripted(unary), transport, linger=True) as served:
        calls = [served.stub.Classify(request()) for _ in range(100)]
        for _ in calls:
            await soon(arrived.acquire())
        drained = asyncio.ensure_future(served.server.drain())
        gate.set()
        answers = await soon(asyncio.gather(*calls))
        assert {len(answer.model) for answer in answers} == {100_000}
        await soon(drained)


async def test_waiting_for_nothing_is_no_wait(transport: str) -> None:
    async with serve(Scripted(), transport, drain_grace_s=0.0) as served:
        assert await served.server.interceptor.wait_idle(0.0)
        await soon(served.server.drain())
