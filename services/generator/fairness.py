"""Whose prompt the engine takes next: a pure state machine, without clock, engine or wire.

Its laws, each a property test:

1. Work-conserving: `take` gives an entry whenever one waits.
2. The most urgent class goes first.
3. Within a class, identities share by work (start-time fair queueing): of two identities that wait
   without a break, neither gets more than one entry's work ahead of the other, however many
   entries each has waiting.
4. Within a class and an identity, first come, first served.
5. What was removed is never taken.
"""

import heapq
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Entry:
    """One prompt that waits."""

    identity: str
    priority: int
    """1 (most urgent) to 9."""
    work: float
    """What it will take of the engine, in tokens."""
    start: float = 0.0
    """When, in the class's own time, its work would begin."""
    removed: bool = False


@dataclass(slots=True)
class _Class:
    """The entries of one priority."""

    now: float = 0.0
    """Of the class's own time: the work that its identities were given, shared evenly."""
    heap: list[tuple[float, int, Entry]] = field(default_factory=list)
    last: dict[str, float] = field(default_factory=dict)
    """When the work of each identity's last entry would end."""


@dataclass(slots=True)
class FairQueue:
    """What waits for the engine."""

    _classes: dict[int, _Class] = field(default_factory=dict)
    _pushed: int = 0
    _count: int = 0
    work: float = 0.0
    """Of all that waits."""

    def __len__(self) -> int:
        return self._count

    def push(self, entry: Entry) -> None:
        """Let an entry wait."""
        queue = self._classes.setdefault(entry.priority, _Class())
        entry.start = max(queue.now, queue.last.get(entry.identity, 0.0))
        queue.last[entry.identity] = entry.start + entry.work
        self._pushed += 1
        heapq.heappush(queue.heap, (entry.start, self._pushed, entry))
        self._count += 1
        self.work += entry.work

    def remove(self, entry: Entry) -> None:
        """Forget an entry that nobody waits for any more."""
        if entry.removed:
            return
        entry.removed = True
        self._count -= 1
        self.work -= entry.work
        queue = self._classes[entry.priority]
        # What was never given is not held against what the identity asks for next.
        owed = queue.last.get(entry.identity, 0.0) - entry.work
        queue.last[entry.identity] = max(queue.now, owed)
        self._tidy(entry.priority)

    def take(self) -> Entry | None:
        """The entry that goes next; None where nothing waits."""
        for priority in sorted(self._classes):
            self._tidy(priority)
            queue = self._classes.get(priority)
            if queue is None:
                continue
            queue.now, _, entry = heapq.heappop(queue.heap)
            entry.removed = True
            self._count -= 1
            self.work -= entry.work
            self._forget(queue)
            return entry
        return None

    def ahead(self, identity: str, priority: int) -> tuple[int, float]:
        """How many entries would go before a new one of this identity, and their work."""
        queue = self._classes.get(priority)
        start = max(queue.now, queue.last.get(identity, 0.0)) if queue else 0.0
        count, work = 0, 0.0
        for number, one in self._classes.items():
            if number > priority:
                continue
            for at, _, entry in one.heap:
                if not entry.removed and (number < priority or at <= start):
                    count, work = count + 1, work + entry.work
        return count, work

    def _tidy(self, priority: int) -> None:
        """Drop what was removed from the head, and a class in which nothing waits."""
        queue = self._classes.get(priority)
        if queue is None:
            return
        while queue.heap and queue.heap[0][2].removed:
            heapq.heappop(queue.heap)
        if not queue.heap and all(end <= queue.now for end in queue.last.values()):
            del self._classes[priority]

    def _forget(self, queue: _Class) -> None:
        """Identities that are owed nothing more; looked for as the queue runs dry."""
        if not queue.heap or len(queue.last) > 4 * len(queue.heap) + 64:
            queue.last = {who: end for who, end in queue.last.items() if end > queue.now}
