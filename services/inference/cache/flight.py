"""Who computes what is asked for now, and who waits for it. Synchronous: knows no loop, no clock.

Equal keys are computed once, under three rules. An outcome goes to everybody who wants it. Whoever
gives up, for whatever reason of its own, harms nobody: the most urgent of those who wait computes
in its place. And nobody waits for somebody less urgent, by priority and then by deadline, because
what waits in a queue is taken in that order: such a one computes as well, and the first outcome
counts for all.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush

from services.inference.cache.keys import Key
from services.inference.cache.values import Value
from services.runtime.errors import BackendFailed, GristmillError, InvalidRequest

Order = tuple[int, float]
"""Priority and deadline; the smaller is the more urgent."""
Outcome = Value | GristmillError


class Stake:
    """One party's interest in one key, until it has an outcome or leaves."""

    __slots__ = ("flight", "hear", "leads", "order")

    def __init__(self, flight: "_Flight", order: Order, hear: "Hear") -> None:
        self.flight: _Flight | None = flight
        """None when it is over."""
        self.order = order
        self.hear = hear
        self.leads = False
        """Whether this party computes."""


Hear = Callable[[Stake, Outcome | None], None]
"""Told the outcome that another party had, or None: this party computes from now on. Called amid
another party's turn: it must only take note."""


class _Flight:
    """A key that is being computed."""

    __slots__ = ("key", "leaders", "left", "waiting")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.leaders: list[Stake] = []
        """Those who compute: each more urgent than the one before it."""
        self.waiting: list[tuple[Order, int, Stake]] = []
        """A heap, the most urgent first; those who left stay until they come up."""
        self.left = 0
        """How many in the heap have left."""

    def must_lead(self, order: Order) -> bool:
        """Whether nobody computes for whom so urgent a party could wait."""
        return not self.leaders or order < self.leaders[-1].order


class Flights:
    """Every key that is being computed."""

    def __init__(self) -> None:
        self._flights: dict[Key, _Flight] = {}
        self._joined = 0

    def __len__(self) -> int:
        return len(self._flights)

    def join(self, key: Key, order: Order, hear: Hear) -> Stake:
        """Take part in a key: the stake says whether by computing or by waiting."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(key)
        stake = Stake(flight, order, hear)
        if flight.must_lead(order):
            stake.leads = True
            flight.leaders.append(stake)
        else:
            self._joined += 1
            heappush(flight.waiting, (order, self._joined, stake))
        return stake

    def alone(self, stake: Stake) -> bool:
        """Whether the stake's party computes, and it alone: nobody can be quicker."""
        return stake.leads and stake.flight is not None and len(stake.flight.leaders) == 1

    def publish(self, stake: Stake, outcome: Outcome) -> None:
        """A leader's outcome, to all others; one that holds only for itself is leaving."""
        if not _is_of_item(outcome):
            self.leave(stake)
            return
        flight = stake.flight
        if flight is None:
            return
        del self._flights[flight.key]
        others = [*flight.leaders, *[waiting for _, _, waiting in flight.waiting]]
        stake.flight = None
        for other in others:
            if other.flight is not None:
                other.flight = None
                other.hear(other, outcome)

    def leave(self, stake: Stake) -> None:
        """Give up; more than once is no harm."""
        flight, stake.flight = stake.flight, None
        if flight is None:
            return
        if stake.leads:
            flight.leaders.remove(stake)
            self._succeed(flight)
        else:
            flight.left += 1
            if 2 * flight.left > len(flight.waiting):
                flight.waiting = [one for one in flight.waiting if one[2].flight is not None]
                heapify(flight.waiting)
                flight.left = 0

    def _succeed(self, flight: _Flight) -> None:
        """Somebody computes for those who wait, or nobody waits and nobody computes."""
        while flight.waiting and flight.must_lead(flight.waiting[0][0]):
            _, _, stake = heappop(flight.waiting)
            if stake.flight is None:
                flight.left -= 1
                continue
            stake.leads = True
            flight.leaders.append(stake)
            stake.hear(stake, None)
        if not flight.leaders:
            del self._flights[flight.key]


def _is_of_item(outcome: Outcome) -> bool:
    """Whether the same would come of the item whoever asked."""
    return isinstance(outcome, Value | InvalidRequest | BackendFailed)
