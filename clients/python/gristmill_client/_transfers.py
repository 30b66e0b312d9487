"""One upload or download call, blocking; going on after a cut is the flow's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

from gristmill.registry.v1 import registry_service_pb2 as pb
from gristmill.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from gristmill_client import _registry_messages as messages
from gristmill_client._config import Metadata
from gristmill_client._steps import TRANSFER_TIMEOUT_S, Download, Upload
from gristmill_client.errors import Unavailable


def upload(stub: RegistryServiceStub, metadata: Metadata, step: Upload) -> None:
    """Sends the file from the offset that the registry names. Raises grpc.RpcError, OSError."""
    begin: Future[int | None] = Future()
    failures: list[OSError] = []
    call = stub.UploadArtifact(
        _requests(step, begin, failures), timeout=TRANSFER_TIMEOUT_S, metadata=metadata
    )
    complete = False
    try:
        for response in call:
            step.on_durable(response.durable_bytes)
            complete = response.complete
            if not begin.done():
                begin.set_result(None if complete else response.durable_bytes)
    finally:
        if not begin.done():
            begin.set_result(None)  # or the thread that sends would wait for ever
        call.cancel()
    if failures:
        raise failures[0]
    if not complete:
        raise Unavailable("the registry ended the upload before it was complete")


def _requests(
    step: Upload, begin: Future[int | None], failures: list[OSError]
) -> Iterator[pb.UploadArtifactRequest]:
    """Runs on a thread of gRPC's, which would swallow what is raised here."""
    yield messages.upload_start(step.version, step.file)
    offset = begin.result()
    try:
        if offset is not None:
            yield from messages.upload_chunks(step.file, offset)
    except OSError as error:
        failures.append(error)


def download(stub: RegistryServiceStub, metadata: Metadata, step: Download) -> None:
    """Appends to the file until the registry ends the call. Raises grpc.RpcError."""
    request = pb.DownloadArtifactRequest(
        version=step.version, path=step.path, offset=step.file.size
    )
    call = stub.DownloadArtifact(request, timeout=TRANSFER_TIMEOUT_S, metadata=metadata)
    try:
        for response in call:
            if response.chunk.data:
                step.file.write(response.chunk.offset, response.chunk.data)
                step.on_written(step.file.size)
    finally:
        call.cancel()
    if not step.file.complete:
        raise Unavailable("the registry ended the download before it was complete")
