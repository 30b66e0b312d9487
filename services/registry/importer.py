"""The importer's loop: lease an import, fetch its files, make a version of them, have it checked.

Knows neither the wire nor any source. What was fetched stays until the import ends, so that another
attempt, also of another process, goes on with it.
"""

import asyncio
import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.registry.jobs import (
    MOST_ATTEMPTS,
    FailureRecord,
    JobKind,
    Jobs,
    OperationRecord,
    held,
)
from services.registry.lifecycle import CANCELLED, OPEN, Lifecycle
from services.registry.models import Models
from services.registry.resources import (
    ArtifactRecord,
    LineageRecord,
    VersionRecord,
    model_id,
    version_key,
)
from services.registry.rows import get_version
from services.registry.sources import Listing, Sources
from services.registry.sources.fetching import Fetching
from services.registry.sources.staging import Staged, keys
from services.registry.storage.blobs import Blobs
from services.registry.store import Author
from services.runtime import errors, logs
from services.runtime.errors import Conflict, FailedPrecondition, GristmillError, NotFound

KINDS: tuple[JobKind, ...] = ("import",)
LEASE_WAIT_S = 30.0
RETRY_S = 2.0
IDLE_S = 0.2
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
        await asyncio.gather(*(self._loop() for _ in range(AT_ONCE)))

    async def once(self, wait_s: float = 0) -> bool:
        """Do the next import, if there is one now."""
        worker = f"{os.uname().nodename}-{os.getpid()}"
        record = await self.jobs.lease(worker, KINDS, wait_s)
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
                record = await self.jobs.get(f"operations/{key}")
                ended = record.state == "done" or record.result is not None
            except NotFound:
                ended = True
            if ended:
                await asyncio.to_thread(Staged(self.staging, key).remove)

    async def _loop(self) -> None:
        while True:
            try:
                await self.sweep()
                # A registry that drains gives nothing, and that at once.
                if not await self.once(LEASE_WAIT_S):
                    await asyncio.sleep(IDLE_S)
            except GristmillError as error:
                logs.get_logger().warning("imports pause", error=error.message, pause_s=RETRY_S)
                await asyncio.sleep(RETRY_S)
            except Exception:
                logs.get_logger().exception("imports pause", pause_s=RETRY_S)
                await asyncio.sleep(RETRY_S)

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
                    await self._fail(job, failure)
        except asyncio.CancelledError:
            job.staged.stop()
            await _ended(working, keeping)
            with suppress(GristmillError):
                await self.jobs.release(job.record.name, job.record.lease)
            raise
        finally:
            await _ended(working, keeping)

    async def _keep(self, job: _Import) -> bool:
        """Renew until the operation is cancelled (True) or the lease is lost (False)."""
        record, fetching = job.record, job.fetching
        while True:
            await asyncio.sleep(self.jobs.lease_duration.total_seconds() / 4)
            progress, message = FETCHED * fetching.progress, fetching.message
            try:
                if await self.jobs.renew(record.name, record.lease, progress, message):
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
            return await self._publish(job, listing, made)
        except GristmillError as error:
            log.warning("an import failed", operation=job.record.name, error=error.message)
            status = STATUS.get(type(error), "INTERNAL")
            return FailureRecord(status=status, reason=error.reason_given, message=error.message)
        except Exception:
            log.exception("an import failed", operation=job.record.name)
            said = "the importer failed; its log has the cause under this operation"
            return FailureRecord(status="INTERNAL", reason="INTERNAL", message=said)

    async def _publish(
        self, job: _Import, listing: Listing, artifacts: Sequence[ArtifactRecord]
    ) -> FailureRecord | None:
        """Make the version, then bring its bytes: the other way round they could be collected."""
        job.version = await self._create(job.record, listing, artifacts)
        for number, artifact in enumerate(artifacts):
            if not await self.blobs.has(artifact.sha256, artifact.size_bytes):
                path = job.staged.path(number)
                await self.blobs.adopt(path, artifact.sha256, artifact.size_bytes)
        async with self.jobs.store.write(job.record.author) as write:
            record = await held(write, job.record.name, job.record.lease)
            if record.cancelled:
                return CANCELLED
            version = await get_version(write.connection, *version_key(job.version.name))
            if version.state not in OPEN:
                raise FailedPrecondition(f"{version.name} was finalized by somebody else")
            await self.lifecycle.await_version(write, record, version.name)
        self.jobs.wake()
        await asyncio.to_thread(job.staged.remove)
        return None

    async def _create(
        self, record: OperationRecord, listing: Listing, artifacts: Sequence[ArtifactRecord]
    ) -> VersionRecord:
        """The version of these artifacts: the same one, where an earlier attempt made it."""
        key = record.name.removeprefix("operations/")
        digest = hashlib.sha256(repr(artifacts).encode()).hexdigest()
        origin = f"{record.request['source']}:{listing.path}"
        lineage = LineageRecord(source=origin, revision=listing.revision, facts=listing.facts)
        return await self.models.create_version(
            Author(record.identity, record.call_id, key, "import", digest),
            model_id(record.subject),
            artifacts,
            f"imported from {origin}",
            {},
            {},
            lineage,
            dry=False,
        )

    async def _fail(self, job: _Import, failure: FailureRecord) -> None:
        """End an import that made nothing of use."""
        record = job.record
        async with self.jobs.store.write(record.author) as write:
            present = await held(write, record.name, record.lease)
            await self.jobs.end(write, present, failure=failure)
        self.jobs.wake()
        if made := job.version:
            # Not where somebody did something with it meanwhile.
            with suppress(GristmillError):
                await self.models.delete_version(record.author, made.name, made.etag, dry=False)
        await asyncio.to_thread(job.staged.remove)


async def _ended(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
