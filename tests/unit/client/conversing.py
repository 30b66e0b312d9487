"""A generator with a fake engine that both clients may converse with; served from a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from services.generator.conversation import Conversations
from services.generator.engines.fake import FakeEngine
from tests.integration.test_conversation import running
from tests.unit.client.fakes import SOON_S
from tests.unit.generator.stack import until


class Served:
    """The server, as a test in another thread sees it."""

    def __init__(self, engine: FakeEngine, address: str, conversations: Conversations) -> None:
        self._loop = asyncio.get_running_loop()
        self._conversations = conversations
        self.engine = engine
        self.address = address
        self.stopped = asyncio.Event()

    def step(self) -> None:
        """One step of the engine, once it has a prompt."""

        async def step() -> None:
            await until(lambda: self.engine.running)
            self.engine.step()

        self._run(step())

    @property
    def open(self) -> int:
        """How many conversations there are."""
        return len(self._conversations.open)

    def until(self, true: Callable[[], Any]) -> None:
        """Wait for what the engine does."""
        self._run(until(true))

    def drain(self) -> None:
        """Finish the turn in hand and take no more."""

        async def drain() -> None:
            self._conversations.drain()

        self._run(drain())

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self.stopped.set)

    def _run(self, awaitable: Any) -> None:
        asyncio.run_coroutine_threadsafe(awaitable, self._loop).result(SOON_S)


@contextmanager
def conversing(
    engine: FakeEngine, transport: str, folder: Path, *, steps: bool = True, **bounds: Any
) -> Iterator[Served]:
    """Serve `engine`, which steps by itself unless told not to, as long as the block lasts.

    Fails where a conversation leaves something behind.
    """
    ready: Future[Served] = Future()

    async def serve() -> None:
        async with running(engine, transport, folder, steps=steps, **bounds) as r:
            address = f"127.0.0.1:{r.served.server.port}"
            served = Served(engine, address, r.conversations)
            ready.set_result(served)
            await served.stopped.wait()

    with ThreadPoolExecutor(1) as threads:
        serving = threads.submit(asyncio.run, serve())
        serving.add_done_callback(partial(_tell, ready))
        served = ready.result(SOON_S)
        try:
            yield served
        finally:
            served.stop()
        serving.result(2 * SOON_S)


def _tell(ready: Future[Served], ended: Future[None]) -> None:
    """Why it never was ready."""
    if not ready.done():
        ready.set_exception(ended.exception() or AssertionError("it ended before it began"))


def in_thread(call: Callable[[], Any]) -> Future[Any]:
    """What a call gives that another thread makes."""
    found: Future[Any] = Future()

    def run() -> None:
        try:
            found.set_result(call())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return found
