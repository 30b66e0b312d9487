"""How a WebSocket ends when nobody says so: clients that leave, deadlines, drains, slow readers."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from tests import harness
from tests.harness import SOON_S, soon
from tests.unit.gateway.stack import Stack, error_of, stack
from tests.unit.gateway.talk import LARGE, budget, end_of, ids, items, received, refusal, talk

Leave = Callable[[ClientConnection], Any]


async def closes(socket: ClientConnection) -> None:
    """As a client does that has had enough."""
    await soon(socket.close())


async def is_killed(socket: ClientConnection) -> None:
    """As a process does that is killed: no close frame, a reset."""
    socket.transport.abort()


class Held:
    """A service that answers each message when it may, and notes how it ends."""

    def __init__(self) -> None:
        self.arrived = asyncio.Semaphore(0)
        self.may_answer = asyncio.Semaphore(0)
        self.ended = asyncio.Event()
        self.read: list[str] = []

    async def __call__(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        """The ids, one by one."""
        try:
            async for request in requests:
                self.read.append(request.items[0].id)
                self.arrived.release()
                await self.may_answer.acquire()
                yield harness.bidi_response(request.items[0].id)
        finally:
            self.ended.set()


class Flood:
    """A service that says more than anybody reads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.said = 0
        self.ended = asyncio.Event()

    async def __call__(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        """So many large messages, as fast as they go."""
        try:
            while self.said < self.count:
                self.said += 1
                yield harness.bidi_response(LARGE)
        finally:
            self.ended.set()

    async def held_back(self) -> None:
        """Wait until it says no more for a while, though it would."""
        before = -1
        async with asyncio.timeout(SOON_S):
            while before != self.said:
                before = self.said
                await asyncio.sleep(0.5)


class Deaf:
    """A service that reads one message and no more, and says nothing."""

    def __init__(self) -> None:
        self.arrived = asyncio.Semaphore(0)
        self.ended = asyncio.Event()

    async def __call__(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        """Silence."""
        try:
            await anext(aiter(requests))
            self.arrived.release()
            await asyncio.Event().wait()
            yield harness.bidi_response()
        finally:
            self.ended.set()


@asynccontextmanager
async def flooded(s: Stack, socket: ClientConnection) -> AsyncIterator[None]:
    """With a client that sends until nothing goes any more, and then waits."""
    sent, message = 0, items(*map(str, range(20)), text="x" * 50_000)

    async def send() -> None:
        nonlocal sent
        while True:
            await socket.send(message)
            sent += 1

    sending = asyncio.create_task(send())
    before = -1
    async with asyncio.timeout(SOON_S):
        while before != sent:
            before = sent
            await asyncio.sleep(0.5)
    assert not sending.done()
    assert sent < 64, "nothing holds the client back"
    assert budget(s).held_bytes <= 2 * len(message)
    try:
        yield
    finally:
        sending.cancel()
        await asyncio.wait([sending])


def faults(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as a failure of ours."""
    return [
        one.getMessage().split(" exception=")[0]
        for one in caplog.records
        if one.levelno >= logging.ERROR and one.name.startswith(("gateway", "uvicorn", "asyncio"))
    ]


@pytest.mark.parametrize("leave", [closes, is_killed])
class TestClientsThatLeave:
    async def test_while_it_waits(self, leave: Leave, caplog: pytest.LogCaptureFixture) -> None:
        held = Held()
        async with stack(bidi=held) as s, talk(s) as socket:
            await socket.send(items("a"))
            await soon(held.arrived.acquire())
            await leave(socket)
            await soon(held.ended.wait())
            assert await s.gateway.gateway.in_hand.wait_idle(SOON_S)
        assert faults(caplog) == []

    async def test_before_it_says_anything(self, leave: Leave) -> None:
        held = Held()
        async with stack(bidi=held) as s, talk(s) as socket:
            await leave(socket)
            assert await s.gateway.gateway.in_hand.wait_idle(SOON_S)
            await s.behind.idle()

    async def test_after_it_has_said_everything(self, leave: Leave) -> None:
        held = Held()
        async with stack(bidi=held) as s, talk(s) as socket:
            await socket.send(items("a"))
            await socket.send("")
            await soon(held.arrived.acquire())
            await leave(socket)
            await soon(held.ended.wait())
            assert await s.gateway.gateway.in_hand.wait_idle(SOON_S)

    async def test_in_the_middle_of_results(
        self, leave: Leave, caplog: pytest.LogCaptureFixture
    ) -> None:
        flood = Flood(10**9)
        async with stack(bidi=flood) as s:
            for _ in range(5):
                async with talk(s) as socket:
                    await received(socket)
                    await leave(socket)
                await soon(flood.ended.wait())
                assert await s.gateway.gateway.in_hand.wait_idle(SOON_S)
                flood.ended.clear()
        assert faults(caplog) == []


class TestDeadline:
    @pytest.mark.parametrize(
        "header", [("x-gristmill-timeout-ms", "300"), ("grpc-timeout", "300m")]
    )
    async def test_ends_it(self, header: tuple[str, str]) -> None:
        held = Held()
        async with stack(bidi=held) as s, talk(s, additional_headers=[header]) as socket:
            held.may_answer.release()
            await socket.send(items("a"))
            assert ids(await received(socket)) == ["a"]
            error = (await end_of(socket)).error(4504, "DEADLINE_EXPIRED")
            assert error["status"] == "DEADLINE_EXCEEDED"
            await soon(held.ended.wait())

    async def test_is_that_of_streams_where_none_is_given(self) -> None:
        async with stack(bidi=Held(), default_stream_timeout_s=0.3) as s, talk(s) as socket:
            (await end_of(socket)).error(4504, "DEADLINE_EXPIRED")

    async def test_ends_one_whose_client_reads_nothing(self) -> None:
        flood = Flood(10**9)
        header = [("x-gristmill-timeout-ms", "1500")]
        async with stack(bidi=flood) as s:
            async with talk(s, additional_headers=header, close_timeout=0.1) as socket:
                socket.transport.pause_reading()
                await soon(flood.ended.wait())
                assert await s.gateway.gateway.in_hand.wait_idle(SOON_S)

    async def test_ends_one_whose_service_takes_no_more(self) -> None:
        deaf = Deaf()
        header = [("x-gristmill-timeout-ms", "3000")]
        async with stack(bidi=deaf) as s:
            async with talk(s, additional_headers=header, close_timeout=0.1) as socket:
                async with flooded(s, socket):
                    (await end_of(socket)).error(4504, "DEADLINE_EXPIRED")
                assert await s.gateway.gateway.in_hand.wait_idle(SOON_S)
                assert budget(s).held_bytes == 0


class TestSlowReader:
    async def test_holds_the_service_back_and_loses_nothing(self) -> None:
        flood = Flood(100)
        async with stack(bidi=flood) as s, talk(s) as socket:
            socket.transport.pause_reading()
            await flood.held_back()
            assert flood.said < 40
            assert not flood.ended.is_set()
            socket.transport.resume_reading()
            end = await end_of(socket)
        assert (len(end.messages), end.code) == (100, 1000)
        assert all(ids(one) == [LARGE] for one in end.messages)


class TestDrain:
    async def test_what_was_sent_is_answered_and_then_it_ends(self) -> None:
        held = Held()
        async with stack(bidi=held) as s, talk(s) as socket:
            await socket.send(items("a"))
            await soon(held.arrived.acquire())
            drain = asyncio.create_task(s.gateway.drain())
            error, headers = await refusal(s)
            assert (error["code"], error["reason"]) == (503, "DRAINING")
            assert headers["retry-after"] == "1"
            await socket.send(items("too late"))
            held.may_answer.release()
            end = await end_of(socket)
            await soon(drain)
        assert ids(end.messages[0]) == ["a"]
        end.error(1012, "DRAINING")
        assert len(end.messages) == 2
        assert held.read == ["a"]

    async def test_an_idle_one_ends_at_once(self) -> None:
        async with stack(drain_grace_s=600.0) as s, talk(s) as socket:
            await socket.send(items("a"))
            assert ids(await received(socket)) == ["a"]
            drain = asyncio.create_task(s.gateway.drain())
            end = await end_of(socket)
            end.error(1012, "DRAINING")
            await soon(drain)

    async def test_many_end_together(self) -> None:
        async with stack(drain_grace_s=600.0) as s:
            async with talk(s) as a, talk(s) as b, talk(s) as c:
                for socket in (a, b, c):
                    await socket.send(items("a"))
                    await received(socket)
                drain = asyncio.create_task(s.gateway.drain())
                for end in await asyncio.gather(*map(end_of, (a, b, c))):
                    end.error(1012, "DRAINING")
                await soon(drain)

    @pytest.mark.parametrize("behind", [Held(), Deaf()])
    async def test_one_that_never_ends_is_cut_after_the_grace(self, behind: Held | Deaf) -> None:
        async with stack(bidi=behind, drain_grace_s=0.5) as s, talk(s) as socket:
            await socket.send(items("a"))
            await soon(behind.arrived.acquire())
            await soon(s.gateway.drain())
            assert (await end_of(socket)).code in (1006, 1012)
            await s.behind.idle()


class TestInHand:
    async def test_an_open_one_is_a_request_in_hand(self) -> None:
        async with stack(max_concurrent_requests=1) as s:
            async with talk(s) as socket:
                error_of(await s.classify(), 429, "QUEUE_FULL")
                error, _ = await refusal(s)
                assert (error["code"], error["reason"]) == (429, "QUEUE_FULL")
                await socket.send(items("a"))
                assert ids(await received(socket)) == ["a"]
            assert await s.gateway.gateway.in_hand.wait_idle(SOON_S)
            assert (await s.classify()).status_code == 200


async def test_killed_while_the_service_takes_no_more() -> None:
    # One that closes cannot say so before what it has sent is taken; one that is gone is found.
    deaf = Deaf()
    async with stack(bidi=deaf, ping_interval_s=0.3) as s, talk(s, close_timeout=0.1) as socket:
        async with flooded(s, socket):
            await soon(deaf.arrived.acquire())
        await is_killed(socket)
        await soon(deaf.ended.wait())
        assert await s.gateway.gateway.in_hand.wait_idle(SOON_S)
        assert budget(s).held_bytes == 0
