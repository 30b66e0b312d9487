"""The desk of a worker that runs elsewhere: the registry over gRPC, as any client sees it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from gristmill.registry.v1 import artifact_pb2, model_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb
from gristmill.registry.v1 import registry_service_pb2_grpc as registry_rpc
from gristmill.registry.v1 import worker_service_pb2 as worker
from gristmill.registry.v1 import worker_service_pb2_grpc as worker_rpc

from services.registry import converters as to
from services.registry import readers
from services.registry.jobs import JobKind
from services.registry.resources import LineageRecord, VersionRecord
from services.registry.worker.assignment import (
    Assignment,
    Converted,
    Evaluated,
    Outcome,
    Profiled,
    Validated,
)
from services.registry.worker.folders import measured
from services.registry.worker_calls import KINDS, NUMBERS
from services.runtime.errors import (
    Conflict,
    DataLoss,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    UpstreamUnavailable,
)
from services.runtime.status import DOMAIN

CHUNK = 1 << 20
CALL_S, FILE_S = 30.0, 3600.0


class RemoteDesk:
    """Jobs and files of the registry at the other end of a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._registry: Any = registry_rpc.RegistryServiceStub(channel)
        self._worker: Any = worker_rpc.WorkerServiceStub(channel)

    async def lease(
        self, worker_name: str, kinds: Sequence[JobKind], wait_s: float
    ) -> Assignment | None:
        """The next job; None when there was none for so long."""
        request = worker.LeaseJobRequest(
            worker=worker_name,
            kinds=[NUMBERS[kind] for kind in kinds],  # type: ignore[misc]  # numbers of the enum
            wait=_duration(wait_s),
        )
        found = await _answer(self._worker.LeaseJob(request, timeout=wait_s + CALL_S))
        return assignment_in(found.job) if found.HasField("job") else None

    async def renew(self, job: Assignment, progress: float, message: str) -> bool:
        """Keep the lease; True when the work should stop."""
        request = worker.RenewJobRequest(
            operation=job.operation, lease=job.lease, progress=progress, message=message
        )
        return bool((await _answer(self._worker.RenewJob(request, timeout=CALL_S))).cancelled)

    async def release(self, job: Assignment) -> None:
        """Give a job back that was not done."""
        request = worker.RenewJobRequest(operation=job.operation, lease=job.lease, release=True)
        await _answer(self._worker.RenewJob(request, timeout=CALL_S))

    async def fetch(self, version: VersionRecord, path: str, target: Path) -> None:
        """Bring one artifact into a file, checked against its digest."""
        artifact = version.artifact(path)
        request = pb.DownloadArtifactRequest(version=version.name, path=path)
        digest = hashlib.sha256()
        try:
            with target.open("xb") as file:
                async for response in self._registry.DownloadArtifact(request, timeout=FILE_S):
                    data = response.chunk.data
                    await asyncio.to_thread(_take, file, digest, data)
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
        if digest.hexdigest() != artifact.sha256:
            raise DataLoss(f"{path} does not match its SHA-256")

    async def publish(
        self,
        job: Assignment,
        folder: Path,
        files: Sequence[str],
        metrics: dict[str, float],
        lineage: LineageRecord,
    ) -> str:
        """Make files a new version of the job's model, uploaded, not finalized; gives its name."""
        artifacts = []
        for path in files:
            sha256, size = await asyncio.to_thread(measured, folder / path)
            artifacts.append(artifact_pb2.Artifact(path=path, size_bytes=size, sha256=sha256))
        request = pb.CreateModelVersionRequest(
            parent=f"models/{job.version.model}",
            version=model_pb2.ModelVersion(
                artifacts=artifacts,
                description=f"{lineage.conversion} of version {job.version.version}",
                metrics=metrics,
                lineage=to.lineage_out(lineage),
            ),
        )
        made = await _answer(self._registry.CreateModelVersion(request, timeout=CALL_S))
        for artifact in made.version.artifacts:
            if not artifact.stored:
                await self._upload(made.version.name, artifact.path, folder / artifact.path)
        return str(made.version.name)

    async def _upload(self, version: str, path: str, file: Path) -> None:
        call = self._registry.UploadArtifact(timeout=FILE_S)
        try:
            start = pb.UploadStart(version=version, path=path)
            await call.write(pb.UploadArtifactRequest(start=start))
            answer = await call.read()
            if answer is grpc.aio.EOF or answer.complete:
                return
            async for chunk in _chunks(file, answer.durable_bytes):
                await call.write(pb.UploadArtifactRequest(chunk=chunk))
            await call.done_writing()
            while (answer := await call.read()) is not grpc.aio.EOF and not answer.complete:
                pass
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            code = await call.code()
            raise UpstreamUnavailable(f"the registry did not take {path}: {code}") from error
        finally:
            call.cancel()

    async def complete(self, job: Assignment, outcome: Outcome) -> None:
        """End the job with what came of it."""
        request = worker.CompleteJobRequest(operation=job.operation, lease=job.lease)
        _put(request, outcome)
        await _answer(self._worker.CompleteJob(request, timeout=CALL_S))


def assignment_in(message: worker.Job) -> Assignment:
    """A job as the registry tells of it."""
    request: dict[str, Any] = {"version": message.version.version}
    if message.HasField("convert"):
        request["conversion"] = readers.CONVERSIONS[message.convert.conversion]
        request["max_difference"] = message.convert.max_difference
    if message.HasField("evaluate"):
        request["dataset"] = message.evaluate.dataset
        request["metric_prefix"] = message.evaluate.metric_prefix
    if message.HasField("profile"):
        request["batch_sizes"] = list(message.profile.batch_sizes)
        request["lengths"] = list(message.profile.lengths)
    return Assignment(
        operation=message.operation,
        lease=message.lease,
        lease_s=readers.seconds(message.lease_duration),
        kind=KINDS[message.kind],
        version=readers.version_in(message.version),
        task=readers.task_in(message.task),
        request=request,
        dataset=readers.version_in(message.dataset) if message.HasField("dataset") else None,
    )


def _put(request: worker.CompleteJobRequest, outcome: Outcome) -> None:
    if isinstance(outcome, Validated):
        found = request.validation
        found.rejections.extend(to.rejection_out(rejection) for rejection in outcome.rejections)
        if outcome.signature is not None:
            found.signature.CopyFrom(to.signature_out(outcome.signature))
        found.manifest = outcome.manifest
    elif isinstance(outcome, Converted):
        request.conversion.version = outcome.version
    elif isinstance(outcome, Evaluated):
        request.evaluation.metrics.update(outcome.metrics)
    elif isinstance(outcome, Profiled):
        request.profile.profile.CopyFrom(to.profile_out(outcome.profile))
        request.profile.metrics.update(outcome.metrics)
    else:
        info = error_details_pb2.ErrorInfo(reason=outcome.reason, domain=DOMAIN)
        status = status_pb2.Status(
            code=code_pb2.Code.Value(outcome.status), message=outcome.message
        )
        status.details.add().Pack(info)
        request.error.CopyFrom(status)


async def _answer(call: Any) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise _translated(error) from error


def _translated(error: grpc.aio.AioRpcError) -> Exception:
    said = error.details() or error.code().name
    kinds: dict[grpc.StatusCode, type[Exception]] = {
        grpc.StatusCode.ABORTED: Conflict,
        grpc.StatusCode.NOT_FOUND: NotFound,
        grpc.StatusCode.DATA_LOSS: DataLoss,
        # What trying again would not mend.
        grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
        grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    }
    return kinds.get(error.code(), UpstreamUnavailable)(said)


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration


def _take(file: Any, digest: Any, data: bytes) -> None:
    file.write(data)
    digest.update(data)


async def _chunks(path: Path, offset: int) -> AsyncIterator[pb.Chunk]:
    with path.open("rb") as file:
        file.seek(offset)
        while data := await asyncio.to_thread(file.read, CHUNK):
            yield pb.Chunk(offset=offset, data=data)
            offset += len(data)
