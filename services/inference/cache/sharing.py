"""A message's part in what is computed: what it computes itself and what it is told by others.

The waiting around the decisions of `flight.py`. Knows no cache and no model.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self

from services.inference.cache.flight import Flights, Order, Outcome, Stake
from services.inference.cache.keys import Key
from services.runtime.deadline import Clock, Deadline
from services.runtime.errors import DeadlineExpired

Settle = Callable[[int, Outcome], bool]
"""Says what became of an item; False: it has its outcome already, from somebody who was quicker."""
Compute = Callable[[Sequence[int], Settle], Coroutine[Any, Any, None]]
"""Computes items of a message and settles each, or raises what refuses the whole message."""
Told = Callable[[int, Outcome], None]
"""Hears the outcome of an item that this message did not compute."""
Wanted = Sequence[tuple[int, Key | None]]
"""Items by their index in the message; one without key is shared with nobody."""


async def share(
    flights: Flights,
    wanted: Wanted,
    order: Order,
    deadline: Deadline,
    compute: Compute,
    told: Told,
    clock: Clock = time.monotonic,
) -> None:
    """Return when every item has its outcome.

    `compute` is awaited for the items that are this message's to compute, at once and again for
    those whose party gave up meanwhile. What it raises is raised here, and is nobody else's.
    Raises DeadlineExpired where the deadline passes while others compute.
    """
    with _Party(flights, wanted, order, told) as party:
        if party.accompanied:
            await _accompany(party, deadline.remaining(clock()), compute)
        elif party.lead:
            await compute(party.lead, party.settle)
            party.check()


async def _accompany(party: "_Party", remaining_s: float, compute: Compute) -> None:
    """Compute what is ours and hear what others have, until all is there."""
    loop = asyncio.get_running_loop()
    timer = loop.call_later(max(0.0, remaining_s), party.expire)
    work: set[asyncio.Task[None]] = set()
    lead = party.lead
    try:
        while True:
            if lead:
                task = loop.create_task(compute(lead, party.settle))
                task.add_done_callback(party.ring)
                work.add(task)
            await party.rung()
            for task in [task for task in work if task.done()]:
                work.discard(task)
                task.result()
            lead = party.news()
            if not party.open:
                return
            if not work and not lead:
                party.check()
            if party.expired:
                raise DeadlineExpired("the deadline passed before the answer")
    finally:
        timer.cancel()
        # Before anything is awaited: others need not wait for how this message ends.
        party.leave()
        for task in work:
            task.cancel()
        if work:
            await asyncio.gather(*work, return_exceptions=True)


class _Party:
    """The stakes of one message; whatever it leaves unsettled when it ends goes to others."""

    def __init__(self, flights: Flights, wanted: Wanted, order: Order, told: Told) -> None:
        self._flights = flights
        self._told = told
        self.open: dict[int, Stake | None] = {}
        """Items without an outcome, but for twins."""
        self._twins: dict[int, list[int]] = {}
        """Items that are equal to an earlier one of the message, by that one."""
        self._indices: dict[Stake, int] = {}
        self._news: list[tuple[Stake, Outcome | None]] = []
        self._bell: asyncio.Future[None] | None = None
        self._rings = False
        self.expired = False
        self.lead: list[int] = []
        """What this message computes from the start."""
        self.accompanied = False
        """Whether another party may have an outcome for this one."""
        stakes: dict[Key, Stake] = {}
        for index, key in wanted:
            if key is None:
                self.open[index] = None
                self.lead.append(index)
            elif key in stakes:
                self._twins.setdefault(self._indices[stakes[key]], []).append(index)
            else:
                stake = stakes[key] = flights.join(key, order, self._hear)
                self.open[index] = stake
                self._indices[stake] = index
                self.accompanied |= not flights.alone(stake)
                if stake.leads:
                    self.lead.append(index)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Whatever is open is left to others; more than once is no harm."""
        for stake in self._indices:
            self._flights.leave(stake)

    def settle(self, index: int, outcome: Outcome) -> bool:
        """An outcome that this message has computed."""
        if index not in self.open:
            return False
        stake = self.open.pop(index)
        if stake is not None:
            self._flights.publish(stake, outcome)
        self._tell_twins(index, outcome)
        return True

    def news(self) -> list[int]:
        """Tell what others had; the items that are ours to compute from now on."""
        lead: list[int] = []
        while self._news:
            heard, self._news = self._news, []
            for stake, outcome in heard:
                index = self._indices[stake]
                if index not in self.open:
                    continue
                if outcome is None:
                    lead.append(index)
                else:
                    del self.open[index]
                    self._told(index, outcome)
                    self._tell_twins(index, outcome)
        return [index for index in lead if index in self.open]

    def check(self) -> None:
        """Whoever was asked to compute has said what became of each item."""
        missed = [index for index, stake in self.open.items() if stake is None or stake.leads]
        if missed:
            raise RuntimeError(f"items {missed} were not settled")

    def expire(self) -> None:
        """The message's deadline has passed."""
        self.expired = True
        self.ring()

    def ring(self, _: object = None) -> None:
        """Something happened that the message's task must look at."""
        self._rings = True
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    async def rung(self) -> None:
        """Return once something happened since the last time."""
        if not self._rings:
            self._bell = asyncio.get_running_loop().create_future()
            await self._bell
        self._rings = False

    def _hear(self, stake: Stake, outcome: Outcome | None) -> None:
        self._news.append((stake, outcome))
        self.ring()

    def _tell_twins(self, index: int, outcome: Outcome) -> None:
        for twin in self._twins.pop(index, ()):
            self._told(twin, outcome)
