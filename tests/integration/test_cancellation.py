"""Giving up: it reaches the handler wherever that stands, and everything it held comes back."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.runtime.admission import Admission, Cost, Limits
from services.runtime.call import current_call
from tests.harness import (
    SOON_S,
    RawHttp2,
    Scripted,
    Served,
    bidi_request,
    bidi_response,
    collect,
    failure,
    metric,
    pb,
    request,
    serve,
    soon,
    stream_request,
)

ROOT = Path(__file__).parents[2]
Code = grpc.StatusCode
Open = Callable[[Served], Any]
DURATION = "grpc_server_call_duration_seconds_count"
SERVICE = "/gristmill.classifier.v1.ClassifierService/"

# A call of each shape, and the name of its method.
CALLS: dict[str, tuple[str, Open]] = {
    "unary": ("Classify", lambda served: served.stub.Classify(request())),
    "stream": ("ClassifyStream", lambda served: served.stub.ClassifyStream(stream_request())),
    "bidi": ("ClassifyBidi", lambda served: served.stub.ClassifyBidi(iter([bidi_request("a")]))),
}


class Holding:
    """Handlers that take a permit and hold it until they are told or given up."""

    def __init__(self) -> None:
        limits = Limits(max_items=100, max_bytes=1000)
        self.admission = Admission(limits, asyncio.get_running_loop().time)
        self.held: asyncio.Queue[None] = asyncio.Queue()
        self.let_go: asyncio.Queue[str] = asyncio.Queue()
        self.servicer = Scripted(self.unary, self.stream, self.bidi)

    async def hold(self) -> None:
        """Take a permit and wait for ever."""
        call = current_call()
        try:
            with self.admission.admit(call.identity.name, call.deadline, Cost(1, 10)):
                self.held.put_nowait(None)
                await asyncio.Event().wait()
        finally:
            self.let_go.put_nowait(call.method)

    async def unary(self, _request: Any, _context: Any) -> None:
        """Hold."""
        await self.hold()

    async def stream(self, _request: Any, _context: Any) -> AsyncIterator[Any]:
        """Hold after a message."""
        yield pb.ClassifyStreamResponse()
        await self.hold()

    async def bidi(self, requests: Any, _context: Any) -> AsyncIterator[Any]:
        """Hold after a message each way."""
        async for _ in requests:
            yield bidi_response()
            await self.hold()

    async def all_gone(self, served: Served) -> None:
        """Wait until nothing is in flight, and nothing held."""
        await served.idle()
        assert (self.admission.items, self.admission.bytes) == (0, 0)


@pytest.mark.parametrize("shape", CALLS)
async def test_a_cancelled_call_gives_its_permit_back_and_is_counted(
    transport: str, shape: str
) -> None:
    method, begin = CALLS[shape]
    holding = Holding()
    labels = {"grpc_method": SERVICE + method, "grpc_status": "CANCELLED"}
    async with serve(holding.servicer, transport) as served:
        before = metric(DURATION, **labels)
        call = begin(served)
        await soon(holding.held.get())
        assert holding.admission.items == 1
        call.cancel()
        assert await soon(holding.let_go.get()) == SERVICE + method
        await holding.all_gone(served)
        assert metric(DURATION, **labels) == before + 1


@pytest.mark.parametrize("shape", CALLS)
async def test_a_deadline_that_passes_gives_the_permit_back_and_is_counted(
    transport: str, shape: str
) -> None:
    method, _ = CALLS[shape]
    holding = Holding()
    labels = {"grpc_method": SERVICE + method, "grpc_status": "DEADLINE_EXCEEDED"}
    async with serve(holding.servicer, transport) as served:
        before = metric(DURATION, **labels)
        stub = served.stub
        error = await failure(
            {
                "unary": lambda: stub.Classify(request(), timeout=0.3),
                "stream": lambda: collect(stub.ClassifyStream(stream_request(), timeout=0.3)),
                "bidi": lambda: collect(stub.ClassifyBidi(iter([bidi_request("a")]), timeout=0.3)),
            }[shape]()
        )
        assert error.code() is Code.DEADLINE_EXCEEDED
        await soon(holding.held.get())
        assert await soon(holding.let_go.get()) == SERVICE + method
        await holding.all_gone(served)
        assert metric(DURATION, **labels) == before + 1


@pytest.mark.parametrize("timeout_s", [None, 1000.0])
async def test_a_caller_that_gives_up_is_no_deadline_that_passed(
    transport: str, timeout_s: float | None
) -> None:
    """Not even where the server's own default has long passed: nobody set it."""
    holding = Holding()
    labels = {"grpc_method": f"{SERVICE}ClassifyBidi", "grpc_status": "CANCELLED"}
    async with serve(holding.servicer, transport, default_timeout_s=60.0) as served:
        before = metric(DURATION, **labels)
        call = served.stub.ClassifyBidi(iter([bidi_request("a")]), timeout=timeout_s)
        await soon(holding.held.get())
        served.server.interceptor._clock = lambda: asyncio.get_running_loop().time() + 900.0
        call.cancel()
        await holding.all_gone(served)
        assert metric(DURATION, **labels) == before + 1


@pytest.mark.parametrize("shape", ["stream", "bidi"])
async def test_a_handler_that_waits_for_a_slow_reader_is_ended_too(
    transport: str, shape: str
) -> None:
    """It stands at its `yield`, where no cancellation can be raised: its cleanup runs all the same,
    before the call counts as ended."""
    sent, ended = 0, asyncio.Event()
    large = "z" * 100_000

    async def forever() -> AsyncIterator[str]:
        nonlocal sent
        try:
            while True:
                sent += 1
                yield large
        finally:
            await asyncio.sleep(0)
            assert served.server.interceptor.in_flight == 1
            ended.set()

    async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
        async with aclosing(forever()) as texts:
            async for text in texts:
                yield pb.ClassifyStreamResponse(model=text)

    async def bidi(_requests: Any, _context: Any) -> AsyncIterator[Any]:
        async with aclosing(forever()) as texts:
            async for text in texts:
                yield bidi_response(model=text)

    async with serve(Scripted(stream=stream, bidi=bidi), transport) as served:
        call = CALLS[shape][1](served)
        await soon(anext(aiter(call)))
        before = -1
        async with asyncio.timeout(SOON_S):
            while sent != before:
                before = sent
                for _ in range(10):
                    await served.stub.Classify(request())
        call.cancel()
        await soon(ended.wait())
        await served.idle()


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_requests_that_still_come_are_not_waited_for(transport: str, how: str) -> None:
    """A bidi handler that waits for the next request is cancelled there."""
    waiting, ended = asyncio.Event(), asyncio.Event()

    async def bidi(requests: Any, _context: Any) -> AsyncIterator[Any]:
        try:
            async for message in requests:
                yield bidi_response(message.items[0].id)
                waiting.set()
        finally:
            ended.set()

    async with serve(Scripted(bidi=bidi), transport) as served:
        call = served.stub.ClassifyBidi(timeout=0.5 if how == "deadline" else None)
        await soon(call.write(bidi_request("a")))
        assert (await soon(call.read())).results[0].id == "a"
        await soon(waiting.wait())
        if how == "cancel":
            call.cancel()
        await soon(ended.wait())
        await served.idle()


async def test_a_connection_that_drops_cancels_what_it_carried(transport: str) -> None:
    holding = Holding()
    async with serve(holding.servicer, transport) as served:
        async with RawHttp2.connect(served.server.port) as raw:
            for stream, message in ((1, request()), (3, stream_request()), (5, bidi_request("a"))):
                method = type(message).__name__.removesuffix("Request")
                raw.call(SERVICE + method, {}, message, stream=stream)
                await soon(holding.held.get())
            assert holding.let_go.empty()
        assert {await soon(holding.let_go.get()) for _ in CALLS} == {
            SERVICE + method for method, _ in CALLS.values()
        }
        await holding.all_gone(served)


CLIENT = """
import asyncio, sys
import grpc
from tests.harness import bidi_request, request, rpc, stream_request

async def main():
    async with grpc.aio.insecure_channel(sys.argv[1]) as channel:
        stub = rpc.ClassifierServiceStub(channel)
        calls = [
            stub.Classify(request()),
            stub.ClassifyStream(stream_request()),
            stub.ClassifyBidi(iter([bidi_request("a")])),
        ]
        await asyncio.gather(*(call.wait_for_connection() for call in calls))
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_client_that_is_killed_cancels_what_it_asked_for(transport: str) -> None:
    holding = Holding()
    path = os.pathsep.join([str(ROOT / "generated" / "python"), str(ROOT)])
    async with serve(holding.servicer, transport) as served:
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CLIENT, served.target),
            env={**os.environ, "PYTHONPATH": path},
        )
        for _ in CALLS:
            await soon(holding.held.get())
        assert holding.let_go.empty()
        client.kill()
        await client.wait()
        assert {await soon(holding.let_go.get()) for _ in CALLS} == {
            SERVICE + method for method, _ in CALLS.values()
        }
        await holding.all_gone(served)


async def test_a_call_that_is_cancelled_does_not_end_another(transport: str) -> None:
    holding = Holding()
    async with serve(holding.servicer, transport) as served:
        given_up, kept = served.stub.Classify(request()), served.stub.Classify(request())
        for _ in range(2):
            await soon(holding.held.get())
        given_up.cancel()
        await soon(holding.let_go.get())
        assert holding.admission.items == 1
        assert served.server.interceptor.in_flight == 1
        assert not kept.done()
        kept.cancel()
        await holding.all_gone(served)


async def test_a_handler_may_clean_up_after_it_was_cancelled(transport: str) -> None:
    """Its `finally` may wait, and the call is in flight until it has ended."""
    started, cleaning, may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def unary(_request: Any, _context: Any) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await may_end.wait()

    async with serve(Scripted(unary), transport) as served:
        call = served.stub.Classify(request())
        await soon(started.wait())
        call.cancel()
        await soon(cleaning.wait())
        assert served.server.interceptor.in_flight == 1
        may_end.set()
        await served.idle()


async def test_a_late_cancellation_changes_nothing(transport: str) -> None:
    async with serve(Scripted(), transport) as served:
        call = served.stub.Classify(request())
        assert (await soon(call)).model == "m"
        assert not call.cancel()
        assert await call.code() is Code.OK
        stream = served.stub.ClassifyStream(stream_request(3))
        assert len(await collect(stream)) == 3
        stream.cancel()
        await served.idle()
