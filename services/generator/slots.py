"""The engine's places, given in fair order, and how long one would wait for them.

An engine takes as many prompts as it runs at once and no more: what waits, waits here, where
priority, fair shares and deadlines decide, and where leaving costs the engine nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from services.generator.fairness import Entry, FairQueue
from services.inference.cost import CostModel

MEMORY = 0.2
"""How much of what is learned of holding times comes from the last prompt."""


class Slots:
    """`count` places."""

    def __init__(self, count: int, clock: Callable[[], float]) -> None:
        self.count = count
        self._free = count
        self._clock = clock
        self._queue = FairQueue()
        self._turns: dict[Entry, asyncio.Future[None]] = {}
        self._first = CostModel()
        self._held_s = 0.0
        """Mean time that a place is held."""
        self._s_per_work = 0.0

    @property
    def waiting(self) -> int:
        """Prompts without a place."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Places taken."""
        return self.count - self._free

    @asynccontextmanager
    async def one(self, entry: Entry) -> AsyncIterator[None]:
        """A place, from when it is this entry's turn to the end of the `with`."""
        await self._acquire(entry)
        began = self._clock()
        try:
            yield
            # One that was cut short says nothing of how long others will take.
            self._learn(entry.work, self._clock() - began)
        finally:
            self._release()

    def predicted_wait_s(self, entry: Entry) -> float:
        """Time until the entry would have a place; 0 while nothing is known."""
        if self._free and not len(self._queue):
            return 0.0
        _, work = self._queue.ahead(entry.identity, entry.priority)
        return (work * self._s_per_work + self._held_s) / self.count

    def predicted_first_s(self, prompt_tokens: int) -> float:
        """Time from a place to the first token; 0 while nothing is known."""
        return self._first.seconds(1, prompt_tokens) if self._first.learned else 0.0

    def drain_s(self) -> float:
        """Time until a place is free again: the hint when all is full."""
        return max(0.05, self._held_s / self.count)

    def first_token(self, prompt_tokens: int, seconds: float) -> None:
        """A prompt of so many tokens had its first token so long after it had its place."""
        self._first.observe(prompt_tokens, seconds)

    def _learn(self, work: float, held_s: float) -> None:
        share = MEMORY if self._held_s else 1.0
        self._held_s += share * (held_s - self._held_s)
        self._s_per_work += share * (held_s / max(1.0, work) - self._s_per_work)

    async def _acquire(self, entry: Entry) -> None:
        if self._free and not len(self._queue):
            self._free -= 1
            # Through the queue all the same: what one had counts when others wait.
            self._queue.push(entry)
            self._queue.take()
            return
        turn = self._turns[entry] = asyncio.get_running_loop().create_future()
        self._queue.push(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()  # its turn came as it left
            else:
                self._queue.remove(entry)
            raise
        finally:
            del self._turns[entry]

    def _release(self) -> None:
        self._free += 1
        while self._free and (entry := self._queue.take()):
            turn = self._turns[entry]
            if not turn.done():
                self._free -= 1
                turn.set_result(None)
