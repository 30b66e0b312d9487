"""The requests in hand: how many there may be, and when a drain is done. Knows no HTTP."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from services.runtime.errors import Draining, Overloaded


class InHand:
    """Counts requests between their beginning and their end."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._idle = asyncio.Event()
        self.count = 0
        self.draining = False

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a place for one request, or refuse it."""
        if self.draining:
            raise Draining("this gateway is shutting down")
        if self.count >= self._limit:
            raise Overloaded(f"{self.count} requests are in hand", retry_after_s=1.0)
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1
            if not self.count:
                self._idle.set()

    async def wait_idle(self, grace_s: float) -> bool:
        """Wait until nothing is in hand; False when the grace ran out first."""
        try:
            async with asyncio.timeout(grace_s):
                while self.count:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            return False
        return True
