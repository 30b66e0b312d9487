"""How a version gets through its life, and what long work does to it. Knows no wire and no model.

Each method that ends a job writes what came of it in the transaction that ends the operation.
"""

import hashlib
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert, select

from services.inference.manifest import FILE_NAME
from services.registry.jobs import MOST_ATTEMPTS, FailureRecord, JobKind, Jobs, OperationRecord
from services.registry.jobs import held as leased
from services.registry.resources import (
    ArtifactRecord,
    ProfileRecord,
    RejectionRecord,
    VersionRecord,
    model_id,
    version_key,
)
from services.registry.rows import equals, get_model, get_version
from services.registry.storage.blobs import Blobs
from services.registry.store import Author, Store, Write
from services.registry.tables import ARTIFACTS, PROFILES
from services.registry.worker.assignment import Converted, Evaluated, Outcome, Profiled, Validated
from services.registry.worker.folders import DATA_FILE
from services.runtime.errors import (
    WRONG_TASK,
    FailedPrecondition,
    NotFound,
)

MOST_METRICS = 256
OPEN = ("uploading", "quarantined")
"""States in which bytes may come and a check may begin."""
CANCELLED = FailureRecord(
    status="CANCELLED", reason="CANCELLED", message="the operation was cancelled"
)


class Lifecycle:
    """The use cases around long work."""

    def __init__(self, store: Store, blobs: Blobs, jobs: Jobs, scratch: Path) -> None:
        self._store = store
        self._blobs = blobs
        self._scratch = scratch
        self.jobs = jobs

    async def finalize(self, author: Author, name: str) -> OperationRecord | VersionRecord:
        """Begin the check of a version whose bytes are all here; the version where that is past."""
        key = version_key(name)
        version = await self._store.version(*key)
        if version.state in OPEN:
            await self._refuse_missing(version)
        async with self._store.write(author) as write:
            before = await get_version(write.connection, *key)
            if before.state in OPEN:
                await write.save(before, before.model_copy(update={"state": "validating"}))
                operation = await self._begin_finalize(write, before)
            elif before.state != "validating":
                return before
            else:
                operation = None
        self.jobs.wake()
        return operation or await self.jobs.get(finalize_name(name))

    async def begin(
        self, author: Author, kind: JobKind, name: str, request: dict[str, Any], *, dry: bool
    ) -> OperationRecord:
        """Begin other work: on a version that is ready, or an import into a model."""
        async with self._store.write(author, dry=dry) as write:
            if done := await write.response():
                return OperationRecord.model_validate_json(done)
            if kind == "import":
                await get_model(write.connection, model_id(name))
            else:
                await self._refuse_unready(write, name)
            if kind == "evaluate":
                await self._refuse_dataless(write, request["dataset"])
            record = await self.jobs.begin(write, kind, name, request)
            await write.remember(record.name, record.model_dump_json())
        self.jobs.wake()
        return record

    async def complete(self, name: str, lease: str, outcome: Outcome) -> None:
        """End a job with what came of it. Conflict where the lease is lost."""
        manifest = None
        if isinstance(outcome, Validated) and outcome.manifest and not outcome.rejections:
            manifest = await self._store_manifest(outcome.manifest)
        async with self._store.write(Author("", "")) as write:
            record = await leased(write, name, lease)
            write.author = record.author
            await self._apply(write, record, outcome, manifest)
        self.jobs.wake()

    async def cancel(self, name: str) -> None:
        """Ask that an operation end; one that nobody works on ends at once."""
        record = await self.jobs.cancel(name)
        if record.state == "done":
            return
        async with self._store.write(record.author) as write:
            record = await self.jobs.read(write, name)
            if record.state == "waiting":
                await self._fail(write, record, CANCELLED)
        if record.result is not None:
            # It waits for the check of what it made.
            await self.cancel(finalize_name(record.result["version"]))
        self.jobs.wake()

    async def give_up(self, record: OperationRecord) -> None:
        """End a job over which too many workers were lost."""
        async with self._store.write(record.author) as write:
            record = await leased(write, record.name, record.lease)
            said = f"{MOST_ATTEMPTS} workers were lost over it; it is not tried again"
            if record.kind == "finalize":
                lost = RejectionRecord(path="", rule="check-lost", message=said)
                await self._apply(write, record, Validated((lost,), None), None)
            else:
                failure = FailureRecord(status="INTERNAL", reason="BACKEND_FAILED", message=said)
                await self._fail(write, record, failure)
        self.jobs.wake()

    async def await_version(self, write: Write, record: OperationRecord, name: str) -> None:
        """Begin the check of a version that a job made; the job ends with it."""
        model = record.subject.split("/")[1]
        version = await get_version(write.connection, *version_key(name))
        if version.model != model or version.state != "uploading":
            said = f"{name} is no version that this work could have made: it is {version.state}"
            failure = FailureRecord.of("FAILED_PRECONDITION", FailedPrecondition(said))
            await self._fail(write, record, failure)
            return
        await write.save(version, version.model_copy(update={"state": "validating"}))
        await self._begin_finalize(write, version, parent=record.name)
        await self.jobs.suspend(write, record, {"version": name})

    async def profiles(self, name: str) -> list[ProfileRecord]:
        """The latency curves of a version, newest first."""
        model, version = version_key(name)
        query = (
            select(PROFILES.c.body)
            .where(PROFILES.c.model == model, PROFILES.c.version == version)
            .order_by(PROFILES.c.measure_time.desc())
        )
        async with self._store.database.read() as connection:
            await get_version(connection, model, version)
            found = (await connection.execute(query)).scalars()
            return [ProfileRecord.model_validate_json(body) for body in found]

    async def quarantine(self, artifact: ArtifactRecord) -> bool:
        """Put stored bytes that are corrupt, or gone, aside, and their versions out of use.

        Nothing is deleted: the versions are ready again once the right bytes are uploaded and they
        are finalized. False where the bytes are whole after all.
        """
        digest = artifact.sha256
        if not await self._blobs.set_aside(digest) and await self._blobs.has(
            digest, artifact.size_bytes
        ):
            return False
        why = "its stored bytes do not match their digest; upload them again, then finalize"
        async with self._store.write(Author("registry", "")) as write:
            query = select(ARTIFACTS.c.model, ARTIFACTS.c.version).where(
                ARTIFACTS.c.sha256 == digest
            )
            for key in (await write.connection.execute(query)).all():
                before = await get_version(write.connection, *key)
                if before.state in ("ready", "archived", "validating"):
                    paths = [a.path for a in before.artifacts if a.sha256 == digest]
                    found = tuple(
                        RejectionRecord(path=path, rule="digest", message=why) for path in paths
                    )
                    changed = {"state": "quarantined", "rejections": found}
                    await write.save(before, before.model_copy(update=changed))
        return True

    async def _begin_finalize(
        self, write: Write, version: VersionRecord, parent: str = ""
    ) -> OperationRecord:
        name = finalize_name(version.name)
        return await self.jobs.begin(write, "finalize", version.name, {}, name=name, parent=parent)

    async def _refuse_missing(self, version: VersionRecord) -> None:
        missing = [
            artifact.path
            for artifact in version.artifacts
            if not await self._blobs.has(artifact.sha256, artifact.size_bytes)
        ]
        if missing:
            raise FailedPrecondition(f"not uploaded yet: {', '.join(missing[:5])}")

    async def _refuse_unready(self, write: Write, name: str) -> None:
        version = await get_version(write.connection, *version_key(name))
        model = await get_model(write.connection, version.model)
        if version.state != "ready":
            raise FailedPrecondition(f"{name} is {version.state}, not ready")
        if model.task != "classification":
            raise FailedPrecondition(f"{name} is no classifier", reason=WRONG_TASK)

    async def _refuse_dataless(self, write: Write, name: str) -> None:
        data = await get_version(write.connection, *version_key(name))
        if data.state != "ready" or DATA_FILE not in {a.path for a in data.artifacts}:
            raise FailedPrecondition(f"{name} is no ready version with an artifact {DATA_FILE}")

    async def _apply(
        self,
        write: Write,
        record: OperationRecord,
        outcome: Outcome,
        manifest: ArtifactRecord | None,
    ) -> None:
        try:
            await get_version(write.connection, *version_key(record.subject))
        except NotFound as gone:
            outcome = FailureRecord.of("NOT_FOUND", gone)
        if isinstance(outcome, FailureRecord):
            await self._fail(write, record, outcome)
        elif isinstance(outcome, Converted):
            await self.await_version(write, record, outcome.version)
        elif isinstance(outcome, Validated):
            await self._validated(write, record, outcome, manifest)
        else:
            await self._measured(write, record, outcome)

    async def _validated(
        self,
        write: Write,
        record: OperationRecord,
        outcome: Validated,
        manifest: ArtifactRecord | None,
    ) -> None:
        before = await get_version(write.connection, *version_key(record.subject))
        if before.state == "validating":
            changed: dict[str, object] = {
                "state": "rejected" if outcome.rejections else "ready",
                "rejections": outcome.rejections,
                "signature": outcome.signature or before.signature,
                "ready_time": None if outcome.rejections else write.now,
            }
            if manifest is not None:
                changed["artifacts"] = (*before.artifacts, manifest)
            before = await write.save(before, before.model_copy(update=changed))
        await self.jobs.end(write, record, result={"version": before.model_dump(mode="json")})

    async def _measured(
        self, write: Write, record: OperationRecord, outcome: Evaluated | Profiled
    ) -> None:
        before = await get_version(write.connection, *version_key(record.subject))
        metrics = {**before.metrics, **outcome.metrics}
        if len(metrics) > MOST_METRICS:
            said = f"{record.subject} would have more than {MOST_METRICS} metrics"
            failure = FailureRecord.of("FAILED_PRECONDITION", FailedPrecondition(said))
            await self._fail(write, record, failure)
            return
        saved = await write.save(before, before.model_copy(update={"metrics": metrics}))
        result: dict[str, Any] = {"version": saved.model_dump(mode="json")}
        if isinstance(outcome, Profiled):
            key = {"model": saved.model, "version": saved.version}
            profile = outcome.profile.model_copy(update=key)
            row = {**key, "fingerprint": profile.fingerprint[:512]}
            await write.connection.execute(delete(PROFILES).where(equals(PROFILES, row)))
            body = profile.model_dump_json()
            values = {**row, "measure_time": profile.measure_time, "body": body}
            await write.connection.execute(insert(PROFILES).values(**values))
            result["profile"] = profile.model_dump(mode="json")
        await self.jobs.end(write, record, result=result)

    async def _fail(self, write: Write, record: OperationRecord, failure: FailureRecord) -> None:
        if record.kind == "finalize":
            with suppress(NotFound):
                before = await get_version(write.connection, *version_key(record.subject))
                if before.state == "validating":
                    # Nothing was found out about it: it can be finalized again.
                    await write.save(before, before.model_copy(update={"state": "uploading"}))
        await self.jobs.end(write, record, failure=failure)

    async def _store_manifest(self, text: str) -> ArtifactRecord:
        data = text.encode()
        digest = hashlib.sha256(data).hexdigest()
        path = self._scratch / f"manifest.{secrets.token_hex(8)}"
        path.write_bytes(data)
        # Also where it is here: what no version holds yet counts as new, and is not collected.
        await self._blobs.adopt(path, digest, len(data))
        return ArtifactRecord(path=FILE_NAME, size_bytes=len(data), sha256=digest)


def finalize_name(name: str) -> str:
    """The name of the operation that checks the version of this name."""
    return "operations/finalize.{}.{}".format(*version_key(name))
