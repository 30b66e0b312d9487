"""The streaming calls of the registry: bytes up, bytes down, changes out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from gristmill.registry.v1 import registry_service_pb2 as pb

from services.registry import converters as to
from services.registry import readers
from services.registry.lifecycle import OPEN, Lifecycle
from services.registry.resources import ArtifactRecord, VersionRecord, model_id, version_key
from services.registry.storage.blobs import Blobs, Upload
from services.registry.store import Store
from services.registry.watch import RECENT, Event, Selection, Watch
from services.runtime.errors import (
    ARTIFACT_NOT_FOUND,
    DataLoss,
    Draining,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    SlowConsumer,
)


class ArtifactCalls:
    """UploadArtifact, DownloadArtifact and Watch."""

    store: Store
    blobs: Blobs
    lifecycle: Lifecycle
    watch: Watch
    draining: asyncio.Event
    send_timeout_s: float
    """How long a watcher may leave a message unread."""
    _messages: dict[int, pb.WatchResponse]

    async def shown(self, record: VersionRecord) -> Any:
        """A version as callers see it: each artifact says whether its bytes are here."""
        stored = frozenset[str]()
        if record.state in OPEN:
            here = [
                artifact.sha256
                for artifact in record.artifacts
                if await self.blobs.has(artifact.sha256, artifact.size_bytes)
            ]
            stored = frozenset(here)
        return to.version_out(record, stored)

    async def UploadArtifact(  # noqa: N802
        self, requests: AsyncIterator[pb.UploadArtifactRequest], context: Any
    ) -> AsyncIterator[pb.UploadArtifactResponse]:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "start":
            raise InvalidRequest.field("message", "the first must be start")
        version = await self.store.version(*version_key(first.start.version))
        artifact = version.artifact(first.start.path)
        stored = await self.blobs.has(artifact.sha256, artifact.size_bytes)
        if version.state not in OPEN and not stored:
            raise FailedPrecondition(f"{version.name} is {version.state}, not uploading")
        upload = await self.blobs.open_upload(artifact.sha256, artifact.size_bytes)
        if upload is None:
            yield pb.UploadArtifactResponse(durable_bytes=artifact.size_bytes, complete=True)
            return
        try:
            yield pb.UploadArtifactResponse(durable_bytes=upload.durable_bytes)
            async for durable in self._receive(requests, upload):
                yield pb.UploadArtifactResponse(durable_bytes=durable)
            yield pb.UploadArtifactResponse(durable_bytes=upload.durable_bytes, complete=True)
        finally:
            await upload.close()

    async def _receive(
        self, requests: AsyncIterator[pb.UploadArtifactRequest], upload: Upload
    ) -> AsyncIterator[int]:
        """Append until the upload is whole; gives each new durable offset."""
        while not upload.whole:
            request = await _or_drain(anext(requests, None), self.draining)
            if request is None:
                raise InvalidRequest.field("chunk", "the bytes end before the declared size")
            if request.WhichOneof("message") != "chunk":
                raise InvalidRequest.field("message", "after the first, each must be chunk")
            if await upload.write(request.chunk.offset, request.chunk.data):
                yield upload.durable_bytes
        await upload.complete()

    async def DownloadArtifact(  # noqa: N802
        self, request: pb.DownloadArtifactRequest, context: Any
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        version = await self.store.version(*version_key(request.version))
        artifact = version.artifact(request.path)
        response = pb.DownloadArtifactResponse(
            size_bytes=artifact.size_bytes, sha256=artifact.sha256
        )
        first = True
        async for offset, data in self._read(version, artifact, request.offset, request.length):
            chunk = pb.Chunk(offset=offset, data=data)
            if first:
                response.chunk.CopyFrom(chunk)
                yield response
                first = False
            else:
                yield pb.DownloadArtifactResponse(chunk=chunk)
        if first:
            yield response  # an empty file still has a size and a digest to tell

    async def _read(
        self, version: VersionRecord, artifact: ArtifactRecord, offset: int, length: int
    ) -> AsyncIterator[tuple[int, bytes]]:
        """Runs of bytes; what is corrupt, or gone, is quarantined on the way."""
        try:
            async for run in self.blobs.read(artifact.sha256, artifact.size_bytes, offset, length):
                yield run
        except DataLoss:
            await self.lifecycle.quarantine(artifact)
            raise
        except NotFound as error:
            if version.state in OPEN:
                if version.state == "quarantined":
                    raise DataLoss(
                        f"{version.name} is quarantined: the bytes of {artifact.path} were corrupt",
                        metadata={"sha256": artifact.sha256},
                    ) from error
                raise NotFound(
                    f"the bytes of {artifact.path} were not uploaded yet",
                    reason=ARTIFACT_NOT_FOUND,
                    resource=("artifact", f"{version.name}/{artifact.path}"),
                ) from error
            await self.lifecycle.quarantine(artifact)
            raise DataLoss(
                f"the stored bytes of {artifact.path} are gone",
                metadata={"sha256": artifact.sha256},
            ) from error

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        selection = Selection(
            frozenset(model_id(name) for name in request.names),
            readers.task_in(request.task, "task") if request.task else None,
        )
        seconds = 30.0
        if request.HasField("bookmark_interval"):
            seconds = readers.seconds(request.bookmark_interval)
        after = request.after_revision if request.HasField("after_revision") else None
        async with aclosing(self.watch.events(after, selection, seconds)) as events:
            async for event in events:
                await self._send(context, event)
        return
        yield  # the edge takes a stream's handler to be a generator

    async def _send(self, context: Any, event: Event) -> None:
        """Send an event; SlowConsumer where nobody takes it."""
        try:
            async with asyncio.timeout(self.send_timeout_s):
                await context.write(self._message(event))
        except TimeoutError:
            # This one may arrive or not: the watcher knows what it has, and goes on from there.
            raise SlowConsumer(
                "the watch was read too slowly and is cut; go on from the last revision received",
                metadata={"revision": str(event.revision)},
            ) from None

    def _message(self, event: Event) -> pb.WatchResponse:
        """An event on the wire; a change is made a message once for all watchers."""
        if event.change is None:
            return _event_out(event)
        found = self._messages.get(event.revision)
        if found is None:
            if len(self._messages) >= RECENT:
                self._messages.clear()
            found = self._messages[event.revision] = _event_out(event)
        return found


def _event_out(event: Event) -> pb.WatchResponse:
    if event.snapshot is not None:
        return pb.WatchResponse(revision=event.revision, snapshot=to.resource_out(event.snapshot))
    if event.change is not None:
        return pb.WatchResponse(revision=event.revision, change=to.change_out(event.change))
    return pb.WatchResponse(
        revision=event.revision, bookmark=pb.Bookmark(snapshot_complete=event.snapshot_complete)
    )


async def _or_drain(waiting: Any, draining: asyncio.Event) -> Any:
    """What `waiting` gives, or Draining when the server begins to shut down first."""
    received = asyncio.ensure_future(waiting)
    drained = asyncio.ensure_future(draining.wait())
    try:
        await asyncio.wait((received, drained), return_when=asyncio.FIRST_COMPLETED)
        if received.done():
            return received.result()
        raise Draining("this server is shutting down; the durable offset stays")
    finally:
        received.cancel()
        drained.cancel()
