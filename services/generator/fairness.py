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

from collections import deque
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


@dataclass(slots=True)
class _Class:
    """The entries of one priority."""

    now: float = 0.0
    """Of the class's own time: the work that its identities were given, shared evenly."""
    waiting: dict[str, deque[Entry]] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    """When the work of each identity's last entry would end."""


@dataclass(slots=True)
class FairQueue:
    """What waits for the engine."""

    _classes: dict[int, _Class] = field(default_factory=dict)
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
        queue.waiting.setdefault(entry.identity, deque()).append(entry)
        self._count += 1
        self.work += entry.work

    def remove(self, entry: Entry) -> None:
        """Forget an entry that nobody waits for any more."""
        queue = self._classes.get(entry.priority)
        mine = queue.waiting.get(entry.identity, ()) if queue else ()
        if queue is None or entry not in mine:
            return
        # What was never given is not held against what the identity asks for after it.
        at = entry.start
        for one in list(mine)[mine.index(entry) + 1 :]:
            one.start = at
            at += one.work
        queue.last[entry.identity] = at
        self._leave(queue, entry)

    def take(self) -> Entry | None:
        """The entry that goes next; None where nothing waits."""
        for priority in sorted(self._classes):
            queue = self._classes[priority]
            if queue.waiting:
                heads = [entries[0] for entries in queue.waiting.values()]
                entry = min(heads, key=lambda one: one.start)
                queue.now = entry.start
                self._leave(queue, entry)
                return entry
        return None

    def ahead(self, identity: str, priority: int) -> tuple[int, float]:
        """How many entries would go before a new one of this identity, and their work."""
        queue = self._classes.get(priority)
        start = max(queue.now, queue.last.get(identity, 0.0)) if queue else 0.0
        found = [
            entry
            for number, one in self._classes.items()
            for entries in one.waiting.values()
            for entry in entries
            if number < priority or (number == priority and entry.start <= start)
        ]
        return len(found), sum(entry.work for entry in found)

    def _leave(self, queue: _Class, entry: Entry) -> None:
        mine = queue.waiting[entry.identity]
        mine.remove(entry)
        self._count -= 1
        self.work -= entry.work
        if not mine:
            del queue.waiting[entry.identity]
        if not queue.waiting:
            # Identities that are owed nothing more; looked for as the queue runs dry.
            queue.last = {who: end for who, end in queue.last.items() if end > queue.now}
