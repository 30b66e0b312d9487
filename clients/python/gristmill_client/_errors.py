"""Turns gRPC statuses into the client's exceptions: the one table, knowing no service."""

from __future__ import annotations

from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from gristmill_client import errors
from gristmill_client.errors import ErrorDetails, FieldViolation, GristmillError

M = TypeVar("M", bound=Message)

DOMAIN = "gristmill"

# By status, and by reason where one status has several meanings.
_CLASSES: dict[tuple[str, str], type[GristmillError]] = {
    ("INVALID_ARGUMENT", ""): errors.InvalidRequest,
    ("OUT_OF_RANGE", ""): errors.OutOfRange,
    ("UNAUTHENTICATED", ""): errors.Unauthenticated,
    ("PERMISSION_DENIED", ""): errors.PermissionDenied,
    ("NOT_FOUND", ""): errors.NotFound,
    ("ALREADY_EXISTS", ""): errors.AlreadyExists,
    ("ABORTED", ""): errors.Conflict,
    ("FAILED_PRECONDITION", ""): errors.FailedPrecondition,
    ("RESOURCE_EXHAUSTED", ""): errors.ResourceExhausted,
    ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"): errors.QuotaExceeded,
    ("RESOURCE_EXHAUSTED", "QUEUE_FULL"): errors.Overloaded,
    ("RESOURCE_EXHAUSTED", "SLOW_CONSUMER"): errors.Overloaded,
    ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE"): errors.InvalidRequest,
    ("DEADLINE_EXCEEDED", ""): errors.DeadlineExceeded,
    ("UNAVAILABLE", ""): errors.Unavailable,
    ("DATA_LOSS", ""): errors.DataLoss,
    ("UNIMPLEMENTED", ""): errors.Unimplemented,
    ("CANCELLED", ""): errors.Cancelled,
    ("INTERNAL", ""): errors.ServerError,
    ("UNKNOWN", ""): errors.ServerError,
}


def from_rpc(error: grpc.RpcError, peer: str) -> GristmillError:
    """The exception for a failed call to `peer` ("classifier at localhost:50052")."""
    trailing: Any = error.trailing_metadata()  # pairs, whichever the kind of channel
    metadata: dict[str, object] = dict(trailing or ())
    rich = _parse(metadata.get("grpc-status-details-bin"))
    request_id = metadata.get("x-request-id")
    message = error.details() or ""
    if rich is None:
        # No server of ours spoke: say whom we tried to reach.
        rich = status_pb2.Status(message=f"{peer}: {message}")
    rich.code = error.code().value[0]
    return from_status(rich, request_id if isinstance(request_id, str) else None)


def from_status(status: status_pb2.Status, request_id: str | None = None) -> GristmillError:
    """The exception for a google.rpc.Status: of a call, of one item or of an operation."""
    name = code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else "UNKNOWN"
    details = _details(status, name, request_id)
    default = _CLASSES.get((name, ""), errors.ServerError)
    return _CLASSES.get((name, details.reason), default)(status.message or name, details)


def _details(status: status_pb2.Status, name: str, request_id: str | None) -> ErrorDetails:
    info = _find(status, error_details_pb2.ErrorInfo)
    if info is not None and info.domain != DOMAIN:
        info = None
    retry = _find(status, error_details_pb2.RetryInfo)
    request = _find(status, error_details_pb2.BadRequest)
    failure = _find(status, error_details_pb2.PreconditionFailure)
    return ErrorDetails(
        status=name,
        reason=info.reason if info else "",
        retry_after=retry.retry_delay.ToTimedelta().total_seconds() if retry else None,
        request_id=request_id,
        field_violations=tuple(
            FieldViolation(v.field, v.description)
            for v in (request.field_violations if request else ())
        ),
        preconditions=tuple(
            f"{v.subject}: {v.description}" if v.subject else v.description
            for v in (failure.violations if failure else ())
        ),
        metadata=dict(info.metadata) if info else {},
    )


def _find(status: status_pb2.Status, kind: type[M]) -> M | None:
    for detail in status.details:
        if detail.Is(kind.DESCRIPTOR):
            found = kind()
            try:
                detail.Unpack(found)
            except DecodeError:
                return None  # a broken detail must not hide the error itself
            return found
    return None


def _parse(raw: object) -> status_pb2.Status | None:
    if not isinstance(raw, bytes):
        return None
    try:
        return status_pb2.Status.FromString(raw)
    except DecodeError:
        return None
