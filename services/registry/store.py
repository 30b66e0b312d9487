"""Reads and writes resources; each write is one transaction that also records the change.

Everything that decides is in `resources`; here are the rows. Knows no wire and no artifact bytes.
"""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar, cast

from sqlalchemy import Select, Table, and_, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from services.registry import resources
from services.registry.database import Database
from services.registry.resources import (
    KINDS,
    AliasRecord,
    ChangeRecord,
    Kind,
    ModelRecord,
    Resource,
    Task,
    VersionRecord,
    kind_of,
)
from services.registry.tables import ALIASES, CHANGES, MODELS, REQUESTS, VERSIONS
from services.runtime.errors import AlreadyExists

Clock = Callable[[], datetime]
ResourceT = TypeVar("ResourceT", ModelRecord, VersionRecord, AliasRecord)


@dataclass(frozen=True, slots=True)
class Author:
    """Who changes something, and under which ids."""

    identity: str
    call_id: str
    """The id of the call, for the logs."""
    request_id: str = ""
    """Chosen by the caller: a repetition under the same id changes nothing more."""
    method: str = ""
    digest: str = ""
    """Of the request, so that the id cannot be used for another."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All resources at one revision."""

    revision: int
    resources: list[Resource]


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Store:
    """The resources in one database."""

    def __init__(self, database: Database, clock: Clock = _utc_now) -> None:
        self._database = database
        self._clock = clock
        self.on_change: list[Callable[[int], None]] = []

    def write(self, author: Author, *, dry: bool = False) -> "Write":
        """A transaction; `dry` checks everything and changes nothing."""
        return Write(self._database, author, self._clock(), self._changed, dry=dry)

    def _changed(self, revision: int) -> None:
        for listener in self.on_change:
            listener(revision)

    async def model(self, model: str) -> ModelRecord:
        """One model."""
        async with self._database.read() as connection:
            return await get_model(connection, model)

    async def version(self, model: str, version: int) -> VersionRecord:
        """One version."""
        async with self._database.read() as connection:
            return await get_version(connection, model, version)

    async def alias(self, model: str, alias: str) -> AliasRecord:
        """One alias."""
        async with self._database.read() as connection:
            return await get_alias(connection, model, alias)

    async def models(self, after: str, limit: int) -> list[ModelRecord]:
        """Models by id, those after `after`."""
        query = select(MODELS.c.body).where(MODELS.c.model > after).order_by(MODELS.c.model)
        return await self._bodies(ModelRecord, query.limit(limit))

    async def versions(self, model: str, before: int, limit: int) -> list[VersionRecord]:
        """Versions of a model, newest first, those before `before`."""
        await self.model(model)
        query = (
            select(VERSIONS.c.body)
            .where(VERSIONS.c.model == model, VERSIONS.c.version < before)
            .order_by(VERSIONS.c.version.desc())
        )
        return await self._bodies(VersionRecord, query.limit(limit))

    async def aliases(self, model: str, after: str, limit: int) -> list[AliasRecord]:
        """Aliases of a model by name, those after `after`."""
        await self.model(model)
        query = (
            select(ALIASES.c.body)
            .where(ALIASES.c.model == model, ALIASES.c.alias > after)
            .order_by(ALIASES.c.alias)
        )
        return await self._bodies(AliasRecord, query.limit(limit))

    async def resolve(self, model: str, version: int, alias: str) -> tuple[VersionRecord, str]:
        """The version that a reference means now, and what chose it."""
        async with self._database.read() as connection:
            if version:
                return await get_version(connection, model, version), "version"
            await get_model(connection, model)
            holder = await get_alias(connection, model, alias or resources.LIVE)
            return await get_version(
                connection, model, holder.version
            ), "alias" if alias else "live"

    async def revision(self) -> int:
        """The newest revision; 0 before the first change."""
        async with self._database.read() as connection:
            return await _revision(connection)

    async def changes(self, after: int, limit: int) -> list[ChangeRecord]:
        """Changes after a revision, oldest first."""
        query = (
            select(CHANGES).where(CHANGES.c.revision > after).order_by(CHANGES.c.revision)
        ).limit(limit)
        async with self._database.read() as connection:
            return [_change(row) for row in (await connection.execute(query)).mappings()]

    async def history(self, model: str, before: int, limit: int) -> list[ChangeRecord]:
        """Changes of a model and of all that belongs to it, newest first."""
        query = (
            select(CHANGES)
            .where(CHANGES.c.model == model, CHANGES.c.revision < before)
            .order_by(CHANGES.c.revision.desc())
        ).limit(limit)
        async with self._database.read() as connection:
            return [_change(row) for row in (await connection.execute(query)).mappings()]

    async def task_at(self, model: str, revision: int) -> Task:
        """The task of a model as it was at a revision, or was last before it."""
        query = (
            select(CHANGES)
            .where(CHANGES.c.model == model, CHANGES.c.resource == "model")
            .where(CHANGES.c.revision <= revision)
            .order_by(CHANGES.c.revision.desc())
        ).limit(1)
        async with self._database.read() as connection:
            change = _change((await connection.execute(query)).mappings().one())
        known = cast(ModelRecord, change.after or change.before)
        return known.task

    async def snapshot(self) -> Snapshot:
        """Everything, as it stands at one revision."""
        found: list[Resource] = []
        async with self._database.read() as connection:
            revision = await _revision(connection)
            for table, cls in ((MODELS, ModelRecord), (VERSIONS, VersionRecord)):
                found += await _all(connection, table, cls)
            found += await _all(connection, ALIASES, AliasRecord)
        return Snapshot(revision, found)

    async def _bodies(self, cls: type[ResourceT], query: Select[str]) -> list[ResourceT]:
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).scalars()
            return [cls.model_validate_json(body) for body in rows]


class Write:
    """One transaction: changes resources and records each change."""

    def __init__(
        self,
        database: Database,
        author: Author,
        now: datetime,
        changed: Callable[[int], None],
        *,
        dry: bool,
    ) -> None:
        self._context = database.write()
        self.author = author
        self.now = now
        self._changed = changed
        self._dry = dry
        self._revision = 0
        self.connection: AsyncConnection

    async def __aenter__(self) -> "Write":
        self.connection = await self._context.__aenter__()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._dry and error is None:
            await self.connection.rollback()
        try:
            await self._context.__aexit__(
                type(error) if error else None, error, error.__traceback__ if error else None
            )
        finally:
            if error is None and not self._dry and self._revision:
                self._changed(self._revision)

    async def repeated(self) -> str | None:
        """The resource that an earlier call with this request id made or changed."""
        if not self.author.request_id:
            return None
        key = and_(
            REQUESTS.c.identity == self.author.identity,
            REQUESTS.c.request_id == self.author.request_id,
        )
        row = (await self.connection.execute(select(REQUESTS).where(key))).mappings().first()
        if row is None:
            return None
        if (row["method"], row["digest"]) != (self.author.method, self.author.digest):
            raise AlreadyExists("this request_id was used for another request")
        return str(row["resource"])

    async def save(self, before: ResourceT | None, after: ResourceT) -> ResourceT:
        """Write a resource and its change; returns it with its new etag."""
        after = after.model_copy(update={"etag": secrets.token_hex(8)})
        kind = kind_of(after)
        table, key, columns = _row(after)
        body = after.model_dump_json()
        if before is None:
            await self.connection.execute(insert(table).values(**key, **columns, body=body))
        else:
            await self.connection.execute(
                update(table).where(_equals(table, key)).values(**columns, body=body)
            )
        await self._record(kind, before, after)
        return after

    async def remove(self, before: Resource) -> None:
        """Delete a resource and record it."""
        table, key, _ = _row(before)
        await self.connection.execute(delete(table).where(_equals(table, key)))
        await self._record(kind_of(before), before, None)

    async def _record(self, kind: Kind, before: Resource | None, after: Resource | None) -> None:
        known = cast(Resource, after or before)
        what = "created" if before is None else "deleted" if after is None else "updated"
        result = await self.connection.execute(
            insert(CHANGES).values(
                commit_time=self.now,
                actor=self.author.identity,
                model=known.id if isinstance(known, ModelRecord) else known.model,
                name=known.name,
                kind=what,
                resource=kind,
                before=before.model_dump_json() if before else None,
                after=after.model_dump_json() if after else None,
                request_id=self.author.call_id,
            )
        )
        self._revision = int((result.inserted_primary_key or (0,))[0])
        await self.remember(known)

    async def remember(self, resource: Resource) -> None:
        """Keep which resource this request was about: a repetition must find it."""
        if self.author.request_id and not await self.repeated():
            await self.connection.execute(
                insert(REQUESTS).values(
                    identity=self.author.identity,
                    request_id=self.author.request_id,
                    method=self.author.method,
                    digest=self.author.digest,
                    resource=resource.name,
                    commit_time=self.now,
                )
            )


def request_digest(message: bytes) -> str:
    """What holds a request id to one request."""
    return hashlib.sha256(message).hexdigest()


async def get_model(connection: AsyncConnection, model: str) -> ModelRecord:
    """The model, or NotFound."""
    query = select(MODELS.c.body).where(MODELS.c.model == model)
    body = (await connection.execute(query)).scalar()
    if body is None:
        raise resources.model_missing(model)
    return ModelRecord.model_validate_json(body)


async def get_version(connection: AsyncConnection, model: str, version: int) -> VersionRecord:
    """The version, or NotFound."""
    query = select(VERSIONS.c.body).where(VERSIONS.c.model == model, VERSIONS.c.version == version)
    body = (await connection.execute(query)).scalar()
    if body is None:
        await get_model(connection, model)
        raise resources.version_missing(model, version)
    return VersionRecord.model_validate_json(body)


async def find_alias(connection: AsyncConnection, model: str, alias: str) -> AliasRecord | None:
    """The alias, or None."""
    query = select(ALIASES.c.body).where(ALIASES.c.model == model, ALIASES.c.alias == alias)
    body = (await connection.execute(query)).scalar()
    return AliasRecord.model_validate_json(body) if body is not None else None


async def get_alias(connection: AsyncConnection, model: str, alias: str) -> AliasRecord:
    """The alias, or NotFound."""
    found = await find_alias(connection, model, alias)
    if found is None:
        await get_model(connection, model)
        raise resources.alias_missing(model, alias)
    return found


async def holders(connection: AsyncConnection, model: str, version: int | None) -> Sequence[str]:
    """The aliases of a model that point to a version; of any version where it is None."""
    query = select(ALIASES.c.alias).where(ALIASES.c.model == model)
    if version is not None:
        query = query.where(ALIASES.c.version == version)
    return (await connection.execute(query)).scalars().all()


async def belonging(connection: AsyncConnection, model: str) -> list[Resource]:
    """All versions and aliases of a model."""
    found: list[Resource] = []
    found += await _all(connection, ALIASES, AliasRecord, ALIASES.c.model == model)
    found += await _all(connection, VERSIONS, VersionRecord, VERSIONS.c.model == model)
    return found


async def _all(
    connection: AsyncConnection,
    table: Table,
    cls: type[ModelRecord] | type[VersionRecord] | type[AliasRecord],
    where: ColumnElement[bool] | None = None,
) -> list[Resource]:
    query = select(table.c.body).order_by(*table.primary_key)
    if where is not None:
        query = query.where(where)
    rows = (await connection.execute(query)).scalars()
    return [cls.model_validate_json(body) for body in rows]


async def _revision(connection: AsyncConnection) -> int:
    found = (await connection.execute(select(func.max(CHANGES.c.revision)))).scalar()
    return int(found or 0)


def _row(resource: Resource) -> tuple[Table, dict[str, object], dict[str, object]]:
    """Table, key and columns of a resource."""
    if isinstance(resource, ModelRecord):
        columns: dict[str, object] = {
            "task": resource.task,
            "latest_version": resource.latest_version,
        }
        return MODELS, {"model": resource.id}, columns
    if isinstance(resource, VersionRecord):
        key = {"model": resource.model, "version": resource.version}
        return VERSIONS, key, {"state": resource.state}
    return (
        ALIASES,
        {"model": resource.model, "alias": resource.alias},
        {"version": resource.version},
    )


def _equals(table: Table, key: dict[str, object]) -> ColumnElement[bool]:
    return and_(*(table.c[name] == value for name, value in key.items()))


def _change(row: object) -> ChangeRecord:
    values = dict(row)  # type: ignore[call-overload]  # a RowMapping is a mapping
    cls = KINDS[values["resource"]]
    moment: datetime = values["commit_time"]
    return ChangeRecord(
        revision=values["revision"],
        commit_time=moment if moment.tzinfo else moment.replace(tzinfo=UTC),
        actor=values["actor"],
        name=values["name"],
        kind=values["kind"],
        before=cls.model_validate_json(values["before"]) if values["before"] else None,
        after=cls.model_validate_json(values["after"]) if values["after"] else None,
        request_id=values["request_id"],
    )
