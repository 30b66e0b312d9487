"""Which waiting items become the next batch: a pure state machine, without clock, thread or wire.

Its laws, each a property test:

1. Work-conserving: `take` gives a batch whenever anything that is still wanted waits.
2. The head of a batch is the first by priority class, then deadline, then arrival.
3. Never more than `max_batch_size` items, never more padded tokens (longest x count) than
   `max_batch_tokens`, except a single item that is longer than the budget by itself.
4. An item is overtaken (left behind while one from behind it in the order is taken) by at most
   `max_overtakes` batches.
5. What has expired or was cancelled when `take` runs is never in a batch.
6. A batch holds items of one group only, and has a preferred size where it fills one.

Within these, a batch takes the items nearest in length to its head, as long as the padding costs
less than a batch of its own would: with a batch costing `a + b x tokens`, an item joins if it adds
at most `a + b x length`.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from services.inference.cost import CostModel

Order = tuple[int, float, int]
Released = Literal["size", "preferred", "tokens", "padding", "share", "drained"]
# Looking further than this for a length that fits costs more than the padding it saves.
WINDOW_BATCHES = 8


@dataclass(slots=True, eq=False)
class Entry:
    """One waiting item."""

    order: Order
    """Priority class, deadline, arrival: smaller goes first."""
    length: int
    group: Hashable = None
    overtaken: int = 0

    @property
    def deadline(self) -> float:
        """When nobody waits for it any more."""
        return self.order[1]


@dataclass(slots=True)
class Batch:
    """Items that run together, the head first; never changed once made."""

    entries: tuple[Entry, ...]
    released: Released
    """What closed it; `drained`: nothing more waited."""
    longest: int = field(init=False)
    """What every item is padded to."""
    tokens: int = field(init=False)
    """What is not padding."""

    def __post_init__(self) -> None:
        self.longest = max([entry.length for entry in self.entries])
        self.tokens = sum([entry.length for entry in self.entries])

    @property
    def padded_tokens(self) -> int:
        """What the batch costs."""
        return self.longest * len(self.entries)


@dataclass(slots=True)
class Scheduler:
    """The waiting items in order, and the rule that picks a batch from them."""

    max_batch_size: int
    max_batch_tokens: int = 0
    max_overtakes: int = 8
    cost: CostModel = field(default_factory=CostModel)
    preferred: Sequence[int] = ()
    tokens: int = 0
    """Of all that waits."""
    _waiting: list[tuple[Order, Entry]] = field(default_factory=list)
    _soonest: float = math.inf
    """No deadline of what waits is before this."""

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, entry: Entry) -> None:
        """Let an item wait; its order must be unique."""
        # An order is unique, so that entries themselves are never compared.
        insort(self._waiting, (entry.order, entry))
        self.tokens += entry.length
        self._soonest = min(self._soonest, entry.order[1])

    def remove(self, entry: Entry) -> bool:
        """Forget an item that nobody wants any more; False where it no longer waits."""
        index = self._index(entry.order)
        if index < len(self._waiting) and self._waiting[index][1] is entry:
            del self._waiting[index]
            self.tokens -= entry.length
            return True
        return False

    def expire(self, now: float) -> list[Entry]:
        """Remove and return what has expired."""
        if now < self._soonest:
            return []
        dead = [entry for _, entry in self._waiting if entry.deadline <= now]
        if dead:
            self._keep(dead)
        self._soonest = min((order[1] for order, _ in self._waiting), default=math.inf)
        return dead

    def precedes(self, batch: Batch) -> bool:
        """Whether something now waits that should have been the head of `batch`."""
        return bool(self._waiting) and self._waiting[0][0] < batch.entries[0].order

    def before(self, order: Order) -> tuple[int, int]:
        """How many items wait that go before `order`, and about how many tokens they have."""
        count = self._index(order)
        return count, self.tokens * count // max(1, len(self._waiting))

    def take(self, free_instances: int = 1, *, full_only: bool = False) -> Batch | None:
        """The next batch, or None where nothing waits.

        Call `expire` first. `free_instances` idle at once share what waits; `full_only` gives a
        batch only if later arrivals could not make it fuller.
        """
        if not self._waiting:
            return None
        chosen, released = self._fill(free_instances)
        if full_only and not self._is_full(chosen):
            return None
        self._count_overtakes(chosen)
        self._keep(chosen)
        return Batch(tuple(chosen), released)

    def restore(self, entries: Iterable[Entry]) -> None:
        """Put back items of a batch that was not run after all."""
        for entry in entries:
            self.push(entry)

    def _fill(self, free_instances: int) -> tuple[list[Entry], Released]:
        head = self._waiting[0][1]
        share = -(-len(self._waiting) // max(1, free_instances))
        limit = min(self.max_batch_size, share)
        chosen, longest = [head], head.length
        if limit == 1:
            return chosen, self._full(limit, len(self._waiting) == 1)
        left_over: Released = "drained"
        for entry in self._candidates(chosen):
            if entry.group != head.group:
                left_over = "padding" if left_over == "drained" else left_over
                continue
            grown = max(longest, entry.length)
            if self.max_batch_tokens and grown * (len(chosen) + 1) > self.max_batch_tokens:
                left_over = "tokens"
                continue
            if not self._worth(entry, len(chosen), longest, grown):
                left_over = "padding" if left_over == "drained" else left_over
                continue
            chosen.append(entry)
            longest = grown
            if len(chosen) == limit:
                return self._cut(chosen, self._full(limit, len(chosen) == len(self._waiting)))
        return self._cut(chosen, left_over)

    def _cut(self, chosen: list[Entry], released: Released) -> tuple[list[Entry], Released]:
        """The largest preferred size that is filled; from the end, where what fits least is."""
        size = max((size for size in self.preferred if size <= len(chosen)), default=0)
        if size in (0, len(chosen)):
            return chosen, released
        return chosen[:size], "preferred"

    def _full(self, limit: int, drained: bool) -> Released:
        if limit == self.max_batch_size:
            return "size"
        return "drained" if drained else "share"

    def _is_full(self, chosen: list[Entry]) -> bool:
        """Whether no later arrivals, not even the shortest, would make a larger batch of it."""
        larger = len(chosen) + 1
        if len(chosen) in self.preferred:
            never = self.max_batch_size + 1
            larger = min([size for size in self.preferred if size >= larger], default=never)
        longest = max([entry.length for entry in chosen])
        return larger > self.max_batch_size or 0 < self.max_batch_tokens < longest * larger

    def _candidates(self, chosen: list[Entry]) -> Iterator[Entry]:
        """Who may join the head, nearest in length first; past an item that may not be overtaken
        only once it is among the `chosen`, to which the caller adds as it goes.
        """
        window = self._waiting[1 : 1 + self.max_batch_size * WINDOW_BATCHES]
        length = chosen[0].length
        found: list[Entry] = []
        for _, entry in window:
            found.append(entry)
            if entry.overtaken >= self.max_overtakes:
                # sorted() keeps the order of arrival among equal distances.
                yield from sorted(found, key=lambda one: abs(one.length - length))
                if entry not in chosen:
                    return
                found = []
        yield from sorted(found, key=lambda one: abs(one.length - length))

    def _worth(self, entry: Entry, count: int, longest: int, grown: int) -> bool:
        added = self.cost.per_token * (grown * (count + 1) - longest * count)
        return added <= self.cost.fixed + self.cost.per_token * entry.length

    def _count_overtakes(self, chosen: list[Entry]) -> None:
        if len(chosen) == len(self._waiting):
            return
        taken = {id(entry) for entry in chosen}
        last = max([entry.order for entry in chosen])
        for order, entry in self._waiting:
            if order > last:
                return
            if id(entry) not in taken:
                entry.overtaken += 1

    def _keep(self, gone: list[Entry]) -> None:
        if len(gone) == len(self._waiting):
            self._waiting = []
        else:
            out = {id(entry) for entry in gone}
            self._waiting = [pair for pair in self._waiting if id(pair[1]) not in out]
        self.tokens -= sum([entry.length for entry in gone])

    def _index(self, order: Order) -> int:
        """How many wait before this order."""
        return bisect_left(self._waiting, (order,))
