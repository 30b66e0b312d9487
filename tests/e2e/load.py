"""Callers that do not stop, and what became of each of their calls; knows the wire, no service."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx

from tests.e2e.processes import Suite
from tests.harness import reason

Call = Callable[[str], Awaitable[Any]]
"""Makes one call under the request id that it is given."""
FIGURES: list[str] = []
"""What was measured, told at the end; nothing depends on it."""
PAUSE_S = 0.005
"""After a refusal, so that a server that is gone is not asked a million times."""


@dataclass
class Tally:
    """What callers saw."""

    answered: int = 0
    draining: int = 0
    """Refused with the reason DRAINING."""
    unreachable: dict[str, str] = field(default_factory=dict)
    """By request id: what the connection said where no server did."""
    failed: list[str] = field(default_factory=list)
    """Everything else: there must be none."""

    def __str__(self) -> str:
        refused = f"{self.draining} refused while draining, {len(self.unreachable)} unreachable"
        return f"{self.answered} answered, {refused}, {len(self.failed)} failed"


@dataclass
class Ended:
    """How a suite ended."""

    status: int
    left: set[int]
    suite: Suite
    streamed: str = ""
    tally: Tally = field(default_factory=Tally)


class Load:
    """Callers at work."""

    def __init__(self, call: Call, callers: int) -> None:
        self.tally = Tally()
        self._call = call
        self._ids = itertools.count(1)
        self._tasks = [asyncio.ensure_future(self._work()) for _ in range(callers)]
        self._more = asyncio.Event()

    async def answers(self, more: int) -> None:
        """Wait until so many more calls are answered."""
        wanted = self.tally.answered + more
        while self.tally.answered < wanted:
            self._more.clear()
            await self._more.wait()

    async def stop(self) -> None:
        """End the callers, each after the call in hand."""
        self._call = _nothing
        await asyncio.gather(*self._tasks)

    async def _work(self) -> None:
        while self._call is not _nothing:
            request_id = f"load-{next(self._ids)}"
            try:
                await self._call(request_id)
            except grpc.aio.AioRpcError as error:
                self._note_grpc(request_id, error)
                await asyncio.sleep(PAUSE_S)
            except httpx.HTTPStatusError as error:
                self._note_http(request_id, error.response)
                await asyncio.sleep(PAUSE_S)
            except httpx.TransportError as error:
                self.tally.unreachable[request_id] = repr(error)
                await asyncio.sleep(PAUSE_S)
            else:
                self.tally.answered += 1
                self._more.set()

    def _note_grpc(self, request_id: str, error: grpc.aio.AioRpcError) -> None:
        told = any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())
        if error.code() is grpc.StatusCode.UNAVAILABLE and not told:
            self.tally.unreachable[request_id] = str(error.details())
        elif error.code() is grpc.StatusCode.UNAVAILABLE and reason(error) == "DRAINING":
            self.tally.draining += 1
        else:
            self.tally.failed.append(f"{request_id}: {error.code().name} {error.details()}")

    def _note_http(self, request_id: str, response: httpx.Response) -> None:
        if response.status_code == 503 and response.json()["error"]["reason"] == "DRAINING":
            self.tally.draining += 1
        else:
            self.tally.failed.append(f"{request_id}: {response.status_code} {response.text}")


async def _nothing(request_id: str) -> None:
    """What a caller that ends has left to do."""


@asynccontextmanager
async def load(call: Call, callers: int = 8) -> AsyncIterator[Load]:
    """Callers for as long as the block lasts."""
    work = Load(call, callers)
    try:
        yield work
    finally:
        with suppress(asyncio.CancelledError):
            await work.stop()


def lines_of(log: str, event: str) -> dict[str, dict[str, Any]]:
    """The calls in a log, by request id."""
    found = {}
    for line in log.splitlines():
        with suppress(json.JSONDecodeError):
            entry = json.loads(line)
            if entry.get("event") == event and "request_id" in entry:
                found[entry["request_id"]] = entry
    return found
