"""A client that goes away cancels the call behind its request: no work is left for nobody."""

import asyncio
import json
from typing import Any

from tests.harness import SOON_S, soon
from tests.unit.gateway.stack import WATCH, stack


class TestDisconnect:
    async def test_a_client_that_goes_away_cancels_a_unary_call(self) -> None:
        arrived, ended = asyncio.Event(), asyncio.Event()

        async def held(request: Any, context: Any) -> Any:
            arrived.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with stack(held) as s:
            caller = asyncio.create_task(s.classify())
            await soon(arrived.wait())
            caller.cancel()
            await soon(ended.wait())
            assert await s.gateway.gateway.in_hand.wait_idle(SOON_S)

    async def test_a_client_that_goes_away_cancels_a_stream(self) -> None:
        async with stack() as s:
            async with s.client.stream("GET", f"{WATCH}?after_revision=5") as response:
                first = await soon(anext(response.aiter_lines()))
                assert json.loads(first.removeprefix("data: "))["revision"] == "5"
                await soon(s.registry.watching.wait())
            await soon(s.registry.watch_ended.wait())
            assert await s.gateway.gateway.in_hand.wait_idle(SOON_S)

    async def test_many_that_go_away_leave_nothing_behind(self) -> None:
        ended = asyncio.Semaphore(0)
        arrived = asyncio.Semaphore(0)

        async def held(request: Any, context: Any) -> Any:
            arrived.release()
            try:
                await asyncio.Event().wait()
            finally:
                ended.release()

        async with stack(held) as s:
            callers = [asyncio.create_task(s.classify()) for _ in range(30)]
            for _ in callers:
                await soon(arrived.acquire())
            for caller in callers:
                caller.cancel()
            for _ in callers:
                await soon(ended.acquire())
            assert await s.gateway.gateway.in_hand.wait_idle(SOON_S)
