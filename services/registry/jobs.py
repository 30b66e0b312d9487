"""Long work: operations in the database, leased to whoever does them. Knows no wire and no model.

An operation outlives any process. It waits until somebody leases it; a lease that is not renewed
runs out, and the work is given to another. What came of it is written in the same transaction that
ends the operation, so that it happens once.
"""

import asyncio
import secrets
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import and_, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.resources import Moment, Record
from services.registry.rows import in_utc
from services.registry.store import Author, Store, Write
from services.registry.tables import OPERATIONS
from services.registry.waiting import within
from services.runtime.errors import (
    LEASE_LOST,
    OPERATION_NOT_FOUND,
    Conflict,
    Draining,
    FailedPrecondition,
    GristmillError,
    NotFound,
)

JobKind = Literal["finalize", "import", "convert", "evaluate", "profile"]
JobState = Literal["waiting", "running", "done"]
KINDS: tuple[JobKind, ...] = get_args(JobKind)
MOST_ATTEMPTS = 3
"""Workers that may be lost over one job before it is given up."""
KEPT = timedelta(days=30)
"""How long an operation is kept, from when it was begun, once it has ended."""
WAIT_S = 5.0
"""Longest pause between looks: a lease runs out without anybody being told."""


class FailureRecord(Record):
    """Why an operation failed, as its callers are told."""

    status: str
    """A gRPC status by its name, such as FAILED_PRECONDITION."""
    reason: str
    message: str

    @classmethod
    def of(cls, status: str, error: GristmillError) -> "FailureRecord":
        """What callers are told of an error."""
        return cls(status=status, reason=error.reason_given, message=error.message)


class OperationRecord(Record):
    """One piece of long work."""

    name: str
    kind: JobKind
    state: JobState = "waiting"
    subject: str
    """The model or version that it is on."""
    request: dict[str, Any] = {}  # noqa: RUF012  # pydantic copies it
    identity: str = ""
    call_id: str = ""
    parent: str = ""
    """The operation that ends with this one."""
    progress: float = 0.0
    message: str = ""
    attempts: int = 0
    worker: str = ""
    lease: str = ""
    lease_time: Moment | None = None
    cancelled: bool = False
    result: dict[str, Any] | None = None
    failure: FailureRecord | None = None
    create_time: Moment
    end_time: Moment | None = None

    @property
    def author(self) -> Author:
        """Who asked for it: what it changes is changed in that name."""
        return Author(self.identity, self.call_id)


class Jobs:
    """The operations of one registry."""

    def __init__(self, store: Store, lease: timedelta = timedelta(seconds=30)) -> None:
        self.store = store
        self.lease_duration = lease
        self._changed = asyncio.Event()
        self._draining = False
        store.on_change.append(lambda revision: self.wake())

    def drain(self) -> None:
        """Let nobody wait any longer."""
        self._draining = True
        self.wake()

    def wake(self) -> None:
        """Let everybody who waits for work, or for its end, look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def begin(
        self,
        write: Write,
        kind: JobKind,
        subject: str,
        request: dict[str, Any],
        *,
        name: str = "",
        parent: str = "",
    ) -> OperationRecord:
        """A new operation, within a transaction; one of this name that has ended is replaced."""
        record = OperationRecord(
            name=name or f"operations/{kind}.{secrets.token_hex(8)}",
            kind=kind,
            subject=subject,
            request=request,
            identity=write.author.identity,
            call_id=write.author.call_id,
            parent=parent,
            create_time=write.now,
        )
        await write.connection.execute(
            delete(OPERATIONS).where(OPERATIONS.c.name == record.name, OPERATIONS.c.state == "done")
        )
        await write.connection.execute(insert(OPERATIONS).values(**_row(record)))
        await self.store.database.announce(write.connection, 0)
        return record

    async def get(self, name: str) -> OperationRecord:
        """The operation, or NotFound."""
        async with self.store.database.read() as connection:
            return await _get(connection, name)

    async def find(self, subject: str, kind: JobKind) -> OperationRecord | None:
        """The operation of a kind on a subject that has not ended, if there is one."""
        query = select(OPERATIONS.c.body).where(
            OPERATIONS.c.subject == subject,
            OPERATIONS.c.kind == kind,
            OPERATIONS.c.state != "done",
        )
        async with self.store.database.read() as connection:
            body = (await connection.execute(query)).scalar()
        return OperationRecord.model_validate_json(body) if body is not None else None

    async def listed(
        self, after: tuple[str, str] | None, limit: int, *, done: bool | None = None
    ) -> list[OperationRecord]:
        """Operations, newest first, those after a moment and name."""
        query = select(OPERATIONS.c.body).order_by(
            OPERATIONS.c.create_time.desc(), OPERATIONS.c.name
        )
        if after is not None:
            moment = datetime.fromisoformat(after[0])
            earlier = OPERATIONS.c.create_time < moment
            same = and_(OPERATIONS.c.create_time == moment, OPERATIONS.c.name > after[1])
            query = query.where(or_(earlier, same))
        if done is not None:
            query = query.where((OPERATIONS.c.state == "done") == done)
        async with self.store.database.read() as connection:
            found = (await connection.execute(query.limit(limit))).scalars()
            return [OperationRecord.model_validate_json(body) for body in found]

    async def wait(self, name: str, seconds: float) -> OperationRecord:
        """The operation when it has ended, or as it stands after so long."""
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            changed = self._changed
            record = await self.get(name)
            left = deadline - asyncio.get_running_loop().time()
            if record.state == "done" or left <= 0 or self._draining:
                return record
            await within(changed, min(left, WAIT_S))

    async def cancel(self, name: str) -> OperationRecord:
        """Ask that an operation end; one that nobody works on ends at once."""
        async with self.store.write(Author("", "")) as write:
            record = await _get(write.connection, name)
            if record.state == "done":
                return record
            changed = record.model_copy(update={"cancelled": True})
            await _put(write, changed)
        self.wake()
        return changed

    async def delete(self, name: str) -> None:
        """Forget an operation that has ended."""
        async with self.store.write(Author("", "")) as write:
            record = await _get(write.connection, name)
            if record.state != "done":
                raise FailedPrecondition(f"{name} has not ended; cancel it first")
            await write.connection.execute(delete(OPERATIONS).where(OPERATIONS.c.name == name))

    async def forget(self) -> int:
        """Drop the operations that ended long ago; gives how many."""
        async with self.store.write(Author("", "")) as write:
            old = and_(OPERATIONS.c.state == "done", OPERATIONS.c.create_time < write.now - KEPT)
            return (await write.connection.execute(delete(OPERATIONS).where(old))).rowcount

    async def lease(
        self, worker: str, kinds: Collection[JobKind], wait_s: float
    ) -> OperationRecord | None:
        """The oldest operation that nobody works on, with a new lease; None after `wait_s`."""
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            changed = self._changed
            if self._draining:
                raise Draining("this registry is shutting down")
            if await self._is_due(kinds) and (found := await self._lease(worker, kinds)):
                return found
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return None
            await within(changed, min(left, WAIT_S))

    async def renew(self, name: str, lease: str, progress: float, message: str) -> bool:
        """Keep a lease; True when the work should stop. Conflict where the lease is lost."""
        async with self.store.write(Author("", "")) as write:
            record = await held(write, name, lease)
            until = write.now + self.lease_duration
            changed = {"progress": progress, "message": message, "lease_time": until}
            await _put(write, record.model_copy(update=changed))
            return record.cancelled

    async def release(self, name: str, lease: str) -> None:
        """Give a job back that was not done: another may begin it at once, as if it were new."""
        async with self.store.write(Author("", "")) as write:
            record = await held(write, name, lease)
            await _put(write, _unleased(record, attempts=record.attempts - 1))
            await self.store.database.announce(write.connection, 0)
        self.wake()

    async def release_all(self) -> None:
        """Take back every lease: for a registry that has just begun and is the only one."""
        async with self.store.write(Author("", "")) as write:
            query = select(OPERATIONS.c.body).where(OPERATIONS.c.lease_time.is_not(None))
            for body in (await write.connection.execute(query)).scalars().all():
                await _put(write, _unleased(OperationRecord.model_validate_json(body)))

    async def read(self, write: Write, name: str) -> OperationRecord:
        """The operation, within a transaction."""
        return await _get(write.connection, name)

    async def suspend(self, write: Write, record: OperationRecord, result: dict[str, Any]) -> None:
        """Keep an operation open, with nobody working on it, until one that it began ends."""
        changed = {"result": result, "lease": "", "lease_time": None, "progress": 0.9}
        await _put(write, record.model_copy(update=changed))

    async def end(
        self,
        write: Write,
        record: OperationRecord,
        *,
        result: dict[str, Any] | None = None,
        failure: FailureRecord | None = None,
    ) -> None:
        """End an operation within a transaction, and those that end with it."""
        while True:
            changed: dict[str, Any] = {
                "state": "done",
                "progress": 1.0 if failure is None else record.progress,
                "result": result,
                "failure": failure,
                "end_time": write.now,
                "lease": "",
                "lease_time": None,
            }
            await _put(write, record.model_copy(update=changed))
            await self.store.database.announce(write.connection, 0)
            if not record.parent:
                return
            record = await _get(write.connection, record.parent)

    async def _is_due(self, kinds: Collection[JobKind]) -> bool:
        """Whether there may be work: asked without a writer's lock."""
        async with self.store.database.read() as connection:
            query = select(OPERATIONS.c.name).where(_due(kinds, self.store.now())).limit(1)
            return (await connection.execute(query)).scalar() is not None

    async def _lease(self, worker: str, kinds: Collection[JobKind]) -> OperationRecord | None:
        async with self.store.write(Author("", "")) as write:
            query = (
                select(OPERATIONS.c.body)
                .where(_due(kinds, write.now))
                .order_by(OPERATIONS.c.create_time)
            )
            body = (await write.connection.execute(query.limit(1))).scalar()
            if body is None:
                return None
            record = OperationRecord.model_validate_json(body)
            changed = record.model_copy(
                update={
                    "state": "running",
                    "worker": worker,
                    "lease": secrets.token_hex(8),
                    "lease_time": write.now + self.lease_duration,
                    "attempts": record.attempts + 1,
                }
            )
            await _put(write, changed)
            return changed


async def held(write: Write, name: str, lease: str) -> OperationRecord:
    """The operation that a worker holds, or Conflict when it holds it no more."""
    record = await _get(write.connection, name)
    if record.state != "running" or record.lease != lease:
        raise Conflict(f"{name} is no longer leased to this worker", reason=LEASE_LOST)
    return record


def _unleased(record: OperationRecord, **changed: Any) -> OperationRecord:
    values = {"state": "waiting", "lease": "", "lease_time": None, **changed}
    return record.model_copy(update=values)


def _due(kinds: Collection[JobKind], now: datetime) -> Any:
    lost = and_(OPERATIONS.c.state == "running", OPERATIONS.c.lease_time < now)
    return and_(OPERATIONS.c.kind.in_(kinds), or_(OPERATIONS.c.state == "waiting", lost))


async def _get(connection: AsyncConnection, name: str) -> OperationRecord:
    query = select(OPERATIONS.c.body).where(OPERATIONS.c.name == name)
    body = (await connection.execute(query)).scalar()
    if body is None:
        raise NotFound(
            f"there is no operation {name!r}",
            reason=OPERATION_NOT_FOUND,
            resource=("operation", name),
        )
    return OperationRecord.model_validate_json(body)


async def _put(write: Write, record: OperationRecord) -> None:
    row = _row(record)
    name = row.pop("name")
    changed = update(OPERATIONS).where(OPERATIONS.c.name == name).values(**row)
    await write.connection.execute(changed)


def _row(record: OperationRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "kind": record.kind,
        "state": record.state,
        "subject": record.subject,
        "create_time": in_utc(record.create_time),
        "lease_time": record.lease_time,
        "body": record.model_dump_json(),
    }
