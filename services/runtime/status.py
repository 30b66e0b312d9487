"""The one table from domain errors to gRPC statuses, with their google.rpc details."""

from collections.abc import Iterator, Mapping

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from services.runtime import errors

DOMAIN = "gristmill"
Code = grpc.StatusCode

TABLE: dict[type[errors.GristmillError], grpc.StatusCode] = {
    errors.InvalidRequest: Code.INVALID_ARGUMENT,
    errors.UnsupportedField: Code.INVALID_ARGUMENT,
    errors.ModelAmbiguous: Code.INVALID_ARGUMENT,
    errors.MessageTooLarge: Code.RESOURCE_EXHAUSTED,
    errors.Unauthenticated: Code.UNAUTHENTICATED,
    errors.PermissionDenied: Code.PERMISSION_DENIED,
    errors.NotFound: Code.NOT_FOUND,
    errors.AlreadyExists: Code.ALREADY_EXISTS,
    errors.Conflict: Code.ABORTED,
    errors.FailedPrecondition: Code.FAILED_PRECONDITION,
    errors.OutOfRange: Code.OUT_OF_RANGE,
    errors.NotImplementedYet: Code.UNIMPLEMENTED,
    errors.Overloaded: Code.RESOURCE_EXHAUSTED,
    errors.QuotaExceeded: Code.RESOURCE_EXHAUSTED,
    errors.SlowConsumer: Code.RESOURCE_EXHAUSTED,
    errors.StorageFull: Code.RESOURCE_EXHAUSTED,
    errors.DeadlineTooShort: Code.DEADLINE_EXCEEDED,
    errors.DeadlineExpired: Code.DEADLINE_EXCEEDED,
    errors.ModelNotReady: Code.UNAVAILABLE,
    errors.EngineRestarting: Code.UNAVAILABLE,
    errors.Draining: Code.UNAVAILABLE,
    errors.UpstreamUnavailable: Code.UNAVAILABLE,
    errors.StorageFailed: Code.UNAVAILABLE,
    errors.DataLoss: Code.DATA_LOSS,
    errors.BackendFailed: Code.INTERNAL,
}
# A caller that is told to come back is told when; this where nothing better is known.
DEFAULT_RETRY_S = 1.0
# Trailing metadata above 8 KiB is refused by clients, and the caller would see another status.
MAX_FIELD_BYTES = 200
MAX_VIOLATIONS_BYTES = 2600
MAX_METADATA_BYTES = 1000
WITHHELD = "the server failed; its log has the cause under this request id"


def code_of(error: BaseException) -> grpc.StatusCode:
    """The status that an exception maps to; INTERNAL for whatever is not a domain error."""
    for cls in type(error).__mro__:
        if issubclass(cls, errors.GristmillError) and cls in TABLE:
            return TABLE[cls]
    return Code.INTERNAL


def to_status(error: BaseException, request_id: str = "") -> status_pb2.Status:
    """The google.rpc.Status of an exception: message, ErrorInfo, and what more helps."""
    code = code_of(error)
    domain = error if isinstance(error, errors.GristmillError) else None
    withheld = domain is None or code is Code.INTERNAL
    reason = domain.reason_given if domain else errors.INTERNAL
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)
    if domain:
        info.metadata.update(_fitting_metadata(domain.metadata))
    if withheld and request_id:
        info.metadata["request_id"] = request_id
    status = status_pb2.Status(
        code=code_pb2.Code.Value(code.name),
        message=WITHHELD if withheld or domain is None else domain.message,
    )
    status.details.append(_packed(info))
    for detail in _details(domain, code) if domain else ():
        status.details.append(_packed(detail))
    return status


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _details(error: errors.GristmillError, code: grpc.StatusCode) -> list[Message]:
    found: list[Message] = []
    if error.violations and code is Code.INVALID_ARGUMENT:
        found.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=v.field, description=v.description, reason=error.reason_given
                    )
                    for v in _fitting(error.violations)
                ]
            )
        )
    if error.violations and code is Code.FAILED_PRECONDITION:
        found.append(
            error_details_pb2.PreconditionFailure(
                violations=[
                    error_details_pb2.PreconditionFailure.Violation(
                        type=error.reason_given, subject=v.field, description=v.description
                    )
                    for v in _fitting(error.violations)
                ]
            )
        )
    if error.resource:
        kind, name = (errors.shortened(part, MAX_FIELD_BYTES) for part in error.resource)
        found.append(error_details_pb2.ResourceInfo(resource_type=kind, resource_name=name))
    if code is Code.UNAVAILABLE or isinstance(error, errors.Overloaded | errors.QuotaExceeded):
        found.append(error_details_pb2.RetryInfo(retry_delay=_duration(retry_after_s(error))))
    return found


def _fitting(violations: tuple[errors.Violation, ...]) -> Iterator[errors.Violation]:
    left = MAX_VIOLATIONS_BYTES
    for violation in violations:
        field = errors.shortened(violation.field, MAX_FIELD_BYTES)
        description = errors.shortened(violation.description, MAX_FIELD_BYTES)
        left -= len(field.encode()) + len(description.encode())
        if left < 0:
            return
        yield errors.Violation(field, description)


def _fitting_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    share = MAX_METADATA_BYTES // max(1, len(metadata))
    return {key: errors.shortened(value, share) for key, value in metadata.items()}


def retry_after_s(error: BaseException) -> float:
    """Seconds after which the call may succeed, as RetryInfo gives them."""
    given = error.retry_after_s if isinstance(error, errors.GristmillError) else None
    return DEFAULT_RETRY_S if given is None else max(given, 0.001)


def _duration(seconds: float) -> duration_pb2.Duration:
    nanos = round(seconds * 1e9)
    return duration_pb2.Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)
