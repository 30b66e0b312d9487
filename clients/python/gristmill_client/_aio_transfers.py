"""One upload or download call, awaiting; going on after a cut is the flow's."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

import grpc
from gristmill.registry.v1 import registry_service_pb2 as pb

from gristmill_client import _registry_messages as messages
from gristmill_client._aio_calls import LOST_STATUS
from gristmill_client._config import Metadata
from gristmill_client._steps import TRANSFER_TIMEOUT_S, Download, Upload
from gristmill_client.errors import Unavailable

if TYPE_CHECKING:  # the generated code has this name for type checkers only
    from gristmill.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

_Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.UploadArtifactRequest, pb.UploadArtifactResponse]"


async def upload(stub: RegistryServiceAsyncStub, metadata: Metadata, step: Upload) -> None:
    """Sends the file from the offset that the registry names. Raises grpc.RpcError, OSError."""
    call: _Call = stub.UploadArtifact(timeout=TRANSFER_TIMEOUT_S, metadata=metadata)
    sender: asyncio.Task[None] | None = None
    complete = False
    try:
        with suppress(asyncio.InvalidStateError):  # the call failed already: reading says how
            await call.write(messages.upload_start(step.version, step.file))
        async for response in call:
            step.on_durable(response.durable_bytes)
            complete = response.complete
            if sender is None:
                offset = None if complete else response.durable_bytes
                sender = asyncio.create_task(_send(call, step, offset))
        if sender is not None:
            await sender
    except grpc.aio.AioRpcError as error:
        if error.details() == LOST_STATUS:
            # A refusal will be said again when the call is opened again.
            raise Unavailable("the upload was cut while sending") from error
        raise
    finally:
        call.cancel()
        if sender is not None:
            sender.cancel()
            await asyncio.wait([sender])
    if not complete:
        raise Unavailable("the registry ended the upload before it was complete")


async def _send(call: _Call, step: Upload, offset: int | None) -> None:
    chunks = iter(()) if offset is None else messages.upload_chunks(step.file, offset)
    # A call that has failed takes no more; the reading side says how it failed.
    with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
        try:
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                await call.write(chunk)
        finally:
            await call.done_writing()  # a file that cannot be read ends the call too


async def download(stub: RegistryServiceAsyncStub, metadata: Metadata, step: Download) -> None:
    """Appends to the file until the registry ends the call. Raises grpc.RpcError."""
    request = pb.DownloadArtifactRequest(
        version=step.version, path=step.path, offset=step.file.size
    )
    call = stub.DownloadArtifact(request, timeout=TRANSFER_TIMEOUT_S, metadata=metadata)
    try:
        async for response in call:
            if response.chunk.data:
                chunk = response.chunk
                await asyncio.to_thread(step.file.write, chunk.offset, chunk.data)
                step.on_written(step.file.size)
    finally:
        call.cancel()
    if not step.file.complete:
        raise Unavailable("the registry ended the download before it was complete")
