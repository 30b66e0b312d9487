"""One transaction that changes resources: each change is recorded with it. Knows no wire.

A change gets the next revision of the one row that every writer holds locked, and a time that is
never before that of the change before it: so the history can be asked for a moment.
"""

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar, cast

from sqlalchemy import and_, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.database import Database
from services.registry.resources import (
    AliasRecord,
    Kind,
    ModelRecord,
    Resource,
    TrafficPolicyRecord,
    VersionRecord,
    kind_of,
)
from services.registry.rows import equals, in_utc, place
from services.registry.tables import ARTIFACTS, CHANGES, REGISTRY, REQUESTS
from services.runtime.errors import AlreadyExists, InvalidRequest

Clock = Callable[[], datetime]
ResourceT = TypeVar("ResourceT", ModelRecord, VersionRecord, AliasRecord, TrafficPolicyRecord)
REMEMBERED = timedelta(hours=24)
"""How long a request id holds a caller to its request."""
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""As JSON writes it. PostgreSQL reads no document that has one: each list would fail."""


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


class Write:
    """A transaction; `dry` checks everything and changes nothing."""

    connection: AsyncConnection
    now: datetime

    def __init__(
        self,
        database: Database,
        author: Author,
        clock: Clock,
        changed: Callable[[int], None],
        *,
        dry: bool,
    ) -> None:
        self._database = database
        self._context = database.write()
        self.author = author
        self._clock = clock
        self._changed = changed
        self._dry = dry
        self._revision = self._before = 0

    async def __aenter__(self) -> "Write":
        self.connection = await self._context.__aenter__()
        try:
            row = (await self.connection.execute(select(REGISTRY))).one()
        except BaseException as error:
            await self._leave(error)
            raise
        self._revision = self._before = row.revision
        # Read with the lock in hand: revisions and times have the same order.
        self.now = max(self._clock(), in_utc(row.commit_time))
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        changed = error is None and not self._dry and self._revision > self._before
        try:
            if changed:
                await self._count()
            elif self._dry and error is None:
                await self.connection.rollback()
        except BaseException as failed:
            # Whatever ends it, a cancellation too: nobody can write until the context is left.
            await self._leave(failed)
            raise
        await self._leave(error)
        if changed:
            self._changed(self._revision)

    async def _leave(self, error: BaseException | None) -> None:
        trace = error.__traceback__ if error else None
        await self._context.__aexit__(type(error) if error else None, error, trace)

    async def _count(self) -> None:
        values = {"revision": self._revision, "commit_time": self.now}
        await self.connection.execute(update(REGISTRY).values(**values))
        await self._database.announce(self.connection, self._revision)

    async def repeated(self, cls: type[ResourceT]) -> ResourceT | None:
        """What an earlier call with this request id answered, within the last 24 hours."""
        row = await self._remembered()
        return cls.model_validate_json(row["response"]) if row else None

    async def response(self) -> str | None:
        """The answer of an earlier call with this request id, as JSON."""
        row = await self._remembered()
        return row["response"] if row else None

    async def done(self) -> bool:
        """Whether an earlier call with this request id did this already."""
        return await self._remembered() is not None

    async def _remembered(self) -> dict[str, str] | None:
        if not self.author.request_id:
            return None
        query = select(REQUESTS).where(
            REQUESTS.c.identity == self.author.identity,
            REQUESTS.c.request_id == self.author.request_id,
        )
        row = (await self.connection.execute(query)).mappings().first()
        if row is None or row["response"] is None or self._is_old(row["commit_time"]):
            return None
        if (row["method"], row["digest"]) != (self.author.method, self.author.digest):
            raise AlreadyExists("this request_id was used for another request")
        return dict(row)

    def _is_old(self, moment: datetime) -> bool:
        return in_utc(moment) <= self.now - REMEMBERED

    async def save(self, before: ResourceT | None, after: ResourceT) -> ResourceT:
        """Write a resource and its change; returns it with its new etag."""
        after = after.model_copy(update={"etag": secrets.token_hex(8)})
        table, key, columns = place(after)
        body = after.model_dump_json()
        if _NUL.search(body):
            raise InvalidRequest("a text has a NUL in it, which cannot be stored")
        if before is None:
            await self.connection.execute(insert(table).values(**key, **columns, body=body))
        else:
            changed = update(table).where(equals(table, key)).values(**columns, body=body)
            await self.connection.execute(changed)
        if isinstance(after, VersionRecord):
            await self._refer(before if isinstance(before, VersionRecord) else None, after)
        await self._record(kind_of(after), before, after)
        return after

    async def remove(self, before: Resource) -> None:
        """Delete a resource and record it."""
        table, key, _ = place(before)
        await self.connection.execute(delete(table).where(equals(table, key)))
        if isinstance(before, VersionRecord):
            await self.connection.execute(delete(ARTIFACTS).where(equals(ARTIFACTS, key)))
        await self._record(kind_of(before), before, None)

    async def _refer(self, before: VersionRecord | None, after: VersionRecord) -> None:
        """Keep which bytes the version holds, so that they are not collected."""
        known = {artifact.sha256 for artifact in before.artifacts} if before else set()
        rows = [
            {"sha256": digest, "model": after.model, "version": after.version}
            for digest in {artifact.sha256 for artifact in after.artifacts} - known
        ]
        if rows:
            await self.connection.execute(insert(ARTIFACTS), rows)

    async def _record(self, kind: Kind, before: Resource | None, after: Resource | None) -> None:
        known = cast(Resource, after or before)
        self._revision += 1
        await self.connection.execute(
            insert(CHANGES).values(
                revision=self._revision,
                commit_time=self.now,
                actor=self.author.identity,
                model=known.id if isinstance(known, ModelRecord) else known.model,
                name=known.name,
                kind="created" if before is None else "deleted" if after is None else "updated",
                resource=kind,
                before=before.model_dump_json() if before else None,
                after=after.model_dump_json() if after else None,
                request_id=self.author.call_id,
            )
        )

    async def remember(self, name: str, response: str) -> None:
        """Keep what this request was answered: a repetition is answered the same."""
        if not self.author.request_id:
            return
        key = {"identity": self.author.identity, "request_id": self.author.request_id}
        # One from before the last 24 hours may still be there.
        await self.connection.execute(
            delete(REQUESTS).where(and_(*(REQUESTS.c[k] == v for k, v in key.items())))
        )
        await self.connection.execute(
            insert(REQUESTS).values(
                **key,
                method=self.author.method,
                digest=self.author.digest,
                resource=name,
                commit_time=self.now,
                response=response,
            )
        )

    async def answer(self, resource: ResourceT) -> ResourceT:
        """Remember `resource` as the answer of this request, and give it back."""
        await self.remember(resource.name, resource.model_dump_json())
        return resource
