"""The drain: what is in hand is finished, new work is refused, streams say where to go on."""

import asyncio
import json
from typing import Any

from tests.harness import SOON_S, soon
from tests.unit.gateway.stack import WATCH, error_of, stack


class TestDrain:
    async def test_work_in_hand_is_finished_and_new_work_refused(self) -> None:
        arrived, release = asyncio.Event(), asyncio.Event()

        async def held(request: Any, context: Any) -> Any:
            arrived.set()
            await release.wait()

        async with stack(held) as s:
            first = asyncio.create_task(s.classify())
            await soon(arrived.wait())
            drain = asyncio.create_task(s.gateway.drain())
            assert (await soon(s.client.get("/health/live"))).status_code == 200
            ready = await soon(s.client.get("/health/ready"))
            assert (ready.status_code, ready.json()["status"]) == (503, "DRAINING")
            refused = await s.classify()
            error_of(refused, 503, "DRAINING")
            assert refused.headers["retry-after"] == "1"
            release.set()
            assert (await soon(first)).status_code == 200
            await soon(drain)

    async def test_streams_that_follow_end_with_a_reason(self) -> None:
        async with stack() as s, s.client.stream("GET", WATCH) as response:
            lines = response.aiter_lines()
            await soon(anext(lines))
            drain = asyncio.create_task(s.gateway.drain())
            async with asyncio.timeout(SOON_S):
                rest = [line async for line in lines if line]
            assert rest[0] == "event: error"
            assert json.loads(rest[1].removeprefix("data: "))["error"]["reason"] == "DRAINING"
            await soon(drain)
