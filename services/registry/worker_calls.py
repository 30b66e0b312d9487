"""gristmill.registry.v1.WorkerService: the desk of the workers that run elsewhere."""

from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2
from gristmill.registry.v1 import worker_service_pb2 as worker
from gristmill.registry.v1 import worker_service_pb2_grpc as rpc

from services.registry import converters as to
from services.registry import readers
from services.registry.desk import LocalDesk
from services.registry.jobs import FailureRecord, JobKind, Jobs
from services.registry.resources import VersionRecord
from services.registry.store import Store
from services.registry.worker.assignment import (
    Assignment,
    Converted,
    Evaluated,
    Outcome,
    Profiled,
    Validated,
)
from services.runtime.errors import InvalidRequest

Context = Any
KINDS: dict[int, JobKind] = {
    worker.JOB_KIND_VALIDATE: "finalize",
    worker.JOB_KIND_CONVERT: "convert",
    worker.JOB_KIND_EVALUATE: "evaluate",
    worker.JOB_KIND_PROFILE: "profile",
}
NUMBERS = {kind: number for number, kind in KINDS.items()}
CONVERSIONS = {name: number for number, name in readers.CONVERSIONS.items()}


class WorkerServicer(rpc.WorkerServiceServicer):
    """Leases out the jobs of one registry."""

    def __init__(self, desk: LocalDesk, jobs: Jobs, store: Store) -> None:
        self._desk = desk
        self._jobs = jobs
        self._store = store

    async def LeaseJob(self, request: worker.LeaseJobRequest, context: Context) -> Any:  # noqa: N802
        unknown = [kind for kind in request.kinds if kind not in KINDS]
        if unknown:
            raise InvalidRequest.field("kinds", f"{unknown[0]} is not a kind of job")
        wait = readers.seconds(request.wait)
        job = await self._desk.lease(request.worker, [KINDS[kind] for kind in request.kinds], wait)
        return worker.LeaseJobResponse(job=job_out(job) if job else None)

    async def RenewJob(self, request: worker.RenewJobRequest, context: Context) -> Any:  # noqa: N802
        if request.release:
            await self._jobs.release(request.operation, request.lease)
            return worker.RenewJobResponse()
        stop = await self._jobs.renew(
            request.operation, request.lease, request.progress, request.message
        )
        return worker.RenewJobResponse(cancelled=stop)

    async def CompleteJob(self, request: worker.CompleteJobRequest, context: Context) -> Any:  # noqa: N802
        record = await self._jobs.get(request.operation)
        version = await self._store.find_version(record.subject)
        outcome = _outcome(request, version)
        await self._desk.lifecycle.complete(request.operation, request.lease, outcome)
        return worker.CompleteJobResponse()


def job_out(job: Assignment) -> worker.Job:
    """A job as its worker is told of it."""
    duration = Duration()
    duration.FromMilliseconds(round(job.lease_s * 1000))
    found = worker.Job(
        operation=job.operation,
        lease=job.lease,
        lease_duration=duration,
        kind=NUMBERS[job.kind],  # type: ignore[arg-type]  # a number of the enum
        version=to.version_out(job.version),
        task=to.task_out(job.task),
    )
    name, request = job.version.name, job.request
    if job.kind == "convert":
        found.convert.name = name
        found.convert.conversion = CONVERSIONS[request["conversion"]]  # type: ignore[assignment]  # a number of the enum
        found.convert.max_difference = request["max_difference"]
    elif job.kind == "evaluate":
        found.evaluate.name = name
        found.evaluate.dataset = request["dataset"]
        found.evaluate.metric_prefix = request["metric_prefix"]
    elif job.kind == "profile":
        found.profile.name = name
        found.profile.batch_sizes.extend(request["batch_sizes"])
        found.profile.lengths.extend(request["lengths"])
    if job.dataset is not None:
        found.dataset.CopyFrom(to.version_out(job.dataset))
    return found


def _outcome(request: worker.CompleteJobRequest, version: VersionRecord | None) -> Outcome:
    kind = request.WhichOneof("outcome")
    if kind == "validation":
        found = request.validation
        return Validated(
            tuple(readers.rejection_in(rejection) for rejection in found.rejections),
            readers.signature_in(found.signature) if found.HasField("signature") else None,
            found.manifest,
        )
    if kind == "conversion":
        return Converted(request.conversion.version)
    if kind == "evaluation":
        return Evaluated(dict(request.evaluation.metrics))
    if kind == "profile" and version is not None:
        profile = readers.profile_in(request.profile.profile, version)
        return Profiled(profile, dict(request.profile.metrics))
    if kind == "error":
        names = code_pb2.Code.keys()
        code = request.error.code
        status = code_pb2.Code.Name(code) if code in code_pb2.Code.values() else names[2]
        return FailureRecord(
            status=status,
            reason=readers.reason_in(request.error),
            message=request.error.message,
        )
    raise InvalidRequest.field("outcome", "is required")
