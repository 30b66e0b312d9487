"""Reads resources and their history, and opens the transactions that change them.

Everything that decides is in `resources`; the rows are in `rows`. Knows no wire and no bytes.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry import resources, rows
from services.registry.database import Database
from services.registry.listing import Listing, Page, listed
from services.registry.resources import (
    AliasRecord,
    ChangeRecord,
    ModelRecord,
    Resource,
    Task,
    TrafficPolicyRecord,
    VersionRecord,
)
from services.registry.tables import ALIASES, CHANGES, MODELS, REGISTRY, REQUESTS, VERSIONS
from services.registry.write import REMEMBERED, Author, Clock, Write
from services.runtime import traffic
from services.runtime.errors import InvalidRequest, NotFound
from services.runtime.traffic import Split

__all__ = ["Author", "Snapshot", "Store", "Write", "request_digest"]
RESOLVED = 10_000
"""References whose answer is kept."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Snapshot:
    """All resources at one revision."""

    revision: int
    resources: list[Resource]


@dataclass(frozen=True, slots=True)
class Span:
    """Which changes of a model are wanted."""

    start: datetime | None = None
    """At or after this moment."""
    end: datetime | None = None
    """Before this moment."""
    resource: str = ""
    """Of this resource only."""


def utc_now() -> datetime:
    """The present moment."""
    return datetime.now(UTC)


class Store:
    """The resources in one database."""

    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self.database = database
        self._clock = clock
        self.on_change: list[Callable[[int], None]] = []
        self._resolved: dict[tuple[str, int, str], _Meaning] = {}
        self._resolved_at = self._known = -1

    def write(self, author: Author, *, dry: bool = False) -> Write:
        """A transaction; `dry` checks everything and changes nothing."""
        return Write(self.database, author, self._clock, self.changed, dry=dry)

    def now(self) -> datetime:
        """The present moment."""
        return self._clock()

    def changed(self, revision: int) -> None:
        """Tell of a change, made here or announced by another replica; 0: perhaps there is one."""
        self._resolved.clear()
        self._resolved_at = -1
        self._known = max(self._known, revision)
        for listener in self.on_change:
            listener(revision)

    async def model(self, model: str) -> ModelRecord:
        """One model."""
        async with self.database.read() as connection:
            return await rows.get_model(connection, model)

    async def version(self, model: str, version: int) -> VersionRecord:
        """One version."""
        async with self.database.read() as connection:
            return await rows.get_version(connection, model, version)

    async def find_version(self, name: str) -> VersionRecord | None:
        """The version of this name, or None; also where it is no name of a version."""
        try:
            return await self.version(*resources.version_key(name))
        except (InvalidRequest, NotFound):
            return None

    async def alias(self, model: str, alias: str) -> AliasRecord:
        """One alias."""
        async with self.database.read() as connection:
            return await rows.get_alias(connection, model, alias)

    async def policy(self, model: str) -> TrafficPolicyRecord:
        """The traffic policy of a model."""
        async with self.database.read() as connection:
            return await rows.get_policy(connection, model)

    async def batch_models(self, models: Sequence[str]) -> list[ModelRecord]:
        """Models as they are at one moment, in the order asked for."""
        async with self.database.read() as connection:
            return [await rows.get_model(connection, model) for model in models]

    async def batch_versions(self, keys: Sequence[tuple[str, int]]) -> list[VersionRecord]:
        """Versions as they are at one moment, in the order asked for."""
        async with self.database.read() as connection:
            return [await rows.get_version(connection, *key) for key in keys]

    async def models(self, listing: Listing) -> Page[ModelRecord]:
        """A page of models."""
        async with self.database.read() as connection:
            return await listed(connection, MODELS, ModelRecord, listing)

    async def versions(self, model: str, listing: Listing) -> Page[VersionRecord]:
        """A page of the versions of a model."""
        async with self.database.read() as connection:
            await rows.get_model(connection, model)
            where = VERSIONS.c.model == model
            return await listed(connection, VERSIONS, VersionRecord, listing, where)

    async def aliases(self, model: str, after: str, limit: int) -> list[AliasRecord]:
        """Aliases of a model by name, those after `after`."""
        async with self.database.read() as connection:
            await rows.get_model(connection, model)
            where = (ALIASES.c.model == model) & (ALIASES.c.alias > after)
            query = select(ALIASES.c.body).where(where).order_by(ALIASES.c.alias).limit(limit)
            found = (await connection.execute(query)).scalars()
            return [AliasRecord.model_validate_json(body) for body in found]

    async def resolve(
        self, model: str, version: int, alias: str, draw: float = 0.0
    ) -> tuple[VersionRecord, str]:
        """The version that a reference means now, and what chose it; `draw` is for a policy."""
        key = (model, version, alias)
        revision = self._resolved_at if self.database.dialect == "sqlite" else await self.revision()
        if revision != self._resolved_at:
            self._resolved.clear()
        meaning = self._resolved.get(key)
        if meaning is None:
            async with self.database.read() as connection:
                at = await _revision(connection)
                meaning = await _meaning(connection, model, version, alias)
            self._keep(key, meaning, at)
        return meaning.choose(draw)

    def _keep(self, key: tuple[str, int, str], meaning: "_Meaning", at: int) -> None:
        """Keep an answer, unless a change that it has not seen may have come meanwhile."""
        if at < max(self._known, self._resolved_at):
            return
        if at > self._resolved_at:
            self._resolved.clear()
        if len(self._resolved) >= RESOLVED:
            self._resolved.clear()
        self._resolved[key] = meaning
        self._resolved_at = at

    async def revision(self) -> int:
        """The newest revision; 0 before the first change."""
        async with self.database.read() as connection:
            return await _revision(connection)

    async def revisions(self) -> tuple[int, int]:
        """The revision after which changes can still be watched, and the newest."""
        async with self.database.read() as connection:
            row = (await connection.execute(select(REGISTRY))).one()
            return int(row.compacted), int(row.revision)

    async def compact(self, keep: int) -> int:
        """Let no watch begin further back than `keep` changes; the history itself stays."""
        async with self.database.write() as connection:
            row = (await connection.execute(select(REGISTRY))).one()
            oldest = max(int(row.compacted), int(row.revision) - keep)
            if oldest > row.compacted:
                await connection.execute(update(REGISTRY).values(compacted=oldest))
            return oldest

    @asynccontextmanager
    async def unreferenced(self, digests: Sequence[str]) -> AsyncIterator[set[str]]:
        """Those of the digests that no version holds; none begins to before this is left."""
        async with self.database.write() as connection:
            yield set(digests) - await rows.referred(connection, digests)

    async def forget_requests(self) -> int:
        """Drop the request ids that no longer hold anybody to anything; gives how many."""
        async with self.database.write() as connection:
            old = REQUESTS.c.commit_time < self._clock() - REMEMBERED
            return (await connection.execute(delete(REQUESTS).where(old))).rowcount

    async def changes(self, after: int, limit: int) -> list[ChangeRecord]:
        """Changes after a revision, oldest first."""
        query = select(CHANGES).where(CHANGES.c.revision > after).order_by(CHANGES.c.revision)
        return await self._changes(query.limit(limit))

    async def history(
        self, model: str, before: int, limit: int, span: Span = Span()
    ) -> list[ChangeRecord]:
        """Changes of a model and of all that belongs to it, newest first."""
        query = (
            select(CHANGES)
            .where(CHANGES.c.model == model, CHANGES.c.revision < before)
            .order_by(CHANGES.c.revision.desc())
        )
        if span.start:
            query = query.where(CHANGES.c.commit_time >= span.start)
        if span.end:
            query = query.where(CHANGES.c.commit_time < span.end)
        if span.resource:
            query = query.where(CHANGES.c.name == span.resource)
        return await self._changes(query.limit(limit))

    async def at(self, name: str, moment: datetime) -> Resource | None:
        """What a resource was at a moment; None where it did not exist."""
        query = (
            select(CHANGES)
            .where(CHANGES.c.name == name, CHANGES.c.commit_time <= moment)
            .order_by(CHANGES.c.revision.desc())
        ).limit(1)
        found = await self._changes(query)
        return found[0].after if found else None

    async def task_at(self, model: str, revision: int) -> Task:
        """The task of a model as it was at a revision, or was last before it."""
        query = (
            select(CHANGES)
            .where(CHANGES.c.model == model, CHANGES.c.resource == "model")
            .where(CHANGES.c.revision <= revision)
            .order_by(CHANGES.c.revision.desc())
        ).limit(1)
        (change,) = await self._changes(query)
        return cast(ModelRecord, change.after or change.before).task

    async def snapshot(self) -> Snapshot:
        """Everything, as it stands at one revision."""
        found: list[Resource] = []
        async with self.database.read() as connection:
            revision = await _revision(connection)
            for table, cls in rows.TABLES:
                found += await rows.bodies(connection, table, cls)
        return Snapshot(revision, found)

    async def _changes(self, query: Select[tuple[object, ...]]) -> list[ChangeRecord]:
        async with self.database.read() as connection:
            return rows.changes((await connection.execute(query)).mappings())


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What a reference means at one revision: one version, or the shares of a policy."""

    chosen_by: str
    versions: tuple[VersionRecord, ...]
    splits: tuple[Split, ...] = ()

    def choose(self, draw: float) -> tuple[VersionRecord, str]:
        """The version for this draw, from 0 to below 1."""
        if not self.splits:
            return self.versions[0], self.chosen_by
        return self.versions[traffic.pick(self.splits, draw)], self.chosen_by


async def _meaning(connection: AsyncConnection, model: str, version: int, alias: str) -> _Meaning:
    if version:
        return _Meaning("version", (await rows.get_version(connection, model, version),))
    await rows.get_model(connection, model)
    policy = None if alias else await rows.find_policy(connection, model)
    if policy is None:
        held = (await rows.get_alias(connection, model, alias or resources.LIVE)).version
        found = await rows.get_version(connection, model, held)
        return _Meaning("alias" if alias else "live", (found,))
    versions = []
    for split in policy.splits:
        target = split.version
        if split.alias:
            target = (await rows.get_alias(connection, model, split.alias)).version
        versions.append(await rows.get_version(connection, model, target))
    splits = tuple(Split(s.version, s.alias, s.weight) for s in policy.splits)
    return _Meaning("traffic_policy", tuple(versions), splits)


async def _revision(connection: AsyncConnection) -> int:
    return int((await connection.execute(select(func.max(REGISTRY.c.revision)))).scalar() or 0)


def request_digest(message: bytes) -> str:
    """What holds a request id to one request."""
    return hashlib.sha256(message).hexdigest()
