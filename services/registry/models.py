"""What may be done with models, versions and aliases: the registry's use cases, one method each.

Takes and gives records. Knows no wire and no table; bytes are `blobs`' business.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath

from services.registry import resources
from services.registry.resources import (
    ArtifactRecord,
    LineageRecord,
    ModelRecord,
    State,
    Task,
    VersionRecord,
    check_etag,
    version_key,
)
from services.registry.rows import belonging, get_model, get_version, pointing_at
from services.registry.store import Author, Store, Write
from services.runtime.errors import AlreadyExists, FailedPrecondition, InvalidRequest, NotFound


class Models:
    """The use cases over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

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
            if done := await write.repeated(ModelRecord):
                return done
            await _refuse_existing(write, model)
            record = ModelRecord(
                id=model,
                task=task,
                description=description,
                labels=labels,
                create_time=write.now,
                update_time=write.now,
            )
            return await write.answer(await write.save(None, record))

    async def update_model(
        self, author: Author, name: str, etag: str, fields: dict[str, object], *, dry: bool
    ) -> ModelRecord:
        """A model with other values in some of its fields."""
        async with self._store.write(author, dry=dry) as write:
            if done := await write.repeated(ModelRecord):
                return done
            before = await get_model(write.connection, resources.model_id(name))
            check_etag(etag, before.etag)
            after = before.model_copy(update={**fields, "update_time": write.now})
            return await write.answer(await write.save(before, after))

    async def archive_model(
        self, author: Author, name: str, etag: str, *, restore: bool
    ) -> ModelRecord:
        """Put a model away, or take it back."""
        async with self._store.write(author) as write:
            if done := await write.repeated(ModelRecord):
                return done
            before = await get_model(write.connection, resources.model_id(name))
            check_etag(etag, before.etag)
            if (before.archive_time is None) == restore:
                return await write.answer(before)
            changed = {"archive_time": None if restore else write.now, "update_time": write.now}
            return await write.answer(await write.save(before, before.model_copy(update=changed)))

    async def delete_model(
        self, author: Author, name: str, etag: str, *, force: bool, dry: bool
    ) -> None:
        """Delete a model with all that belongs to it."""
        async with self._store.write(author, dry=dry) as write:
            if await write.done():
                return
            model = await get_model(write.connection, resources.model_id(name))
            check_etag(etag, model.etag)
            children = await belonging(write.connection, model.id)
            if children and not force:
                raise FailedPrecondition(f"{name} has versions; delete it with force")
            for child in children:
                await write.remove(child)
            await write.remove(model)
            await write.answer(model)

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
            if done := await write.repeated(VersionRecord):
                return done
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
            return await write.answer(saved)

    async def update_version(
        self, author: Author, name: str, etag: str, fields: dict[str, object], *, dry: bool
    ) -> VersionRecord:
        """A version with another description, other labels or metrics."""
        async with self._store.write(author, dry=dry) as write:
            if done := await write.repeated(VersionRecord):
                return done
            before = await get_version(write.connection, *version_key(name))
            check_etag(etag, before.etag)
            return await write.answer(await write.save(before, before.model_copy(update=fields)))

    async def archive_version(
        self, author: Author, name: str, etag: str, *, restore: bool
    ) -> VersionRecord:
        """Put a version away that nothing points to, or take it back."""
        async with self._store.write(author) as write:
            if done := await write.repeated(VersionRecord):
                return done
            before = await get_version(write.connection, *version_key(name))
            check_etag(etag, before.etag)
            wanted: State = "ready" if restore else "archived"
            if before.state == wanted:
                return await write.answer(before)
            if before.state != ("archived" if restore else "ready"):
                raise FailedPrecondition(f"{name} is {before.state}")
            await _refuse_pointed_at(write, before)
            after = before.model_copy(update={"state": wanted})
            return await write.answer(await write.save(before, after))

    async def delete_version(self, author: Author, name: str, etag: str, *, dry: bool) -> None:
        """Delete a version that nothing points to."""
        async with self._store.write(author, dry=dry) as write:
            if await write.done():
                return
            version = await get_version(write.connection, *version_key(name))
            check_etag(etag, version.etag)
            await _refuse_pointed_at(write, version)
            await write.remove(version)
            await write.answer(version)


async def _refuse_existing(write: Write, model: str) -> None:
    try:
        await get_model(write.connection, model)
    except NotFound:
        return
    raise AlreadyExists(f"model {model!r} exists", resource=("model", f"models/{model}"))


async def _refuse_pointed_at(write: Write, version: VersionRecord) -> None:
    if held := await pointing_at(write.connection, version.model, version.version):
        raise FailedPrecondition(f"{version.name} is what {', '.join(held)} points to")


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
