"""One timer for everything that waits: says of each thing when its deadline passes.

A timer of the event loop for each message costs more than a place in a heap does; what is done
before its deadline is left in the heap until it is due, or until most of the heap is such.
"""

import asyncio
import heapq
import math
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from services.runtime.deadline import Clock

# Below this many dead entries a heap is not worth sifting.
SPARE = 256


class _Waits(Protocol):
    @property
    def future(self) -> "asyncio.Future[Any]": ...


T = TypeVar("T", bound=_Waits)


class Deadlines(Generic[T]):
    """Calls `passed` with each thing whose deadline passes before its future is done."""

    def __init__(self, clock: Clock, passed: Callable[[T], None]) -> None:
        self._clock = clock
        self._passed = passed
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[float, int, T]] = []
        self._added = 0
        self._live = 0
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = math.inf

    def add(self, at: float, thing: T) -> None:
        """Watch one thing until `at`, on the clock."""
        self._added += 1
        self._live += 1
        heapq.heappush(self._heap, (at, self._added, thing))
        if at < self._armed_for:
            self._arm()

    def forget(self) -> None:
        """One thing is done; it is dropped in time."""
        self._live -= 1
        if len(self._heap) > SPARE + 2 * self._live:
            self._heap = [entry for entry in self._heap if not entry[2].future.done()]
            heapq.heapify(self._heap)

    def pass_due(self) -> None:
        """Say now what the timer would say in a moment."""
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            thing = heapq.heappop(self._heap)[2]
            if not thing.future.done():
                self._passed(thing)

    def close(self) -> None:
        """Nothing waits any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = self._heap[0][0]
        delay_s = max(0.0, self._armed_for - self._clock())
        self._timer = self._loop.call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._timer, self._armed_for = None, math.inf
        self.pass_due()
        while self._heap and self._heap[0][2].future.done():
            heapq.heappop(self._heap)
        if self._heap:
            self._arm()
