"""google.longrunning.Operations over the long work of this registry.

The operation of a check is named after its version, and read off the version where its row is gone:
what was acknowledged can be asked for as long as the version is there.
"""

import re
import time
from datetime import datetime
from typing import Any

import grpc
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2, message_factory
from google.rpc import code_pb2, error_details_pb2, status_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb

from services.registry import converters, paging, readers
from services.registry.jobs import Jobs, OperationRecord
from services.registry.lifecycle import Lifecycle, finalize_name
from services.registry.resources import ProfileRecord, VersionRecord, stored_moment
from services.runtime.call import current_call
from services.runtime.errors import InvalidRequest, NotFound
from services.runtime.interceptors import Handler
from services.runtime.status import DOMAIN

_FINALIZE = re.compile(
    r"operations/finalize\.([A-Za-z0-9][A-Za-z0-9._-]{0,127})\.([1-9][0-9]{0,9})"
)
MOST_WAIT_S = 300.0
SERVICE = operations_pb2.DESCRIPTOR.services_by_name["Operations"]


def operation_out(record: OperationRecord) -> operations_pb2.Operation:
    """An operation as it stands."""
    operation = operations_pb2.Operation(name=record.name, done=record.state == "done")
    operation.metadata.Pack(
        pb.OperationMetadata(
            subject=record.subject,
            kind=record.kind,
            progress=record.progress,
            message=record.message,
            create_time=converters.moment(record.create_time),
            end_time=converters.moment(record.end_time),
            cancel_requested=record.cancelled,
        )
    )
    if record.failure is not None:
        info = error_details_pb2.ErrorInfo(reason=record.failure.reason, domain=DOMAIN)
        status = status_pb2.Status(
            code=code_pb2.Code.Value(record.failure.status), message=record.failure.message
        )
        status.details.add().Pack(info)
        operation.error.CopyFrom(status)
    elif record.state == "done" and record.result is not None:
        operation.response.Pack(_response(record.result))
    return operation


def _response(result: dict[str, Any]) -> Any:
    if "profile" in result:
        return converters.profile_out(ProfileRecord.model_validate(result["profile"]))
    return converters.version_out(VersionRecord.model_validate(result["version"]))


def finalized(record: VersionRecord) -> operations_pb2.Operation:
    """The ended operation that checked a version."""
    operation = operations_pb2.Operation(name=finalize_name(record.name), done=True)
    operation.response.Pack(converters.version_out(record))
    return operation


class OperationsServicer:
    """google.longrunning.Operations."""

    def __init__(self, jobs: Jobs, lifecycle: Lifecycle) -> None:
        self._jobs = jobs
        self._lifecycle = lifecycle

    async def GetOperation(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The operation as it stands."""
        try:
            return operation_out(await self._jobs.get(request.name))
        except NotFound:
            if found := await self._past(request.name):
                return found
            raise

    async def WaitOperation(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The operation when it has ended, or as it stands when the time is up."""
        asked = readers.seconds(request.timeout)
        left = current_call().deadline.remaining(time.monotonic()) - 0.1
        seconds = min(asked if request.HasField("timeout") else MOST_WAIT_S, MOST_WAIT_S, left)
        try:
            return operation_out(await self._jobs.wait(request.name, max(0.0, seconds)))
        except NotFound:
            if found := await self._past(request.name):
                return found
            raise

    async def ListOperations(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Operations, newest first; the filter is empty, "done = true" or "done = false"."""
        size = paging.size(request.page_size)
        token = paging.after(request.page_token)
        records = await self._jobs.listed(
            _key(token) if token else None, size + 1, done=_done(request.filter)
        )
        shown, following = paging.cut(
            records, size, lambda record: f"{stored_moment(record.create_time)} {record.name}"
        )
        return operations_pb2.ListOperationsResponse(
            operations=[operation_out(record) for record in shown], next_page_token=following
        )

    async def CancelOperation(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Ask that an operation end."""
        await self._lifecycle.cancel(request.name)
        return empty_pb2.Empty()

    async def DeleteOperation(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Forget an operation that has ended."""
        await self._jobs.delete(request.name)
        return empty_pb2.Empty()

    async def _past(self, name: str) -> operations_pb2.Operation | None:
        """A check whose row is gone, as its version tells of it."""
        found = _FINALIZE.fullmatch(name)
        if found is None:
            return None
        version = await self._jobs.store.version(found[1], int(found[2]))
        if version.state in ("uploading", "validating"):
            return None
        return finalized(version)


def _key(token: str) -> tuple[str, str]:
    moment, _, name = token.partition(" ")
    try:
        datetime.fromisoformat(moment)
    except ValueError:
        said = "is not one that this server gave"
        raise InvalidRequest.field("page_token", said) from None
    return moment, name


def _done(text: str) -> bool | None:
    said = text.replace(" ", "").lower()
    if said not in ("", "done=true", "done=false"):
        raise InvalidRequest.field("filter", "is not empty, done = true or done = false")
    return None if not said else said == "done=true"


def handlers(jobs: Jobs, lifecycle: Lifecycle) -> dict[str, Handler]:
    """The method handlers of google.longrunning.Operations.

    The package's own add-to-server function is older than registered methods.
    """
    servicer = OperationsServicer(jobs, lifecycle)
    return {
        method.name: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, method.name),
            message_factory.GetMessageClass(method.input_type).FromString,
            message_factory.GetMessageClass(method.output_type).SerializeToString,
        )
        for method in SERVICE.methods
    }
