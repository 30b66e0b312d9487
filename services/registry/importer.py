"""The importer's loop: lease an import, fetch its files, have a version made of them.

Knows neither the wire nor any source. What was fetched stays until the import ends, so that another
attempt, also of another process, goes on with it.
"""

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.registry.jobs import MOST_ATTEMPTS, FailureRecord, JobKind, Jobs, OperationRecord
from services.registry.lifecycle import CANCELLED, Lifecycle
from services.registry.models import Models
from services.registry.publishing import Publisher, unbroken
from services.registry.resources import ArtifactRecord, VersionRecord
from services.registry.sources import Sources
from services.registry.sources.fetching import Fetching
from services.registry.sources.staging import Staged, keys
from services.registry.storage.blobs import Blobs
from services.runtime import errors, logs
from services.runtime.errors import Conflict, Draining, GristmillError, NotFound

KINDS: tuple[JobKind, ...] = ("import",)
# It is not broken off: a registry that drains or closes ends it.
LEASE_WAIT_S = 30.0
RETRY_S = 2.0
SWEEP_S = 60.0
AT_ONCE = 2
"""Imports of one process: a large one does not hold up the next."""
FETCHED = 0.85
"""Progress when all the bytes are here; the rest is the check's."""
STATUS: dict[type[GristmillError], str] = {
    errors.NotFound: "NOT_FOUND",
    errors.InvalidRequest: "INVALID_ARGUMENT",
    errors.FailedPrecondition: "FAILED_PRECONDITION",
    errors.AlreadyExists: "ALREADY_EXISTS",
    errors.Conflict: "ABORTED",
    errors.DataLoss: "DATA_LOSS",
    errors.StorageFull: "RESOURCE_EXHAUSTED",
    errors.StorageFailed: "UNAVAILABLE",
    errors.UpstreamUnavailable: "UNAVAILABLE",
}


@dataclass(slots=True)
class _Import:
    """One import in hand."""

    record: OperationRecord
    staged: Staged
    fetching: Fetching
    version: VersionRecord | None = None
    """What it made, once there is something."""


@dataclass(frozen=True, slots=True)
class Importer:
    """Does the imports of one registry."""

    jobs: Jobs
    lifecycle: Lifecycle
    models: Models
    blobs: Blobs
    sources: Sources
    staging: Path
    """A folder of its own for the files of imports in hand."""
    backoff_s: Sequence[float] = (0.5, 2.0, 5.0, 15.0)
    """Pauses before a source that failed is asked again."""

    async def run(self) -> None:
        """Work for ever."""
        # Cancelled, it ends when all of them have.
        async with asyncio.TaskGroup() as group:
            group.create_task(self._clean())
            for _ in range(AT_ONCE):
                group.create_task(self._loop())

    async def once(self, wait_s: float = 0) -> bool:
        """Do the next import, if there is one now."""
        record = await self._lease(wait_s)
        if record is None:
            return False
        if record.attempts > MOST_ATTEMPTS:
            await self.lifecycle.give_up(record)
        else:
            await self._do(self._begun(record))
        return True

    async def sweep(self) -> None:
        """Remove what is left of imports that have ended."""
        for key in await asyncio.to_thread(keys, self.staging):
            try:
                record = await unbroken(self.jobs.get(f"operations/{key}"))
                ended = record.state == "done" or record.result is not None
            except NotFound:
                ended = True
            if ended:
                await asyncio.to_thread(Staged(self.staging, key).remove)

    async def _clean(self) -> None:
        while True:
            with _survived():
                await self.sweep()
            await asyncio.sleep(SWEEP_S)

    async def _loop(self) -> None:
        while True:
            pause_s = RETRY_S
            with _survived():
                await self.once(LEASE_WAIT_S)
                pause_s = 0
            await asyncio.sleep(pause_s)

    async def _lease(self, wait_s: float) -> OperationRecord | None:
        worker = f"{os.uname().nodename}-{os.getpid()}"
        leasing = asyncio.ensure_future(self.jobs.lease(worker, KINDS, wait_s))
        try:
            return await unbroken(_result(leasing))
        except asyncio.CancelledError:
            if not leasing.exception() and (record := leasing.result()):
                await self._release(record)
            raise

    async def _release(self, record: OperationRecord) -> None:
        with suppress(GristmillError):
            await unbroken(self.jobs.release(record.name, record.lease))

    def _begun(self, record: OperationRecord) -> _Import:
        staged = Staged(self.staging, record.name.removeprefix("operations/"))
        asked = (record.request["source"], record.request["path"], record.request["revision"])
        return _Import(record, staged, Fetching(self.sources, staged, *asked, self.backoff_s))

    async def _do(self, job: _Import) -> None:
        """Do one import to its end, whatever that is."""
        working = asyncio.ensure_future(self._outcome(job))
        keeping = asyncio.ensure_future(self._keep(job))
        try:
            await asyncio.wait((working, keeping), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                failure = working.result()
            else:
                job.staged.stop()
                await _ended(working)
                failure = CANCELLED if keeping.result() else None
            if failure is not None:
                with suppress(Conflict):  # somebody else has it
                    made = job.version
                    await unbroken(self._publisher.fail(job.record, job.staged, made, failure))
        except asyncio.CancelledError:
            job.staged.stop()
            await _ended(working, keeping)
            await self._release(job.record)
            raise
        finally:
            await _ended(working, keeping)

    async def _keep(self, job: _Import) -> bool:
        """Renew until the operation is cancelled (True) or the lease is lost (False)."""
        record, fetching = job.record, job.fetching
        while True:
            await asyncio.sleep(self.jobs.lease_duration.total_seconds() / 4)
            told = FETCHED * fetching.progress, fetching.message
            try:
                if await unbroken(self.jobs.renew(record.name, record.lease, *told)):
                    return True
            except (Conflict, NotFound):
                logs.get_logger().warning("lease lost", operation=record.name)
                return False
            except GristmillError as error:
                # The lease outlives several of these.
                logs.get_logger().warning("lease not renewed", error=error.message)

    async def _outcome(self, job: _Import) -> FailureRecord | None:
        """Why it failed; None once it waits for the check of its version."""
        log = logs.get_logger()
        try:
            listing = await job.fetching.list()
            made = []
            for number, file in enumerate(listing.files):
                found = await job.fetching.fetch(listing, number)
                made.append(ArtifactRecord(path=file.path, **found.model_dump()))
            # The version before its bytes: the other way round they could be collected.
            job.version = await self._publisher.create(job.record, listing, made)
            return await self._publisher.publish(job.record, job.staged, job.version)
        except GristmillError as error:
            log.warning("an import failed", operation=job.record.name, error=error.message)
            status = STATUS.get(type(error), "INTERNAL")
            return FailureRecord.of(status, error)
        except Exception:
            log.exception("an import failed", operation=job.record.name)
            said = "the importer failed; its log has the cause under this operation"
            return FailureRecord(status="INTERNAL", reason="INTERNAL", message=said)

    @property
    def _publisher(self) -> Publisher:
        return Publisher(self.jobs, self.lifecycle, self.models, self.blobs)


@contextmanager
def _survived() -> Iterator[None]:
    """Whatever fails here, the importer goes on."""
    try:
        yield
    except Draining:
        return
    except GristmillError as error:
        logs.get_logger().warning("imports pause", error=error.message)
    except Exception:
        logs.get_logger().exception("imports pause")


async def _result(future: "asyncio.Future[OperationRecord | None]") -> OperationRecord | None:
    return await future


async def _ended(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
