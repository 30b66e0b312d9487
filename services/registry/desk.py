"""The desk of a worker inside the registry's own process. Knows no wire."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from services.registry.jobs import MOST_ATTEMPTS, FailureRecord, JobKind, OperationRecord
from services.registry.lifecycle import Lifecycle
from services.registry.models import Models
from services.registry.resources import (
    ArtifactRecord,
    LineageRecord,
    VersionRecord,
    version_key,
)
from services.registry.storage.blobs import Blobs
from services.registry.store import Store
from services.registry.worker.assignment import Assignment, Outcome
from services.registry.worker.folders import measured
from services.runtime.errors import NotFound


class LocalDesk:
    """Hands jobs out from the database, and files from the artifact store."""

    def __init__(self, store: Store, blobs: Blobs, models: Models, lifecycle: Lifecycle) -> None:
        self._store = store
        self._blobs = blobs
        self._models = models
        self.lifecycle = lifecycle
        self._jobs = lifecycle.jobs

    async def lease(
        self, worker: str, kinds: Sequence[JobKind], wait_s: float
    ) -> Assignment | None:
        """The next job; one over which too many workers were lost is ended instead."""
        while True:
            record = await self._jobs.lease(worker, kinds, wait_s)
            if record is None:
                return None
            if record.attempts > MOST_ATTEMPTS:
                await self.lifecycle.give_up(record)
                continue
            try:
                return await self.assigned(record)
            except NotFound as gone:
                # What it is about was deleted while it waited.
                failure = FailureRecord.of("NOT_FOUND", gone)
                await self.lifecycle.complete(record.name, record.lease, failure)

    async def assigned(self, record: OperationRecord) -> Assignment:
        """A leased operation with all that a worker needs to know."""
        version = await self._store.version(*version_key(record.subject))
        model = await self._store.model(version.model)
        dataset = record.request.get("dataset")
        return Assignment(
            operation=record.name,
            lease=record.lease,
            lease_s=self._jobs.lease_duration.total_seconds(),
            kind=record.kind,
            version=version,
            task=model.task,
            request={**record.request, "version": version.version},
            dataset=await self._store.version(*version_key(dataset)) if dataset else None,
        )

    async def renew(self, job: Assignment, progress: float, message: str) -> bool:
        """Keep the lease; True when the work should stop."""
        return await self._jobs.renew(job.operation, job.lease, progress, message)

    async def release(self, job: Assignment) -> None:
        """Give a job back that was not done."""
        await self._jobs.release(job.operation, job.lease)

    async def fetch(self, version: VersionRecord, path: str, target: Path) -> None:
        """Bring one artifact into a file, checked against its digest."""
        artifact = version.artifact(path)
        await self._blobs.fetch(artifact.sha256, artifact.size_bytes, target)

    async def publish(
        self,
        job: Assignment,
        folder: Path,
        files: Sequence[str],
        metrics: dict[str, float],
        lineage: LineageRecord,
    ) -> str:
        """Make files a new version of the job's model, uploaded, not finalized; gives its name."""
        record = await self._jobs.get(job.operation)
        made = []
        for path in files:
            digest, size = await asyncio.to_thread(measured, folder / path)
            made.append((path, ArtifactRecord(path=path, size_bytes=size, sha256=digest)))
        version = await self._models.create_version(
            record.author,
            job.version.model,
            [artifact for _, artifact in made],
            f"{lineage.conversion} of version {job.version.version}",
            {},
            metrics,
            lineage,
            dry=False,
        )
        for path, artifact in made:
            if not await self._blobs.has(artifact.sha256, artifact.size_bytes):
                await self._blobs.adopt(folder / path, artifact.sha256, artifact.size_bytes)
        return version.name

    async def complete(self, job: Assignment, outcome: Outcome) -> None:
        """End the job with what came of it."""
        await self.lifecycle.complete(job.operation, job.lease, outcome)
