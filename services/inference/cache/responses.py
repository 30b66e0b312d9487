"""The response cache as a version's classifier uses it: look up, share what is computed, keep.

A process has one `Cache`, a version a part of it. Knows no wire, no queue and no model.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from services.inference.cache.flight import Flights, Order, Outcome
from services.inference.cache.keys import Key, Keys, weight
from services.inference.cache.memory import Memory
from services.inference.cache.sharing import Compute, Settle, Told, share
from services.inference.cache.values import Value
from services.inference.items import Item
from services.runtime import metrics
from services.runtime.deadline import Clock, Deadline
from services.runtime.errors import GristmillError

# Hashing more takes longer than handing it to a thread.
HERE_BYTES = 128 * 2**10


class Remote(Protocol):
    """A cache outside this process: what is wrong with it is a miss."""

    async def lookup(self, keys: Sequence[Key], within_s: float) -> list[Value | None]:
        """The value of each key that is there."""
        ...

    def store(self, key: Key, value: Value) -> None:
        """Have a value kept, soon; returns at once."""
        ...

    async def close(self) -> None:
        """Finish what is under way."""
        ...


class Cache:
    """The answers that a process keeps: in memory, and behind that where replicas share them."""

    def __init__(
        self,
        keys: Keys,
        memory: Memory,
        remote: Remote | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.keys = keys
        self.memory = memory
        self.remote = remote
        self.clock = clock
        metrics.CACHE_BYTES.set_function(lambda: memory.bytes)
        metrics.CACHE_ENTRIES.set_function(lambda: len(memory))

    def of(self, model: str, digest: str, threads: Executor | None = None) -> "Responses":
        """The part of a version, by the digest of its content; large items are hashed on
        `threads`."""
        return Responses(self, model, digest, threads)

    async def close(self) -> None:
        """Let what is to be written be written, and end."""
        if self.remote is not None:
            await self.remote.close()


@dataclass(slots=True, eq=False)
class Found:
    """What is known of the items of a message."""

    keys: Sequence[Key | None]
    values: Sequence[Value | None]
    missing: Sequence[int]
    """The indices of items that are errors are not among them."""


class Responses:
    """What one version answered, and what it is computing."""

    def __init__(self, cache: Cache, model: str, digest: str, threads: Executor | None) -> None:
        self._cache = cache
        self._digest = digest
        self._threads = threads
        self._flights = Flights()
        self._hits = metrics.CACHE_HITS.labels(model, "memory")
        self._misses = metrics.CACHE_MISSES.labels(model, "memory")
        self._remote_hits = metrics.CACHE_HITS.labels(model, "redis")
        self._remote_misses = metrics.CACHE_MISSES.labels(model, "redis")
        self._shared = metrics.CACHE_SHARED.labels(model)

    @property
    def computing(self) -> int:
        """How many keys are being computed."""
        return len(self._flights)

    async def look_up(
        self,
        identity: str,
        items: Sequence[Item | GristmillError],
        *,
        refuse_longer: bool = False,
    ) -> Found:
        """What memory has; suspends only for items so large that they are hashed on a thread."""
        of = self._cache.keys.of
        if weight(items) <= HERE_BYTES:
            keys = of(identity, self._digest, items, refuse_longer=refuse_longer)
        else:
            keys = await asyncio.get_running_loop().run_in_executor(
                self._threads,
                lambda: of(identity, self._digest, items, refuse_longer=refuse_longer),
            )
        values = self._cache.memory.lookup(keys)
        missing = [
            index
            for index, value in enumerate(values)
            if value is None and not isinstance(items[index], GristmillError)
        ]
        if len(missing) < len(items):
            self._hits.inc(len([None for value in values if value is not None]))
        if missing:
            self._misses.inc(len(missing))
        return Found(keys, values, missing)

    async def resolve(
        self, found: Found, order: Order, deadline: Deadline, compute: Compute, told: Told
    ) -> None:
        """Return when every missing item has its outcome: settled by `compute`, or told.

        `compute(indices, settle)` is awaited for the items that neither the shared cache has nor
        another message computes; it calls `settle(index, outcome)` for each, with a `Value` or
        the item's error, as soon as it is known, and may raise what refuses all of the message.
        It may be awaited again, also while it still runs, for items whose party gave up. An item
        for which `settle` is False has its outcome: `told` heard it.
        """
        wanted = [(index, found.keys[index]) for index in found.missing]
        keys = found.keys

        async def work(indices: Sequence[int], settle: Settle) -> None:
            def kept(index: int, outcome: Outcome) -> bool:
                first = settle(index, outcome)
                if first and isinstance(outcome, Value):
                    self._keep(keys[index], outcome)
                return first

            if self._cache.remote is not None:
                indices = await self._fetch(indices, keys, deadline, settle, told)
            if indices:
                await compute(indices, kept)

        def shared(index: int, outcome: Outcome) -> None:
            self._shared.inc()
            told(index, outcome)

        await share(self._flights, wanted, order, deadline, work, shared, self._cache.clock)

    async def _fetch(
        self,
        indices: Sequence[int],
        keys: Sequence[Key | None],
        deadline: Deadline,
        settle: Settle,
        told: Told,
    ) -> Sequence[int]:
        """Take what replicas have; the rest is left to compute."""
        remote = self._cache.remote
        asked = [(index, key) for index in indices if (key := keys[index]) is not None]
        if remote is None or not asked:
            return indices
        within_s = deadline.remaining(self._cache.clock())
        values = await remote.lookup([key for _, key in asked], within_s)
        got: set[int] = set()
        for (index, key), value in zip(asked, values, strict=True):
            if value is not None:
                got.add(index)
                self._cache.memory.store(key, value)
                if settle(index, value):
                    told(index, value)
        self._remote_hits.inc(len(got))
        self._remote_misses.inc(len(asked) - len(got))
        return [index for index in indices if index not in got]

    def _keep(self, key: Key | None, value: Value) -> None:
        if key is None:
            return
        self._cache.memory.store(key, value)
        if self._cache.remote is not None:
            self._cache.remote.store(key, value)
