"""What may be done with models, versions and aliases: the registry's use cases, one method each.

Takes and gives records. Knows no wire and no table; bytes are `blobs`' business.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath

from services.registry import resources
from services.registry.blobs import Blobs
from services.registry.resources import (
    AliasRecord,
    ArtifactRecord,
    GateRecord,
    LineageRecord,
    ModelRecord,
    Task,
    VersionRecord,
    alias_key,
    check_etag,
    check_gates,
    version_key,
)
from services.registry.store import (
    Author,
    Store,
    Write,
    belonging,
    find_alias,
    get_alias,
    get_model,
    get_version,
    holders,
)
from services.registry.validation import validate
from services.runtime.errors import AlreadyExists, FailedPrecondition, InvalidRequest, NotFound


class Models:
    """The use cases over one store and one set of blobs."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs

    async def create_model(
        self,
        author: Author,
        model: str,
        task: Task,
        description: str,
        labels: dict[str, str],
        *,
        dry: bool,
    ) -> ModelRecord:
        """A new model."""
        async with self._store.write(author, dry=dry) as write:
            if done := await write.repeated():
                return await get_model(write.connection, resources.model_id(done))
            await self._refuse_existing(write, model)
            record = ModelRecord(
                id=model,
                task=task,
                description=description,
                labels=labels,
                create_time=write.now,
                update_time=write.now,
            )
            return await write.save(None, record)

    async def _refuse_existing(self, write: Write, model: str) -> None:
        try:
            await get_model(write.connection, model)
        except NotFound:
            return
        raise AlreadyExists(f"model {model!r} exists", resource=("model", f"models/{model}"))

    async def update_model(
        self, author: Author, name: str, etag: str, fields: dict[str, object], *, dry: bool
    ) -> ModelRecord:
        """A model with other values in some of its fields."""
        async with self._store.write(author, dry=dry) as write:
            before = await get_model(write.connection, resources.model_id(name))
            if await write.repeated():
                return before
            check_etag(etag, before.etag)
            after = before.model_copy(update={**fields, "update_time": write.now})
            return await write.save(before, after)

    async def delete_model(
        self, author: Author, name: str, etag: str, *, force: bool, dry: bool
    ) -> None:
        """Delete a model with all that belongs to it."""
        async with self._store.write(author, dry=dry) as write:
            if await write.repeated():
                return
            model = await get_model(write.connection, resources.model_id(name))
            check_etag(etag, model.etag)
            children = await belonging(write.connection, model.id)
            if children and not force:
                raise FailedPrecondition(f"{name} has versions; delete it with force")
            for child in children:
                await write.remove(child)
            await write.remove(model)

    async def create_version(
        self,
        author: Author,
        model: str,
        artifacts: Sequence[ArtifactRecord],
        description: str,
        labels: dict[str, str],
        metrics: dict[str, float],
        lineage: LineageRecord | None,
        *,
        dry: bool,
    ) -> VersionRecord:
        """The next version of a model, in state uploading."""
        _check_artifacts(artifacts)
        async with self._store.write(author, dry=dry) as write:
            if done := await write.repeated():
                return await get_version(write.connection, *version_key(done))
            parent = await get_model(write.connection, model)
            number = parent.latest_version + 1
            record = VersionRecord(
                model=model,
                version=number,
                artifacts=tuple(artifacts),
                description=description,
                labels=labels,
                metrics=metrics,
                lineage=lineage,
                create_time=write.now,
                creator=author.identity,
            )
            saved = await write.save(None, record)
            await write.save(parent, parent.model_copy(update={"latest_version": number}))
            return saved

    async def finalize_version(self, author: Author, name: str) -> VersionRecord:
        """Check a version whose artifacts are all here: ready, or rejected with reasons."""
        version = await self._store.version(*version_key(name))
        if version.state not in ("uploading", "validating"):
            return version
        missing = [a.path for a in version.artifacts if not self._blobs.has(a.sha256, a.size_bytes)]
        if missing:
            raise FailedPrecondition(f"not uploaded yet: {', '.join(missing[:5])}")
        task = (await self._store.model(version.model)).task
        findings = await validate(version, task, self._blobs)
        async with self._store.write(author) as write:
            before = await get_version(write.connection, version.model, version.version)
            if before.state not in ("uploading", "validating"):
                return before
            changed: dict[str, object] = {
                "state": "rejected" if findings.rejections else "ready",
                "rejections": findings.rejections,
                "signature": findings.signature,
                "ready_time": None if findings.rejections else write.now,
            }
            return await write.save(before, before.model_copy(update=changed))

    async def update_version(
        self, author: Author, name: str, etag: str, fields: dict[str, object], *, dry: bool
    ) -> VersionRecord:
        """A version with another description, other labels or metrics."""
        async with self._store.write(author, dry=dry) as write:
            before = await get_version(write.connection, *version_key(name))
            if await write.repeated():
                return before
            check_etag(etag, before.etag)
            return await write.save(before, before.model_copy(update=fields))

    async def delete_version(self, author: Author, name: str, etag: str, *, dry: bool) -> None:
        """Delete a version that nothing points to."""
        async with self._store.write(author, dry=dry) as write:
            if await write.repeated():
                return
            version = await get_version(write.connection, *version_key(name))
            check_etag(etag, version.etag)
            if held := await holders(write.connection, version.model, version.version):
                raise FailedPrecondition(f"{name} is held by {', '.join(held)}")
            await write.remove(version)

    async def set_alias(
        self,
        author: Author,
        name: str,
        version: int,
        gates: tuple[GateRecord, ...] | None,
        etag: str,
        *,
        dry: bool,
    ) -> AliasRecord:
        """Create or move an alias; `gates` None keeps those that it has."""
        model, alias = alias_key(name)
        async with self._store.write(author, dry=dry) as write:
            if await write.repeated():
                return await get_alias(write.connection, model, alias)
            before = await find_alias(write.connection, model, alias)
            check_etag(etag, before.etag if before else "")
            candidate = await get_version(write.connection, model, version)
            if candidate.state != "ready":
                raise FailedPrecondition(f"{candidate.name} is {candidate.state}, not ready")
            rules = gates if gates is not None else before.gates if before else ()
            if before is None or before.version != version:
                holder = (
                    await get_version(write.connection, model, before.version) if before else None
                )
                check_gates(rules, candidate, holder)
            record = AliasRecord(
                model=model, alias=alias, version=version, gates=rules, update_time=write.now
            )
            if before and (before.version, before.gates) == (version, rules):
                await write.remember(before)
                return before
            return await write.save(before, record)

    async def delete_alias(self, author: Author, name: str, etag: str, *, dry: bool) -> None:
        """Delete an alias."""
        async with self._store.write(author, dry=dry) as write:
            if await write.repeated():
                return
            alias = await get_alias(write.connection, *alias_key(name))
            check_etag(etag, alias.etag)
            await write.remove(alias)


def _check_artifacts(artifacts: Sequence[ArtifactRecord]) -> None:
    if not artifacts:
        raise InvalidRequest.field("version.artifacts", "needs at least one artifact")
    paths = [artifact.path for artifact in artifacts]
    if len(set(paths)) != len(paths):
        raise InvalidRequest.field("version.artifacts", "names a path twice")
    folders = {str(folder) for path in paths for folder in PurePosixPath(path).parents}
    if both := folders.intersection(paths):
        raise InvalidRequest.field("version.artifacts", f"has {min(both)} as file and as folder")
    if any(part in (".", "..") for path in paths for part in path.split("/")):
        raise InvalidRequest.field("version.artifacts", 'has a path with "." or ".." in it')
