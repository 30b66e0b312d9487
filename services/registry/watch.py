"""Watching: every change once and in order, read from the database and never from memory alone.

A watcher holds no queue: it is woken, and reads on from its own revision. The newest changes are
read once for all of them; whoever is further behind reads pages of its own. One that does not take
what it is sent costs one message until it is cut.
"""

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from services.registry.resources import ChangeRecord, ModelRecord, Resource, Task
from services.registry.store import Snapshot, Store
from services.registry.waiting import within
from services.runtime import logs, metrics
from services.runtime.errors import REVISION_COMPACTED, Draining, GristmillError, OutOfRange

RETRY_S = 1.0
RECENT = 1000
"""Changes that are kept for all watchers."""


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


@dataclass(frozen=True, slots=True)
class _Recent:
    """A change with the task that its model had then."""

    change: ChangeRecord
    model: str
    task: Task


class Watch:
    """The watchers of one registry process."""

    def __init__(self, store: Store, page: int) -> None:
        self._store = store
        self._page = page
        self._waiting: set[asyncio.Event] = set()
        self._draining = False
        self._recent: deque[_Recent] = deque(maxlen=RECENT)
        self._from = -1
        """The revision after which all changes are in `_recent`; -1: nothing was read yet."""
        self._tasks: dict[str, Task] = {}
        self._pulled = asyncio.Event()
        self._pulling: asyncio.Task[None] | None = None
        self._snapshot: weakref.ref[Snapshot] | None = None
        self._reading = asyncio.Lock()
        store.on_change.append(self._wake)

    def drain(self) -> None:
        """End all watches."""
        self._draining = True
        self._tell()

    async def close(self) -> None:
        """Stop reading."""
        if self._pulling is not None:
            self._pulling.cancel()
            await asyncio.gather(self._pulling, return_exceptions=True)

    def _wake(self, revision: int) -> None:
        if revision:
            metrics.REVISION.set(revision)
        self._pulled.set()

    def _tell(self) -> None:
        for event in self._waiting:
            event.set()

    async def events(
        self, after: int | None, selection: Selection, bookmark_s: float
    ) -> AsyncGenerator[Event, None]:
        """A snapshot where `after` is None, then every change, with bookmarks in the silence."""
        if self._pulling is None:
            self._pulling = asyncio.create_task(self._pull())
        woken = asyncio.Event()
        tasks: dict[str, Task] = {}
        self._waiting.add(woken)
        metrics.WATCHERS.inc()
        try:
            at = after
            if at is None:
                snapshot = await self._shared_snapshot()
                at = snapshot.revision
                for resource in snapshot.resources:
                    if await self._wanted(resource, at, selection, tasks):
                        yield Event(at, snapshot=resource)
                del snapshot
                yield Event(at, snapshot_complete=True)
            else:
                await self._refuse_unknown(at)
            async for event in self._follow(at, selection, tasks, bookmark_s, woken):
                yield event
        finally:
            self._waiting.discard(woken)
            metrics.WATCHERS.dec()

    async def _refuse_unknown(self, at: int) -> None:
        oldest, newest = await self._store.revisions()
        if at > newest:
            raise OutOfRange(
                f"revision {at} lies in the future", metadata={"revision": f"{newest}"}
            )
        if at < oldest:
            raise OutOfRange(
                f"revision {at} is compacted; watch without a revision to begin with a snapshot",
                reason=REVISION_COMPACTED,
                metadata={"oldest_revision": str(oldest), "revision": str(newest)},
            )

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
            recent = self._after(at)
            if recent is None:
                changes = await self._store.changes(at, self._page)
                behind = len(changes) == self._page
                for change in changes:
                    at = change.revision
                    resource = change.after or change.before
                    if resource is not None and await self._wanted(resource, at, selection, tasks):
                        yield Event(at, change=change)
            else:
                behind = False
                for one in recent:
                    at = one.change.revision
                    # Where the newest changes are shared their tasks are; later ones are asked for.
                    tasks[one.model] = one.task
                    if _selects(selection, one.model, one.task):
                        yield Event(at, change=one.change)
            if self._draining:
                raise Draining("this server is shutting down", metadata={"revision": str(at)})
            if not behind and self._is_current(at) and not await within(woken, bookmark_s):
                yield Event(at)

    def _after(self, at: int) -> list[_Recent] | None:
        """The shared changes after a revision; None where they begin later than that."""
        if self._from < 0 or at < self._from:
            return None
        newest = self._recent[-1].change.revision if self._recent else self._from
        if at > newest:
            return None
        return [one for one in self._recent if one.change.revision > at]

    def _is_current(self, at: int) -> bool:
        """Whether a watcher at this revision has nothing more to read now."""
        newest = self._recent[-1].change.revision if self._recent else self._from
        return at >= newest

    async def _pull(self) -> None:
        """Read each new change once, and wake the watchers."""
        at = -1
        while True:
            self._pulled.clear()
            try:
                if at < 0:
                    at = self._from = await self._store.revision()
                changes = await self._store.changes(at, self._page)
                for change in changes:
                    await self._share(change)
                    at = change.revision
            except GristmillError as error:
                logs.get_logger().warning("changes not read", error=error.message, pause_s=RETRY_S)
                await asyncio.sleep(RETRY_S)
                continue
            self._tell()
            if len(changes) < self._page:
                await self._pulled.wait()

    async def _share(self, change: ChangeRecord) -> None:
        resource = change.after or change.before
        if resource is None:
            return
        model = _model(resource)
        if isinstance(resource, ModelRecord):
            self._tasks[model] = resource.task
        if model not in self._tasks:
            self._tasks[model] = await self._store.task_at(model, change.revision)
        if len(self._recent) == RECENT:
            self._from = self._recent[0].change.revision
        self._recent.append(_Recent(change, model, self._tasks[model]))

    async def _shared_snapshot(self) -> Snapshot:
        """Everything as it stands; those who come at the same time share one reading."""
        async with self._reading:
            found = self._snapshot() if self._snapshot else None
            if found is None or found.revision != await self._store.revision():
                found = await self._store.snapshot()
                self._snapshot = weakref.ref(found)
            return found

    async def _wanted(
        self, resource: Resource, revision: int, selection: Selection, tasks: dict[str, Task]
    ) -> bool:
        model = _model(resource)
        if isinstance(resource, ModelRecord):
            tasks[model] = resource.task
        if selection.task is None or (selection.models and model not in selection.models):
            return _selects(selection, model, None)
        # A model may be deleted and come back with another task: each watcher asks the history.
        if model not in tasks:
            tasks[model] = await self._store.task_at(model, revision)
        return _selects(selection, model, tasks[model])


def _model(resource: Resource) -> str:
    return resource.id if isinstance(resource, ModelRecord) else resource.model


def _selects(selection: Selection, model: str, task: Task | None) -> bool:
    if selection.models and model not in selection.models:
        return False
    return selection.task is None or selection.task == task
