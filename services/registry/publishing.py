"""What an import ends with: a version whose check has begun, or a failure. Knows no source.

Each step may be taken again by another process: the version is the same one, and so are its bytes.
"""

import asyncio
import hashlib
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from services.registry.jobs import FailureRecord, Jobs, OperationRecord, held
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
from services.registry.sources import Listing
from services.registry.sources.staging import Staged
from services.registry.storage.blobs import Blobs
from services.registry.store import Author
from services.runtime.errors import FailedPrecondition, GristmillError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Publisher:
    """Ends the imports of one registry."""

    jobs: Jobs
    lifecycle: Lifecycle
    models: Models
    blobs: Blobs

    async def create(
        self, record: OperationRecord, listing: Listing, artifacts: Sequence[ArtifactRecord]
    ) -> VersionRecord:
        """The version of these artifacts: the same one, where an earlier attempt made it."""
        key = record.name.removeprefix("operations/")
        digest = hashlib.sha256(repr(artifacts).encode()).hexdigest()
        origin = f"{record.request['source']}:{listing.path}"
        lineage = LineageRecord(source=origin, revision=listing.revision, facts=listing.facts)
        return await unbroken(
            self.models.create_version(
                Author(record.identity, record.call_id, key, "import", digest),
                model_id(record.subject),
                artifacts,
                f"imported from {origin}",
                {},
                {},
                lineage,
                dry=False,
            )
        )

    async def publish(
        self, record: OperationRecord, staged: Staged, version: VersionRecord
    ) -> FailureRecord | None:
        """Bring the bytes of a version, and begin its check: the import ends with that."""
        for number, artifact in enumerate(version.artifacts):
            if not await self.blobs.has(artifact.sha256, artifact.size_bytes):
                path = staged.path(number)
                await self.blobs.adopt(path, artifact.sha256, artifact.size_bytes)
        if failure := await unbroken(self._check(record, version)):
            return failure
        self.jobs.wake()
        await asyncio.to_thread(staged.remove)
        return None

    async def fail(
        self,
        record: OperationRecord,
        staged: Staged,
        made: VersionRecord | None,
        failure: FailureRecord,
    ) -> None:
        """End an import that made nothing of use."""
        async with self.jobs.store.write(record.author) as write:
            present = await held(write, record.name, record.lease)
            await self.jobs.end(write, present, failure=failure)
        self.jobs.wake()
        if made is not None:
            # Not where somebody did something with it meanwhile.
            with suppress(GristmillError):
                await self.models.delete_version(record.author, made.name, made.etag, dry=False)
        await asyncio.to_thread(staged.remove)

    async def _check(self, record: OperationRecord, made: VersionRecord) -> FailureRecord | None:
        async with self.jobs.store.write(record.author) as write:
            present = await held(write, record.name, record.lease)
            if present.cancelled:
                return CANCELLED
            version = await get_version(write.connection, *version_key(made.name))
            if version.state not in OPEN:
                raise FailedPrecondition(f"{version.name} was finalized by somebody else")
            await self.lifecycle.await_version(write, present, version.name)
        return None


async def unbroken(work: Coroutine[Any, Any, T]) -> T:
    """Let `work` end before a cancellation goes on: a connection cut in the middle would be lost.

    What it gives, or raises, is dropped then.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise
