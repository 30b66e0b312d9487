"""Watching: the database is read from where each watcher stands, so nothing can be lost or doubled.

A watcher holds no queue: it is woken, and reads on from its own revision. One that does not take
what it is sent costs one page of memory until it is cut.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from services.registry.resources import ChangeRecord, ModelRecord, Resource, Task
from services.registry.store import Store
from services.runtime import metrics
from services.runtime.errors import Draining, OutOfRange


@dataclass(frozen=True, slots=True)
class Selection:
    """Which models a watcher wants; nothing set means all."""

    models: frozenset[str] = frozenset()
    task: Task | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A part of the snapshot, a change, or, with neither, a bookmark."""

    revision: int
    snapshot: Resource | None = None
    change: ChangeRecord | None = None
    snapshot_complete: bool = False


class Watch:
    """The watchers of one registry process."""

    def __init__(self, store: Store, page: int) -> None:
        self._store = store
        self._page = page
        self._waiting: set[asyncio.Event] = set()
        self._draining = False
        store.on_change.append(self._wake)

    def drain(self) -> None:
        """End all watches."""
        self._draining = True
        self._wake(0)

    def _wake(self, revision: int) -> None:
        if revision:
            metrics.REVISION.set(revision)
        for event in self._waiting:
            event.set()

    async def events(
        self, after: int | None, selection: Selection, bookmark_s: float
    ) -> AsyncIterator[Event]:
        """A snapshot where `after` is None, then every change, with bookmarks in the silence."""
        woken = asyncio.Event()
        tasks: dict[str, Task] = {}
        self._waiting.add(woken)
        metrics.WATCHERS.inc()
        try:
            at = after
            if at is None:
                snapshot = await self._store.snapshot()
                at = snapshot.revision
                for resource in snapshot.resources:
                    if await self._wanted(resource, at, selection, tasks):
                        yield Event(at, snapshot=resource)
                yield Event(at, snapshot_complete=True)
            elif at > await self._store.revision():
                raise OutOfRange(f"revision {at} lies in the future")
            async for event in self._follow(at, selection, tasks, bookmark_s, woken):
                yield event
        finally:
            self._waiting.discard(woken)
            metrics.WATCHERS.dec()

    async def _follow(
        self,
        at: int,
        selection: Selection,
        tasks: dict[str, Task],
        bookmark_s: float,
        woken: asyncio.Event,
    ) -> AsyncIterator[Event]:
        while True:
            woken.clear()
            changes = await self._store.changes(at, self._page)
            for change in changes:
                at = change.revision
                resource = change.after or change.before
                if resource is not None and await self._wanted(resource, at, selection, tasks):
                    yield Event(at, change=change)
            if self._draining:
                raise Draining("this server is shutting down", metadata={"revision": str(at)})
            if len(changes) < self._page and not await _within(woken, bookmark_s):
                yield Event(at)

    async def _wanted(
        self, resource: Resource, revision: int, selection: Selection, tasks: dict[str, Task]
    ) -> bool:
        model = resource.id if isinstance(resource, ModelRecord) else resource.model
        if isinstance(resource, ModelRecord):
            tasks[model] = resource.task
        if selection.models and model not in selection.models:
            return False
        if selection.task is None:
            return True
        # A model may be deleted and come back with another task: each watcher asks the history.
        if model not in tasks:
            tasks[model] = await self._store.task_at(model, revision)
        return tasks[model] == selection.task


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
